//! Which member of a database cluster a dump is taken from. A decision over values: nothing is asked here.

use serde::{Deserialize, Serialize};

use crate::{
    config::gate::Gate,
    error::{Error, Kind, Result},
    model::show,
};

/// What a member does in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes writes.
    #[serde(alias = "primary", alias = "master")]
    Leader,
    /// Follows.
    #[serde(alias = "slave", alias = "standby")]
    Replica,
}

impl Role {
    /// As it is shown and passed on.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Replica => "replica",
        }
    }
}

/// A member, as the gate tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Whether it serves.
    pub is_online: bool,
    /// How far it is behind, bytes or seconds as the cluster counts; `None` is unknown.
    pub lag: Option<u64>,
    /// Where it is reached.
    pub host: Option<String>,
    /// And at which port.
    pub port: Option<u16>,
}

/// The datasource of a run: the one that is named, or the ONLINE replica with the least lag, the first by name among equals.
/// Without `require_replica` the leader will do where there is no replica. Nothing told and nothing asked for is no datasource.
pub fn choose(gate: &Gate, members: &[Member]) -> Result<Option<Member>> {
    let wants_replica = gate.require_replica.unwrap_or(true);
    if members.is_empty() && gate.datasource.is_none() && gate.require_replica != Some(true) {
        return Ok(None);
    }
    if let Some(name) = &gate.datasource {
        return named(name, members, wants_replica).map(Some);
    }
    let mut fit: Vec<&Member> =
        members.iter().filter(|one| one.is_online && (one.role == Role::Replica || !wants_replica)).collect();
    fit.sort_by_key(|one| (one.role == Role::Leader, one.lag.unwrap_or(u64::MAX), &one.name));
    fit.first().map(|one| Some((*one).clone())).ok_or_else(|| {
        let what = if wants_replica { "no replica is online" } else { "no member is online" };
        let error = Error::new(Kind::Gate, format!("there is no datasource: {what} ({})", shown(members)));
        if wants_replica { error.with_hint("`require_replica = false` lets the leader be one") } else { error }
    })
}

fn named(name: &str, members: &[Member], wants_replica: bool) -> Result<Member> {
    let fail = |what: &str| {
        let name = show::name(name.as_bytes());
        Err(Error::new(Kind::Gate, format!("the datasource {name} {what} ({})", shown(members))))
    };
    match members.iter().find(|one| one.name == name) {
        None => fail("is not a member"),
        Some(one) if !one.is_online => fail("is not online"),
        Some(one) if one.role != Role::Replica && wants_replica => fail("is no replica"),
        Some(one) => Ok(one.clone()),
    }
}

fn shown(members: &[Member]) -> String {
    let one = |member: &Member| {
        let state = if member.is_online { "online" } else { "not online" };
        format!("{} {} {state}", show::name(member.name.as_bytes()), member.role.name())
    };
    if members.is_empty() { "no members".to_owned() } else { members.iter().map(one).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(text: &str) -> Member {
        let words: Vec<&str> = text.split(' ').collect();
        Member {
            name: words[0].to_owned(),
            role: if words[1] == "leader" { Role::Leader } else { Role::Replica },
            is_online: words[2] == "online",
            lag: words[3].parse().ok(),
            host: None,
            port: None,
        }
    }

    #[test]
    fn the_least_lag_then_the_name() {
        let gate = |text: &str| toml::from_str::<Gate>(&format!("kind = 'patroni'\n{text}")).unwrap();
        let (leader, c, b, far, off, new) = (
            "a leader online 0",
            "c replica online 5",
            "b replica online 5",
            "d replica online 9",
            "e replica off 0",
            "f replica online ?",
        );
        for (text, members, expected) in [
            ("", vec![leader, c, b, far], Ok("b")),
            ("", vec![leader, far, off, new], Ok("d")),
            ("", vec![leader, new], Ok("f")),
            ("", vec![leader, off], Err("no replica is online (a leader online, e replica not online)")),
            ("", vec![], Err("-")),
            ("require_replica = false", vec![leader, off], Ok("a")),
            ("require_replica = false", vec![leader, far], Ok("d")),
            ("require_replica = false", vec![off], Err("no member is online")),
            ("datasource = 'c'", vec![leader, b, c], Ok("c")),
            ("datasource = 'a'", vec![leader, b], Err("is no replica")),
            ("datasource = 'a'\nrequire_replica = false", vec![leader, b], Ok("a")),
            ("datasource = 'e'", vec![leader, off], Err("is not online")),
            ("datasource = 'x'", vec![leader], Err("is not a member")),
        ] {
            let members: Vec<Member> = members.into_iter().map(member).collect();
            match (choose(&gate(text), &members), expected) {
                (Ok(Some(found)), Ok(name)) => assert_eq!(found.name, name, "{text}"),
                (Ok(None), Err("-")) => {}
                (Err(e), Err(why)) => assert!(e.to_string().contains(why) && e.kind() == Kind::Gate, "{text}: {e}"),
                (found, expected) => panic!("{text} {members:?}: {found:?}, not {expected:?}"),
            }
        }
        assert!(choose(&gate("require_replica = true"), &[]).is_err());
    }
}
