//! What was typed in a configuration file: its tables and keys, as TOML has them. Nothing is decided here; docs/config.md names every key.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::{
    gate::Gate,
    runbook::Action,
    step::{CommandText, Step},
    value::{ByLevel, Keep, Mount, Percent, Size},
};
use crate::model::{
    ids::{Name, Nonce},
    span::Span,
};

/// One file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileText {
    /// This node's name, the same on every machine that takes its place.
    pub node: Option<Name>,
    /// Where steps are journalled.
    pub state_dir: Option<PathBuf>,
    /// What is said is also written here.
    pub log: Option<LogText>,
    /// Volumes by name.
    #[serde(default)]
    pub volume: BTreeMap<Name, VolumeText>,
    /// What holds for every job that does not say otherwise.
    #[serde(default)]
    pub defaults: JobText,
    /// Ways to read sources, chosen by a job's `agent`, or by `--agent`.
    #[serde(default)]
    pub agent: BTreeMap<Name, JobText>,
    /// Jobs by name.
    #[serde(default)]
    pub job: BTreeMap<Name, JobText>,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogText {
    /// The file.
    pub file: PathBuf,
    /// It is set aside when it is longer than this.
    pub max_size: Option<Size>,
    /// How many that were set aside stay.
    pub keep: Option<u8>,
}

/// `[volume.NAME]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeText {
    /// A directory, `file:///DIR` or `s3://BUCKET/PREFIX`.
    pub url: String,
    /// Its id, as `bk volume info` shows it.
    pub id: Option<Nonce>,
    /// It is, or lies in, a mounted file system.
    pub require_mount: Option<Mount>,
    /// Less free space than this is an error before anything is read.
    pub min_free: Option<Size>,
    /// S3: URL of the server.
    pub endpoint: Option<String>,
    /// S3: the region.
    pub region: Option<String>,
    /// S3: the bucket's name goes into the path.
    pub path_style: Option<bool>,
    /// S3: certificates to trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// S3: a file with the keys, or the name of a systemd credential.
    pub credentials_file: Option<PathBuf>,
    /// S3: bytes held for uploads.
    pub in_flight: Option<Size>,
    /// S3: keep no copies of records and indexes here.
    pub no_cache: Option<bool>,
    /// S3: such copies take at most this much, of all volumes together.
    pub cache_size: Option<Size>,
    /// S3: the store has no conditional create, and only one process at a time writes to it.
    pub exclusive_writer: Option<bool>,
    /// Bytes a second that are sent at most, on average.
    pub limit_upload: Option<Size>,
    /// Bytes a second that are fetched at most, on average.
    pub limit_download: Option<Size>,
    /// What it is for.
    pub comment: Option<String>,
}

/// A command whose output is a stream, and what it must look like.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamText {
    /// The command.
    pub command: Option<CommandText>,
    /// A block device or file that is read instead of a command.
    pub device: Option<PathBuf>,
    /// `command` is a line for the shell.
    #[serde(default)]
    pub shell: bool,
    /// Added to its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Secrets of bk's own environment that it gets all the same.
    #[serde(default)]
    pub pass_env: Vec<String>,
    /// Who runs it.
    pub user: Option<String>,
    /// How long the command may take.
    pub timeout: Option<Span>,
    /// Shorter is an error.
    pub min_size: Option<Size>,
    /// More less than the last one of the same level is an error.
    pub max_drop: Option<Percent>,
    /// A whole line near its end.
    pub end_line: Option<String>,
    /// Its last bytes.
    pub end_bytes: Option<String>,
}

/// `[job.NAME.check]`: when `bk check` warns, and when it is critical.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckText {
    /// Age of the newest good snapshot that is worth a warning.
    pub warn_age: Option<Span>,
    /// Age that is critical.
    pub max_age: Option<Span>,
    /// Age of the newest good snapshot of level 0 that is critical.
    pub max_age_full: Option<Span>,
    /// Stored less than the one before of the same level by more than this: a warning.
    pub max_drop: Option<Percent>,
    /// Less free space in the volume: a warning.
    pub min_free: Option<Size>,
    /// Age of the newest drill that is worth a warning.
    pub max_drill_age: Option<Span>,
}

/// `[job.NAME.drill]`: where and with what `bk drill` tries a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillText {
    /// A directory of the drill's own is made in this one.
    pub scratch: Option<PathBuf>,
    /// Tries what was restored.
    pub command: Option<CommandText>,
    /// `command` is a line for the shell.
    #[serde(default)]
    pub shell: bool,
    /// How long it may take.
    pub timeout: Option<Span>,
    /// Who runs it.
    pub user: Option<String>,
    /// Added to its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A table with its keys all optional, and what takes their place when they are missing.
macro_rules! layered {
    ($(#[$outer:meta])* $table:ident { $($(#[$doc:meta])* $key:ident: $type:ty,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $table {
            $($(#[$doc])* pub $key: Option<$type>,)*
        }

        impl $table {
            /// These keys, and for those that are missing the ones of `under`.
            #[must_use]
            pub fn over(self, under: &Self) -> Self {
                Self { $($key: self.$key.or_else(|| under.$key.clone()),)* }
            }

            /// The keys that are there.
            pub fn keys(&self) -> Vec<&'static str> {
                let mut keys = Vec::new();
                $(if self.$key.is_some() { keys.push(stringify!($key)); })*
                keys
            }
        }
    };
}

layered! {
    /// `[job.NAME]`, and each table that takes its place key by key: `[job.NAME.role.ROLE]`, `[agent.NAME]`, `[defaults]`.
    JobText {
        /// Names of configured volumes.
        volume: Name,
        /// The finished snapshot is copied to these.
        copy_to: Vec<Name>,
        /// What it is for.
        comment: String,
        /// The agent whose keys stand in for missing ones.
        agent: Name,
        /// Sets by role: keys that go before those of the job.
        role: BTreeMap<Name, JobText>,
        /// Every node has a job of its own, `NAME.NODE`.
        per_node: bool,
        /// This node's name.
        node: Name,

        /// Directories and files; a block device is stored as a stream.
        paths: Vec<PathBuf>,
        /// Names are relative to this directory.
        directory: PathBuf,
        /// What is left out.
        exclude: Vec<String>,
        /// Files with such patterns.
        exclude_file: Vec<PathBuf>,
        /// Directories with a CACHEDIR.TAG are stored empty.
        exclude_caches: bool,
        /// Directories with a file of such a name are stored empty.
        exclude_if_present: Vec<String>,
        /// Directories on other file systems are stored empty.
        one_file_system: bool,
        /// Inode numbers say nothing.
        ignore_inode: bool,
        /// These must be mount points when sources are read.
        require_mount: Vec<PathBuf>,
        /// Fewer files than this is an error.
        min_files: u64,
        /// Commands and devices, by the name of their stream.
        stream: BTreeMap<Name, StreamText>,

        /// The codec.
        compression: String,
        /// Content of a frame.
        frame_size: Size,
        /// Stored size of a part.
        part_size: Size,
        /// Worker threads.
        threads: usize,
        /// Every frame is decoded again before it counts.
        verify_write: bool,

        /// The level, 0 to 9.
        level: u8,
        /// Which level on which day.
        levels: String,
        /// No level 0 instead of one without a base.
        no_promote: bool,
        /// Only the level just below is a base.
        strict_base: bool,
        /// How long snapshots are kept.
        expire: ByLevel<Keep>,
        /// After a snapshot those of the job that are past their time go.
        expire_after: bool,
        /// Younger snapshots make a run unnecessary.
        min_interval: Keep,

        /// May this node act now?
        gate: Gate,
        /// Actions around the work.
        step: Vec<Step>,
        /// How long the application may be held.
        max_hold: Span,
        /// Steps marked `offline` are done.
        offline: bool,
        /// Numbers of the job and its run are written to this file after each run.
        metrics: PathBuf,
        /// Thresholds of `bk check`.
        check: CheckText,
        /// What `bk restore --runbook` does, in order.
        runbook: Vec<Action>,
        /// Where and with what a restore is tried.
        drill: DrillText,
    }
}
