//! The gate as configured: how bk learns whether this node may act now, and which database member a dump is taken from.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::step::{Argv, CommandText, check_env};
use crate::model::span::Span;

/// How long one try may take, and how many there are.
const TIMEOUT: Duration = Duration::from_secs(30);
const TRIES: u32 = 3;
const TRIES_MAX: u32 = 100;
/// `EX_TEMPFAIL` of sysexits.h: not now, no fault.
const SKIP_CODE: i32 = 75;
/// Patroni's REST interface on its own node.
const PATRONI_URL: &str = "http://127.0.0.1:8008";

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// Nobody: this node acts.
    Always,
    /// The lease of the job on its volume, which every run takes anyway: there is no cluster manager.
    Lease,
    /// A command.
    Command {
        /// What is run.
        argv: Argv,
        /// Exit codes that mean: this node does not act.
        skip_codes: Vec<i32>,
        /// Who runs it.
        user: Option<String>,
        /// Added to its environment.
        env: BTreeMap<String, String>,
    },
    /// Patroni's REST interface of this node.
    Patroni {
        /// `http://127.0.0.1:8008`
        url: String,
        /// Certificates to trust for https, PEM.
        ca_file: Option<PathBuf>,
    },
    /// The PostgreSQL server of this node, whether it is in recovery.
    Postgres {
        /// Prints `t` or `f`.
        argv: Argv,
        /// Who runs it.
        user: Option<String>,
        /// Added to its environment.
        env: BTreeMap<String, String>,
    },
}

impl GateKind {
    /// Its name, as in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Lease => "lease",
            Self::Command { .. } => "command",
            Self::Patroni { .. } => "patroni",
            Self::Postgres { .. } => "postgres",
        }
    }
}

/// Which node acts, where the gate knows roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coordinator {
    /// The leader's; a dump is taken over the network.
    Leader,
    /// The one whose database member is the datasource.
    Datasource,
}

/// A gate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "GateText")]
pub struct Gate {
    /// Who is asked.
    pub kind: GateKind,
    /// How long one try may take.
    pub timeout: Duration,
    /// Tries, before it is an error.
    pub tries: u32,
    /// Whether the role is asked again before the commit.
    pub regate: bool,
    /// Which node acts.
    pub coordinator: Coordinator,
    /// The member a dump is taken from, by name; else chosen.
    pub datasource: Option<String>,
    /// Only a replica is a datasource. `None`: where the gate tells datasources.
    pub require_replica: Option<bool>,
    /// A cluster that is paused or in maintenance is an error.
    pub require_automatic_mode: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            kind: GateKind::Always,
            timeout: TIMEOUT,
            tries: TRIES,
            regate: true,
            coordinator: Coordinator::Leader,
            datasource: None,
            require_replica: None,
            require_automatic_mode: false,
        }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindText {
    Always,
    Lease,
    Command,
    Patroni,
    Postgres,
}

/// A gate as typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateText {
    kind: Option<KindText>,
    command: Option<CommandText>,
    #[serde(default)]
    shell: bool,
    skip_codes: Option<Vec<i32>>,
    user: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    url: Option<String>,
    ca_file: Option<PathBuf>,
    timeout: Option<Span>,
    tries: Option<u32>,
    regate: Option<bool>,
    coordinator: Option<Coordinator>,
    datasource: Option<String>,
    require_replica: Option<bool>,
    #[serde(default)]
    require_automatic_mode: bool,
}

impl TryFrom<GateText> for Gate {
    type Error = String;

    fn try_from(mut text: GateText) -> Result<Self, String> {
        let kind = text.kind.ok_or("the gate has no `kind`: always, lease, command, patroni or postgres")?;
        let coordinator = match kind {
            KindText::Postgres => Coordinator::Datasource,
            _ => Coordinator::Leader,
        };
        let kind = text.who(kind).map_err(|e| format!("gate: {e}"))?;
        let gate = Self {
            timeout: text.timeout.map_or(TIMEOUT, |span| span.0),
            tries: text.tries.unwrap_or(TRIES),
            regate: text.regate.unwrap_or(true),
            coordinator: text.coordinator.unwrap_or(coordinator),
            datasource: text.datasource,
            require_replica: text.require_replica,
            require_automatic_mode: text.require_automatic_mode,
            kind,
        };
        gate.check().map_err(|e| format!("gate: {e}"))?;
        Ok(gate)
    }
}

impl GateText {
    fn who(&mut self, kind: KindText) -> Result<GateKind, String> {
        let argv = self.command.take().map(|one| one.argv(self.shell, "command")).transpose()?;
        let (user, env) = (self.user.take(), std::mem::take(&mut self.env));
        check_env(&env)?;
        let (url, ca_file, skip_codes) = (self.url.take(), self.ca_file.take(), self.skip_codes.take());
        let only = |key: &str, is_there: bool, kinds: &str| {
            if is_there { Err(format!("`{key}` is for kind = {kinds}")) } else { Ok(()) }
        };
        if !matches!(kind, KindText::Command) {
            only("skip_codes", skip_codes.is_some(), "\"command\"")?;
        }
        if !matches!(kind, KindText::Command | KindText::Postgres) {
            let kinds = "\"command\" and \"postgres\"";
            only("command", argv.is_some(), kinds)?;
            only("user", user.is_some(), kinds)?;
            only("env", !env.is_empty(), kinds)?;
        }
        if !matches!(kind, KindText::Patroni) {
            only("url", url.is_some(), "\"patroni\"")?;
            only("ca_file", ca_file.is_some(), "\"patroni\"")?;
        }
        Ok(match kind {
            KindText::Always => GateKind::Always,
            KindText::Lease => GateKind::Lease,
            KindText::Command => GateKind::Command {
                argv: argv.ok_or("kind = \"command\" wants `command`")?,
                skip_codes: skip_codes.unwrap_or_else(|| vec![SKIP_CODE]),
                user,
                env,
            },
            KindText::Patroni => GateKind::Patroni { url: url.unwrap_or_else(|| PATRONI_URL.to_owned()), ca_file },
            KindText::Postgres => GateKind::Postgres { argv: argv.unwrap_or_else(recovery_argv), user, env },
        })
    }
}

/// Asks the server that libpq finds by itself; no start-up file, no password prompt.
fn recovery_argv() -> Argv {
    ["psql", "-X", "-w", "-d", "postgres", "-Atc", "select pg_is_in_recovery()"].map(str::to_owned).to_vec()
}

/// What was typed of a gate: it goes before what is configured.
#[derive(Clone, Debug, Default)]
pub struct TypedGate {
    /// The member a dump is taken from.
    pub datasource: Option<String>,
    /// Only a replica is a datasource.
    pub require_replica: Option<bool>,
    /// A cluster that is paused or in maintenance is an error.
    pub require_automatic_mode: Option<bool>,
}

impl Gate {
    /// The gate with what was typed; an error when it cannot know what is asked of it.
    pub fn with(mut self, typed: TypedGate) -> Result<Self, String> {
        self.datasource = typed.datasource.or(self.datasource);
        self.require_replica = typed.require_replica.or(self.require_replica);
        self.require_automatic_mode = typed.require_automatic_mode.unwrap_or(self.require_automatic_mode);
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), String> {
        let knows_datasources = matches!(self.kind, GateKind::Command { .. } | GateKind::Patroni { .. });
        let knows_roles = matches!(self.kind, GateKind::Patroni { .. } | GateKind::Postgres { .. });
        match &self.kind {
            _ if !(1..=TRIES_MAX).contains(&self.tries) => {
                return Err(format!("`tries = {}` is not 1 to {TRIES_MAX}", self.tries));
            }
            _ if self.timeout.is_zero() => return Err("`timeout` is longer than nothing".to_owned()),
            // Not shown: it would be in every message of the gate, too. A password may hold what ends a host: it may be anywhere.
            GateKind::Patroni { url, .. } if url.contains('@') => {
                let why = "what is asked of Patroni (GET) wants none, and an `@` of a path is written %40";
                return Err(format!("`url` holds a name or a password before an `@`: {why}"));
            }
            GateKind::Patroni { url, .. } if !url.starts_with("http://") && !url.starts_with("https://") => {
                return Err(format!("`url = \"{url}\"` is not http://HOST:PORT or https://HOST:PORT"));
            }
            GateKind::Command { skip_codes, .. } if skip_codes.iter().any(|code| !(1..=255).contains(code)) => {
                return Err("`skip_codes` are 1 to 255".to_owned());
            }
            _ => {}
        }
        if !knows_datasources && (self.datasource.is_some() || self.require_automatic_mode) {
            return Err(
                "`datasource` and `require_automatic_mode` are for kind = \"patroni\" and \"command\"".to_owned()
            );
        }
        if !knows_datasources && !knows_roles && self.require_replica == Some(true) {
            return Err("`require_replica` is for kind = \"patroni\", \"command\" and \"postgres\"".to_owned());
        }
        let is_postgres = matches!(self.kind, GateKind::Postgres { .. });
        if is_postgres && self.coordinator == Coordinator::Leader && self.require_replica == Some(true) {
            return Err("with kind = \"postgres\" the leader's own server is no replica".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Gate, String> {
        toml::from_str(text).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn gates() {
        let command = read("kind = 'command'\ncommand = ['is-coordinator']\nskip_codes = [3]\ntimeout = '5s'").unwrap();
        assert!(matches!(&command.kind, GateKind::Command { skip_codes, .. } if skip_codes == &[3]));
        assert_eq!((command.timeout, command.tries, command.regate), (Duration::from_secs(5), 3, true));
        let patroni = read("kind = 'patroni'\nrequire_automatic_mode = true\ncoordinator = 'datasource'").unwrap();
        assert!(matches!(&patroni.kind, GateKind::Patroni { url, .. } if url == PATRONI_URL));
        assert_eq!(patroni.coordinator, Coordinator::Datasource);
        assert_eq!(read("kind = 'postgres'").unwrap().coordinator, Coordinator::Datasource);
        for (text, why) in [
            ("", "no `kind`"),
            ("kind = 'tungsten'", "unknown variant"),
            ("kind = 'command'", "wants `command`"),
            ("kind = 'command'\ncommand = 'a b'", "one string"),
            ("kind = 'command'\ncommand = ['a b']", "one program with spaces"),
            ("kind = 'command'\ncommand = ['a']\nskip_codes = [0]", "1 to 255"),
            ("kind = 'lease'\ncommand = ['a']", "is for kind"),
            ("kind = 'patroni'\nurl = 'localhost'", "http://"),
            ("kind = 'patroni'\nurl = 'http://user:s3cr3t@host:8008'", "a password"),
            ("kind = 'patroni'\nurl = 'https://token@host'", "a password"),
            ("kind = 'patroni'\nurl = 'http://user:s3cr3t/x@host:8008'", "a password"),
            ("kind = 'patroni'\nurl = 'http://user:?s3cr3t@host:8008'", "a password"),
            ("kind = 'patroni'\nurl = 'http://user:#s3cr3t@host:8008'", "a password"),
            ("kind = 'patroni'\nurl = 'user:s3cr3t@host:8008'", "a password"),
            ("kind = 'always'\nrequire_replica = true", "require_replica"),
            ("kind = 'always'\ntires = 3", "unknown field `tires`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("s3cr3t"), "{text}: {error}");
        }
    }
}
