//! The gate: may this node act now? Asked at the start, for role, mode and datasource, and again before the commit, for the role alone:
//! the run's own steps may have changed the rest.
//!
//! A gate that cannot be asked is an error and never a quiet skip.

use serde::{Deserialize, Serialize};

use super::{
    datasource::{self, Member, Role},
    patroni::Patroni,
};
use crate::{
    config::{
        gate::{Coordinator, Gate, GateKind},
        step::Argv,
    },
    error::{Error, Kind, Result},
    model::show,
    monitor::Monitor,
    steps::{
        Values,
        process::{self, Call, End},
    },
};

/// Before the next try.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// What the gate said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This node acts.
    Open(Open),
    /// Another does, and why.
    Skip(String),
}

/// What is known of the node that acts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Open {
    /// What it is in its cluster.
    pub role: Option<String>,
    /// `automatic`, or what the cluster calls its mode.
    pub mode: Option<String>,
    /// Where a dump is taken from.
    pub datasource: Option<Member>,
}

impl Open {
    /// What goes to steps and streams by environment.
    pub fn values(&self) -> Values {
        let mut values = Values::new();
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                values.insert(name.to_owned(), value);
            }
        };
        set("BK_ROLE", self.role.clone());
        set("BK_MODE", self.mode.clone());
        if let Some(member) = &self.datasource {
            set("BK_DATASOURCE", Some(member.name.clone()));
            set("BK_DATASOURCE_ROLE", Some(member.role.name().to_owned()));
            set("BK_DATASOURCE_HOST", member.host.clone());
            set("BK_DATASOURCE_PORT", member.port.map(|port| port.to_string()));
        }
        values
    }
}

/// What an adapter found.
struct Found {
    /// Why this node does not act.
    skip: Option<String>,
    role: Option<String>,
    mode: Option<String>,
    members: Vec<Member>,
    /// This node's member, where the one with the datasource acts.
    own: Option<String>,
}

/// Whom to ask, and for whom.
pub struct Asking<'a> {
    /// The gate.
    pub gate: &'a Gate,
    /// This node.
    pub node: &'a str,
    /// The environment of a command.
    pub values: &'a Values,
    /// Told of failed tries; tells when to stop.
    pub monitor: &'a dyn Monitor,
}

impl Asking<'_> {
    /// Asks for role, mode and datasource.
    pub fn ask(&self) -> Result<Verdict> {
        let found = self.tries("gate", || self.found())?;
        if let Some(why) = found.skip {
            return Ok(Verdict::Skip(why));
        }
        let gate = self.gate;
        let is_automatic = |mode: &str| mode.eq_ignore_ascii_case("automatic");
        match &found.mode {
            Some(mode) if gate.require_automatic_mode && !is_automatic(mode) => {
                let what = format!("the cluster is not in automatic mode: it is {}", show::name(mode.as_bytes()));
                return Err(Error::new(Kind::Gate, what));
            }
            None if gate.require_automatic_mode => {
                return Err(Error::new(Kind::Gate, "the gate does not tell the cluster's mode"));
            }
            _ => {}
        }
        let datasource = if matches!(gate.kind, GateKind::Patroni { .. } | GateKind::Command { .. }) {
            datasource::choose(gate, &found.members)?
        } else {
            None
        };
        if gate.coordinator == Coordinator::Datasource
            && let Some(datasource) = &datasource
            && found.own.as_ref() != Some(&datasource.name)
        {
            let own = found.own.ok_or_else(|| {
                Error::new(Kind::Gate, format!("which member this node is, is not known: none is named {}", self.node))
                    .with_hint("give bk the member's name: --node NAME or `node = \"NAME\"`")
            })?;
            let (own, theirs) = (show::name(own.as_bytes()), show::name(datasource.name.as_bytes()));
            return Ok(Verdict::Skip(format!("{theirs} is the datasource, not {own}")));
        }
        Ok(Verdict::Open(Open { role: found.role, mode: found.mode, datasource }))
    }

    /// Asks for the role again: why the node that was `open` may no longer act, if so.
    pub fn ask_again(&self, open: &Open) -> Result<Option<String>> {
        if !self.gate.regate {
            return Ok(None);
        }
        self.tries("regate", || self.lost(open))
    }

    fn tries<T>(&self, phase: &str, ask: impl Fn() -> Result<T>) -> Result<T> {
        let what = format!("{} {}", phase, self.gate.kind.name());
        for n in 1.. {
            let error = match ask() {
                Ok(answer) => return Ok(answer),
                Err(e) => e,
            };
            if let Some(signal) = self.monitor.interrupted() {
                return Err(Error::new(Kind::Signal(signal), "interrupted"));
            }
            if n >= self.gate.tries || error.kind() != Kind::Gate {
                return Err(error.context(what));
            }
            self.monitor.warn(&format!("{what}: {error} (try {n} of {})", self.gate.tries));
            std::thread::sleep(PAUSE);
        }
        Err(Error::new(Kind::Gate, what))
    }

    fn found(&self) -> Result<Found> {
        let nothing = Found { skip: None, role: None, mode: None, members: Vec::new(), own: None };
        match &self.gate.kind {
            // The lease is taken with the volume in hand, as of every run.
            GateKind::Always | GateKind::Lease => Ok(nothing),
            GateKind::Command { argv, skip_codes, user, env } => self.command("gate", argv, skip_codes, user, env),
            GateKind::Patroni { url, ca_file } => {
                let patroni = self.patroni(url, ca_file.as_deref());
                let is_leader = patroni.is_leader()?;
                let role = if is_leader { Role::Leader } else { patroni.role()? };
                if self.gate.coordinator == Coordinator::Leader && !is_leader {
                    let skip = format!("this node is not the leader: its role is {}", role.name());
                    return Ok(Found { skip: Some(skip), ..nothing });
                }
                let cluster = patroni.cluster(self.node)?;
                let mode = if cluster.is_paused { "paused" } else { "automatic" };
                let (role, mode) = (Some(role.name().to_owned()), Some(mode.to_owned()));
                Ok(Found { role, mode, members: cluster.members, own: cluster.own, ..nothing })
            }
            GateKind::Postgres { argv, user, env } => {
                let role = self.recovery("gate", argv, user, env)?;
                let acts = match self.gate.coordinator {
                    Coordinator::Leader => role == Role::Leader,
                    Coordinator::Datasource => role == Role::Replica || self.gate.require_replica == Some(false),
                };
                let skip = (!acts).then(|| format!("this node's server is the {}", role.name()));
                Ok(Found { skip, role: Some(role.name().to_owned()), ..nothing })
            }
        }
    }

    /// Why the role is lost, if so.
    fn lost(&self, open: &Open) -> Result<Option<String>> {
        let changed = |role: Role| {
            let before = open.role.as_deref().unwrap_or("nothing");
            (before != role.name()).then(|| format!("this node was the {before} and is the {} now", role.name()))
        };
        match &self.gate.kind {
            GateKind::Always | GateKind::Lease => Ok(None),
            GateKind::Command { argv, skip_codes, user, env } => {
                Ok(self.command("regate", argv, skip_codes, user, env)?.skip)
            }
            GateKind::Patroni { url, ca_file } => {
                let patroni = self.patroni(url, ca_file.as_deref());
                let role = if patroni.is_leader()? { Role::Leader } else { patroni.role()? };
                let is_lost = open.role.as_deref() == Some("leader") && role != Role::Leader;
                Ok(changed(role).filter(|_| is_lost || self.gate.coordinator == Coordinator::Datasource))
            }
            GateKind::Postgres { argv, user, env } => Ok(changed(self.recovery("regate", argv, user, env)?)),
        }
    }

    fn patroni<'b>(&'b self, url: &'b str, ca_file: Option<&'b std::path::Path>) -> Patroni<'b> {
        Patroni { url, ca_file, timeout: self.gate.timeout, monitor: self.monitor }
    }

    fn run(&self, phase: &str, argv: &Argv, user: &Option<String>, env: &Values) -> process::Ran {
        let mut values = self.values.clone();
        values.insert("BK_PHASE".to_owned(), phase.to_owned());
        let call = Call {
            argv,
            user: user.as_deref(),
            values: &[env, &values],
            timeout: self.gate.timeout,
            input: None,
            is_kept: true,
        };
        let stop = || self.monitor.interrupted().is_some();
        process::run(&call, &stop, &mut |line| self.monitor.note(&format!("{phase}: {line}")))
    }

    fn recovery(&self, phase: &str, argv: &Argv, user: &Option<String>, env: &Values) -> Result<Role> {
        let ran = self.run(phase, argv, user, env);
        match (ran.end, ran.output.trim_ascii()) {
            (End::Exited(0), b"t") => Ok(Role::Replica),
            (End::Exited(0), b"f") => Ok(Role::Leader),
            (End::Exited(0), other) => {
                let shown = show::name(&other[..other.len().min(80)]);
                Err(Error::new(Kind::Gate, format!("`{}` printed neither t nor f: `{shown}`", argv[0])))
            }
            _ => Err(Error::new(Kind::Gate, ran.why)),
        }
    }

    fn command(
        &self,
        phase: &str,
        argv: &Argv,
        skip_codes: &[i32],
        user: &Option<String>,
        env: &Values,
    ) -> Result<Found> {
        let ran = self.run(phase, argv, user, env);
        match ran.end {
            End::Exited(0) => said(&ran.output).map_err(|e| e.context(format!("`{}`", argv[0]))),
            End::Exited(code) if skip_codes.contains(&code) => {
                let text = ran.output.trim_ascii();
                let why = text.split(|byte| *byte == b'\n').next().filter(|line| !line.is_empty() && line[0] != b'{');
                let why = why.map_or_else(|| format!("`{}` exited with {code}", argv[0]), show::name);
                Ok(Found { skip: Some(why), role: None, mode: None, members: Vec::new(), own: None })
            }
            _ => Err(Error::new(Kind::Gate, ran.why)),
        }
    }
}

/// What a command may print: nothing, a line that begins with `skip`, or this.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    role: Option<String>,
    mode: Option<String>,
    node: Option<String>,
    skip: Option<String>,
    /// It acts whatever its role is called: where every node acts, each by its role.
    #[serde(default)]
    act: bool,
    #[serde(default)]
    datasources: Vec<SaidMember>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SaidMember {
    name: String,
    role: Role,
    state: String,
    lag: Option<u64>,
    host: Option<String>,
    port: Option<u16>,
}

fn said(output: &[u8]) -> Result<Found> {
    let bad = |what: String| Error::new(Kind::Gate, what);
    let text = output.trim_ascii();
    let nothing = Found { skip: None, role: None, mode: None, members: Vec::new(), own: None };
    let lines = || text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    if !text.starts_with(b"{") {
        if lines().any(|line| line.starts_with(b"{")) {
            return Err(bad("it printed something before its JSON object".to_owned()));
        }
        let first = lines().next().unwrap_or(b"");
        let skip =
            first.strip_prefix(b"skip").filter(|rest| rest.first().is_none_or(|byte| !byte.is_ascii_alphanumeric()));
        let why = skip.map(|rest| rest.strip_prefix(b":").unwrap_or(rest).trim_ascii());
        let why = why.map(|why| if why.is_empty() { "not the coordinator".to_owned() } else { show::name(why) });
        return Ok(Found { skip: why, ..nothing });
    }
    let said: Said = serde_json::from_slice(text).map_err(|e| bad(format!("what it printed cannot be read: {e}")))?;
    let skip = match (said.skip, said.role.as_deref()) {
        (Some(why), _) => Some(show::name(why.as_bytes())),
        (None, _) if said.act => None,
        (None, None | Some("coordinator")) => None,
        (None, Some("member")) => Some("not the coordinator".to_owned()),
        (None, Some(role)) => {
            return Err(bad(format!(
                "`role` is neither coordinator nor member, and `act` is not true: {}",
                show::name(role.as_bytes())
            )));
        }
    };
    let members = said.datasources.into_iter().map(|one| Member {
        is_online: one.state.eq_ignore_ascii_case("online"),
        name: one.name,
        role: one.role,
        lag: one.lag,
        host: one.host,
        port: one.port,
    });
    Ok(Found { skip, role: said.role, mode: said.mode, members: members.collect(), own: said.node })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_may_say() {
        for (output, skip) in [
            ("", None),
            ("all is well\nskip", None),
            ("skipping nothing", None),
            ("skip", Some("not the coordinator")),
            ("skip: node 2 is it\n", Some("node 2 is it")),
            ("{}", None),
            ("{\"role\":\"coordinator\"}", None),
            ("{\"role\":\"member\"}", Some("not the coordinator")),
            ("{\"skip\":\"other\\u001b site\"}", Some("other\\u{1b} site")),
        ] {
            assert_eq!(said(output.as_bytes()).unwrap().skip.as_deref(), skip, "{output}");
        }
        for bad in [
            "{",
            "{\"role\":\"boss\"}",
            "{\"mdoe\":\"x\"}",
            "{\"datasources\":[{\"name\":\"a\"}]}",
            "{} x",
            "note\n{\"role\":\"member\"}",
        ] {
            assert_eq!(said(bad.as_bytes()).err().map(|e| e.kind()), Some(Kind::Gate), "{bad}");
        }
        let text = "{\"mode\":\"AUTOMATIC\",\"datasources\":[{\"name\":\"db2\",\"role\":\"slave\",\"state\":\"ONLINE\",\"host\":\"h\",\"port\":5432}]}";
        let found = said(text.as_bytes()).unwrap();
        assert_eq!((found.members[0].role, found.members[0].is_online), (Role::Replica, true));
    }
}
