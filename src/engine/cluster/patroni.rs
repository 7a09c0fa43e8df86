//! Patroni's REST interface: `/leader` tells whether this node holds the leader lock, `/cluster` who is in the cluster, `/patroni`
//! what this node is. The lock is Patroni's own word; the role PostgreSQL has is not, when the network is cut.

use std::{path::Path, time::Duration};

use serde::Deserialize;

use super::{
    datasource::{Member, Role},
    http,
};
use crate::{
    error::{Error, Kind, Result},
    monitor::Monitor,
};

/// A node's own Patroni.
pub(super) struct Patroni<'a> {
    pub(super) url: &'a str,
    pub(super) ca_file: Option<&'a Path>,
    pub(super) timeout: Duration,
    pub(super) monitor: &'a dyn Monitor,
}

/// What `/cluster` says.
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    /// The member this Patroni is, when that can be told.
    pub(super) own: Option<String>,
    pub(super) is_paused: bool,
}

#[derive(Deserialize)]
struct ClusterText {
    members: Vec<MemberText>,
    #[serde(default)]
    pause: bool,
}

#[derive(Deserialize)]
struct MemberText {
    name: String,
    role: String,
    #[serde(default)]
    state: String,
    host: Option<String>,
    port: Option<u16>,
    api_url: Option<String>,
    /// A number, or a word when it is not known.
    lag: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct OwnText {
    role: Option<String>,
    patroni: Option<NamedText>,
}

#[derive(Deserialize)]
struct NamedText {
    name: Option<String>,
}

fn role(text: &str) -> Role {
    match text {
        "leader" | "master" | "primary" | "standby_leader" => Role::Leader,
        // Synchronous and quorum standbys are replicas, and so is what later versions may add.
        _ => Role::Replica,
    }
}

impl Patroni<'_> {
    fn get(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        http::get(&self.at(path), self.ca_file, self.timeout, &|| self.monitor.interrupted().is_some())
    }

    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.url.trim_end_matches('/'))
    }

    fn document<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T> {
        let (status, body) = self.get(path)?;
        let bad = |what: String| Error::new(Kind::Gate, format!("{}: {what}", self.at(path)));
        if status != 200 {
            return Err(bad(format!("answers with status {status}")));
        }
        serde_json::from_slice(&body).map_err(|e| bad(format!("not an answer of Patroni's: {e}")))
    }

    /// Whether this node holds the leader lock.
    pub(super) fn is_leader(&self) -> Result<bool> {
        match self.get("leader")?.0 {
            200 => Ok(true),
            503 => Ok(false),
            status => Err(Error::new(Kind::Gate, format!("{} answers with status {status}", self.at("leader")))),
        }
    }

    /// What this node's server is now.
    pub(super) fn role(&self) -> Result<Role> {
        let own: OwnText = self.document("patroni")?;
        let none = || Error::new(Kind::Gate, format!("{} tells no role", self.at("patroni")));
        Ok(role(&own.role.ok_or_else(none)?))
    }

    /// The cluster. `node` is this node's name for bk, which often is its name for Patroni, too.
    pub(super) fn cluster(&self, node: &str) -> Result<Cluster> {
        let cluster: ClusterText = self.document("cluster")?;
        let own: OwnText = self.document("patroni")?;
        let is_here = |one: &&MemberText| {
            let base = |url: &str| url.trim_end_matches('/').trim_end_matches("/patroni").to_owned();
            one.api_url.as_deref().is_some_and(|url| base(url) == base(self.url))
        };
        // Older ones do not tell their name.
        let own = own.patroni.and_then(|own| own.name);
        let own = own.or_else(|| cluster.members.iter().find(is_here).map(|one| one.name.clone()));
        let own = own.or_else(|| cluster.members.iter().find(|one| one.name == node).map(|one| one.name.clone()));
        let members = cluster.members.into_iter().map(|one| Member {
            role: role(&one.role),
            is_online: matches!(one.state.as_str(), "running" | "streaming"),
            lag: one.lag.as_ref().and_then(serde_json::Value::as_u64),
            name: one.name,
            host: one.host,
            port: one.port,
        });
        Ok(Cluster { members: members.collect(), own, is_paused: cluster.pause })
    }
}
