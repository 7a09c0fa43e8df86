//! What was typed for `bk snapshot`.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

/// `bk snapshot`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk snapshot home\n  bk snapshot cluster --offline --require-automatic-mode --validate\n  bk snapshot --volume /srv/bk --job home /home /etc\n  pg_dump shop | bk snapshot --volume /srv/bk --job db --stdin shop.sql\n  bk snapshot --volume /srv/bk --job db -- pg_dump shop"
)]
pub struct SnapshotArgs {
    /// A configured job; or, with --job, directories and files to store, where a block device is stored as a stream
    #[arg(value_name = "JOB|PATH")]
    pub paths: Vec<PathBuf>,
    /// The job the snapshot belongs to
    #[arg(long, env = "BK_JOB", value_name = "NAME")]
    pub job: Option<String>,
    /// Of a configured job: take the set for this role, not the one the gate tells
    #[arg(long, env = "BK_ROLE", value_name = "NAME")]
    pub role: Option<String>,
    /// Of a configured job: use this agent
    #[arg(long, env = "BK_AGENT", value_name = "NAME")]
    pub agent: Option<String>,
    /// Take the dump from this member of the cluster (default: as configured, else chosen by the gate)
    #[arg(long, value_name = "NAME", help_heading = "Cluster")]
    pub datasource: Option<String>,
    /// Take the dump from a replica only, one that is online; without one there is no snapshot
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Cluster")]
    pub require_replica: Option<bool>,
    /// Fail when the cluster is paused or in maintenance
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Cluster")]
    pub require_automatic_mode: Option<bool>,
    /// Do the steps marked `offline`: the datasource is taken offline before and online after
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Cluster")]
    pub offline: Option<bool>,
    /// Store names relative to this directory; PATHs are below it
    #[arg(long, short = 'C', value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Store standard input as a stream of this name
    #[arg(long, value_name = "NAME", conflicts_with = "run")]
    pub stdin: Option<String>,
    /// Name of the stream of a command (default: the job's name)
    #[arg(long, value_name = "NAME", requires = "run")]
    pub stream_name: Option<String>,
    /// Store the output of this command; it counts only when the command exits with 0
    #[arg(last = true, value_name = "COMMAND")]
    pub run: Vec<OsString>,
    /// Give the command this variable, although it looks like a secret of bk's own
    #[arg(long, value_name = "NAME", requires = "run")]
    pub pass_env: Vec<String>,
    /// Leave out what matches: a name at any depth, or a path from the top when it begins with `/`
    #[arg(long, short, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Read such patterns from a file, one a line
    #[arg(long, value_name = "FILE")]
    pub exclude_file: Vec<PathBuf>,
    /// Inode numbers say nothing, as on some network file systems: a file counts as unchanged without them
    #[arg(long)]
    pub ignore_inode: bool,
    /// Store directories marked by a CACHEDIR.TAG empty
    #[arg(long)]
    pub exclude_caches: bool,
    /// Store directories that hold a file of this name empty, for example .nobackup
    #[arg(long, value_name = "NAME")]
    pub exclude_if_present: Vec<String>,
    /// Store directories on other file systems empty
    #[arg(long, short = 'x')]
    pub one_file_system: bool,
    /// zstd:1 to zstd:19, bzip2:1 to bzip2:9, or none [default: zstd:3]
    #[arg(long, value_name = "CODEC", env = "BK_COMPRESSION")]
    pub compression: Option<String>,
    /// Content of a frame, the smallest piece that is read: a power of two from 256KiB to 64MiB [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    pub frame_size: Option<String>,
    /// Stored size of a part, 16MiB to 1GiB [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub part_size: Option<String>,
    /// 0 is everything, 1 to 9 what changed since the newest snapshot of a lower level; `auto` asks --levels
    /// (default: auto when there is --levels, else 0)
    #[arg(long, value_name = "0-9|auto")]
    pub level: Option<String>,
    /// Which level on which day, by this node's time zone: `0 on sun, 1 otherwise`, `0 on 1st, 1 on sun, 2 otherwise`
    #[arg(long, value_name = "TEXT", env = "BK_LEVELS")]
    pub levels: Option<String>,
    /// Fail when the level has no usable base, instead of taking level 0
    #[arg(long)]
    pub no_promote: bool,
    /// Take only a snapshot of the level just below as the base
    #[arg(long)]
    pub strict_base: bool,
    /// How long to keep it: `4w`, `1w 3d`, `6mo`, `never` (default: never ending)
    #[arg(long, value_name = "TIME", env = "BK_EXPIRE")]
    pub expire: Option<String>,
    /// Shown by `bk status` while it goes on
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// Write what `bk check --prometheus` writes about the job, and how this run ended, to a file
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Copy it to this volume at once; may be given several times (default: as configured). A copy that fails does not undo the snapshot
    #[arg(long, value_name = "DIR|URL")]
    pub copy_to: Vec<PathBuf>,
    /// How long to keep the copies (default: as long as the snapshot)
    #[arg(long, value_name = "TIME")]
    pub copy_expire: Option<String>,
    /// Do nothing, with exit 0, when the job has a snapshot that is younger: `20h`, `6d`
    #[arg(long, value_name = "TIME")]
    pub min_interval: Option<String>,
    /// Show level, base and expiry, and stop there
    #[arg(long)]
    pub dry_run: bool,
    /// Only check: configuration, programs, gate, volumes, level and base; nothing is entered, stored or written
    #[arg(long, conflicts_with = "dry_run")]
    pub validate: bool,
    /// Decode every frame again before it counts (default: one in 64)
    #[arg(long)]
    pub verify_write: bool,
    /// This node's name in the record (default: the host's name)
    #[arg(long, env = "BK_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Where steps are noted (default: /var/lib/bk, or below the home of who is not root)
    #[arg(long, env = "BK_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Say what a run says by itself: how its steps go, warnings, the summary
    #[arg(long, short, conflicts_with_all = ["notice", "quiet"])]
    pub info: bool,
    /// Say only what came of it, and warnings: no progress, nothing of how steps go
    #[arg(long, short, conflicts_with_all = ["quiet", "verbose"])]
    pub notice: bool,
}
