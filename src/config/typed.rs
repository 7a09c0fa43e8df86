//! What was typed: the command line as clap reads it, before anything is decided.
//!
//! `bk help`, shell completions and the man pages are all made from these definitions.

mod admin;
mod restore;
mod snapshot;
mod tune;
mod watch;

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Args, Parser, Subcommand,
    builder::{OsStringValueParser, TypedValueParser},
};

pub use admin::{ConfigCommand, LeaseCommand, LeaseReleaseArgs, VolumeCommand};
pub use restore::{DrillArgs, OverwriteArg, RestoreArgs};
pub use snapshot::SnapshotArgs;
pub use tune::{TuneArgs, WishArg};
pub use watch::{AbortArgs, CheckArgs, StatusArgs};

/// Backups on clusters, restorable with stock tools.
#[derive(Debug, Parser)]
#[command(name = "bk", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "A snapshot is named job/17, job/latest or job/latest~2.\nExit codes: 0 done, 1 error, 2 usage, 3 done but incomplete, 4 volume, 5 gate, 6 lost to another run, 7 step, 8 integrity, 9 no space, 128+n signal."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
}

/// A path that may be empty, which says: none.
fn any_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The volume: a name from the configuration, a directory or s3://BUCKET/PREFIX, made by `bk volume create`
    #[arg(long, global = true, env = "BK_VOLUME", value_name = "NAME|DIR|URL", hide_env_values = true)]
    pub volume: Option<PathBuf>,
    /// The configuration, with conf.d/*.toml beside it; an empty name is none [default: /etc/bk/bk.toml]
    #[arg(long, global = true, env = "BK_CONFIG", value_name = "FILE", hide_env_values = true, value_parser = any_path())]
    pub config: Option<PathBuf>,
    /// S3: URL of the server (default: AWS_ENDPOINT_URL, or Amazon's)
    #[arg(long, global = true, value_name = "URL", help_heading = "S3 volumes")]
    pub endpoint: Option<String>,
    /// S3: the region (default: AWS_REGION)
    #[arg(long, global = true, value_name = "NAME", help_heading = "S3 volumes")]
    pub region: Option<String>,
    /// S3: name the bucket in the path, never in the host
    #[arg(long, global = true, help_heading = "S3 volumes")]
    pub path_style: bool,
    /// S3: trust these certificates, too (PEM)
    #[arg(long, global = true, env = "BK_CA_FILE", value_name = "FILE", help_heading = "S3 volumes")]
    pub ca_file: Option<PathBuf>,
    /// S3: keep no copies of records and indexes on this machine
    #[arg(long, global = true, help_heading = "S3 volumes")]
    pub no_cache: bool,
    /// S3: let such copies take this much, for all volumes together (default: as configured, or 1GiB)
    #[arg(
        long,
        global = true,
        env = "BK_CACHE_SIZE",
        value_name = "SIZE",
        hide_env_values = true,
        help_heading = "S3 volumes"
    )]
    pub cache_size: Option<String>,
    /// Send at most this many bytes a second to the volume, on average: 10MiB
    #[arg(long, global = true, env = "BK_LIMIT_UPLOAD", value_name = "RATE", hide_env_values = true)]
    pub limit_upload: Option<String>,
    /// Fetch at most this many bytes a second from the volume, on average
    #[arg(long, global = true, env = "BK_LIMIT_DOWNLOAD", value_name = "RATE", hide_env_values = true)]
    pub limit_download: Option<String>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print no progress, no summary and no warnings; with --json only the last object
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Tell more: the files of the configuration, volume, level and base
    #[arg(long, short, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Also write what is said to this file, with the time (default: that of the configuration)
    #[arg(long, global = true, env = "BK_LOG", value_name = "FILE", hide_env_values = true)]
    pub log: Option<PathBuf>,
    /// Worker threads (default: one for each processor, at most 16)
    #[arg(long, global = true, env = "BK_THREADS", value_name = "N")]
    pub threads: Option<usize>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a snapshot of a configured job, or of trees, standard input or a command's output
    Snapshot(Box<SnapshotArgs>),
    /// List snapshots
    List(ListArgs),
    /// List the files of a snapshot
    Ls(LsArgs),
    /// Write a file or a stream of a snapshot to standard output
    Cat(CatArgs),
    /// Restore a snapshot, or parts of it
    Restore(RestoreArgs),
    /// Restore a job's newest snapshot for practice, compare it, try it, and note the result for `bk check`
    Drill(DrillArgs),
    /// Show snapshots as a file system
    Mount(MountArgs),
    /// Unmount what `bk mount` mounted
    Umount(UmountArgs),
    /// Write a snapshot's tree to standard output as one tar
    Export(ExportArgs),
    /// Leave what a run that was killed had begun
    Recover(RecoverArgs),
    /// Check what is stored
    Verify(VerifyArgs),
    /// Show what differs between two snapshots
    Diff(DiffArgs),
    /// Remove snapshots that are past their time, or set that time
    Expire(ExpireArgs),
    /// Keep a snapshot until it is released, whatever its time says
    Hold(HoldArgs),
    /// End the hold of a snapshot
    Release(ReleaseArgs),
    /// Tell why a snapshot is still there, or no more
    Why(WhyArgs),
    /// Show the runs that go on, on any node
    Status(StatusArgs),
    /// Stop the runs of a job, on whatever node they are
    Abort(AbortArgs),
    /// Tell a monitoring system how jobs are: exit 0 ok, 1 warning, 2 critical, 3 unknown
    Check(Box<CheckArgs>),
    /// Measure which settings are best for this data, machine and volume, and predict a full backup
    Tune(TuneArgs),
    /// Copy snapshots, with all they need, to another volume
    Copy(CopyArgs),
    /// Show or end the leases of jobs: who is at work
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Check the configuration, show a job of it, or make a first one
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make, list or describe volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory
        dir: PathBuf,
    },
}

/// `bk copy`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk copy home/latest --to /mnt/second\n  bk copy home --to s3://bucket/bk --expire 6mo\nA snapshot goes with its chain; what is there already is not copied again. A copy that was stopped goes on where it was."
)]
pub struct CopyArgs {
    /// Snapshots; or jobs, of which all snapshots go that were never copied there
    #[arg(required = true, value_name = "SNAPSHOT|JOB")]
    pub what: Vec<String>,
    /// The volume they go to, by its place or its configured name
    #[arg(long, value_name = "DIR|URL|NAME")]
    pub to: PathBuf,
    /// How long to keep them there, from now on: `4w`, `never` (default: until the same time as here)
    #[arg(long, value_name = "TIME")]
    pub expire: Option<String>,
    /// The job they belong to there (default: the same)
    #[arg(long, value_name = "NAME")]
    pub r#as: Option<String>,
}

/// `bk list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this job
    pub job: Option<String>,
}

/// `bk ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// The snapshot
    pub snapshot: String,
    /// A path in it; its root by default
    pub path: Option<OsString>,
    /// List everything below, too
    #[arg(long, short = 'R')]
    pub recursive: bool,
}

/// `bk cat`
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The snapshot
    pub snapshot: String,
    /// A file in it; without one and without --stream, the only stream of a snapshot that has one
    #[arg(conflicts_with = "stream")]
    pub path: Option<OsString>,
    /// A stream of it, by name
    #[arg(long, value_name = "NAME")]
    pub stream: Option<String>,
    /// Only LEN bytes from OFFSET on; without LEN, to the end
    #[arg(long, value_name = "OFFSET:LEN")]
    pub range: Option<String>,
}

/// `bk mount`
#[derive(Debug, Args)]
#[command(
    allow_missing_positional = true,
    after_help = "Examples:\n  bk mount --volume /srv/bk /mnt/bk\n  bk mount --volume /srv/bk --daemon home/latest /mnt/home\nEnd it with Ctrl-C, SIGTERM or `bk umount`. See docs/mount.md."
)]
pub struct MountArgs {
    /// Only this snapshot; all of the volume by default
    pub snapshot: Option<String>,
    /// The directory to mount on
    #[arg(required = true, value_name = "MOUNTPOINT")]
    pub mount_point: Option<PathBuf>,
    /// Return when it is mounted, and serve in the background
    #[arg(long)]
    pub daemon: bool,
    /// Let other users in, as far as owners, modes and access lists let them
    #[arg(long)]
    pub allow_other: bool,
    /// Let programs in it be run
    #[arg(long)]
    pub allow_exec: bool,
    /// Keep this much decoded content in memory (default: 256MiB, or a tenth of the memory if that is less)
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<String>,
    /// Give a program an I/O error after this many seconds without an answer from the volume (default: 60; on S3 120)
    #[arg(long, value_name = "SECONDS")]
    pub read_timeout: Option<u64>,
}

/// `bk umount`
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mount_point: PathBuf,
    /// Also when it is in use: out of sight now, ended with its last user
    #[arg(long)]
    pub lazy: bool,
    /// Unmount only this mount, when standard input ends with nothing in it
    #[arg(long, hide = true, value_name = "MOUNT")]
    pub after: Option<String>,
}

/// `bk export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The snapshot
    pub snapshot: String,
}

/// `bk recover`
#[derive(Debug, Args)]
#[command(
    after_help = "Run it at boot. The next run of a job does the same first; while bk lives nothing is left from outside."
)]
pub struct RecoverArgs {
    /// Only this job
    #[arg(required_if_eq("forget", "true"))]
    pub job: Option<String>,
    /// Where steps are noted (default: /var/lib/bk, or below the home of who is not root)
    #[arg(long, env = "BK_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Run nothing: it was done by hand
    #[arg(long)]
    pub forget: bool,
    /// Wait for the end of this run on standard input
    #[arg(long, hide = true, value_name = "RUN_ID", requires = "job")]
    pub watch: Option<String>,
}

/// `bk verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The snapshot, with those it is based on; all of the volume by default
    pub snapshot: Option<String>,
    /// Only that all objects are there with their lengths
    #[arg(long, conflicts_with = "data")]
    pub quick: bool,
    /// Also decode everything and check contents and tar headers against the index
    #[arg(long)]
    pub data: bool,
}

/// `bk diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The older snapshot
    pub a: String,
    /// The newer one
    pub b: String,
}

/// `bk expire`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk expire --dry-run\n  bk expire db\n  bk expire --set db/17 never\n  bk expire --set db/17 '1w 3d'\nA snapshot that a live one needs is held until that one goes."
)]
pub struct ExpireArgs {
    /// Only this job
    pub job: Option<String>,
    /// Set when a snapshot may go: a time from now, an instant (2027-01-31T00:00:00Z), or never
    #[arg(long, num_args = 2, value_names = ["SNAPSHOT", "WHEN"], conflicts_with_all = ["job", "dry_run", "allow_last", "yes", "sweep_lost"])]
    pub set: Option<Vec<String>>,
    /// Show what would be done
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Let the last usable chain of a job go, too
    #[arg(long)]
    pub allow_last: bool,
    /// Let more than one, and more than 20 %, of a job's snapshots go at once (a chain, or its end, counts as one)
    #[arg(long)]
    pub yes: bool,
    /// Give up runs that look whole and whose records are lost: without it nothing of their jobs goes
    #[arg(long)]
    pub sweep_lost: bool,
    /// This node's name in the record (default: the host's name)
    #[arg(long, env = "BK_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Seconds that runs stay which were never recorded (default: a day)
    #[arg(long, hide = true, value_name = "SECONDS")]
    pub sweep_grace: Option<u64>,
}

/// `bk hold`
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// The snapshot
    pub snapshot: String,
    /// Why
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// This node's name in the record (default: the host's name)
    #[arg(long, env = "BK_NODE", value_name = "NAME")]
    pub node: Option<String>,
}

/// `bk release`
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The snapshot
    pub snapshot: String,
    /// This node's name in the record (default: the host's name)
    #[arg(long, env = "BK_NODE", value_name = "NAME")]
    pub node: Option<String>,
}

/// `bk why`
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The snapshot; an expired one by its number
    pub snapshot: String,
}
