//! What was typed for `bk restore` and `bk drill`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, ValueEnum};

/// What happens to files that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OverwriteArg {
    /// Leave what is there
    Never,
    /// Replace files whose type, size or time differs
    IfChanged,
    /// Replace all files
    Always,
}

/// `bk restore`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk restore home/latest --target /tmp/back\n  bk restore home/latest --target / /home/ann/letters\n  bk restore vm/latest --stream sdb --to-device /dev/sdb\n  bk restore --runbook shop"
)]
pub struct RestoreArgs {
    /// The snapshot
    #[arg(required_unless_present = "runbook")]
    pub snapshot: Option<String>,
    /// Restore below this directory; it is made when it is missing
    #[arg(long, short, value_name = "DIR", required_unless_present_any = ["to_device", "runbook"])]
    pub target: Option<PathBuf>,
    /// Only these paths of the snapshot, with all below them
    #[arg(value_name = "PATH")]
    pub paths: Vec<OsString>,
    /// Only what matches
    #[arg(long, short, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Not what matches
    #[arg(long, short, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// What happens to files that are there already
    #[arg(long, value_enum, default_value = "if-changed")]
    pub overwrite: OverwriteArg,
    /// Leave out what could harm: owners, setuid bits, devices, capabilities
    #[arg(long)]
    pub safe: bool,
    /// Show what would be done
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Write a stream onto this device or existing file
    #[arg(long, value_name = "DEVICE", requires = "stream")]
    pub to_device: Option<PathBuf>,
    /// The stream for --to-device
    #[arg(long, value_name = "NAME", requires = "to_device")]
    pub stream: Option<String>,
    /// Do what the runbook of this configured job says: its steps, paths, and streams into commands
    #[arg(
        long,
        value_name = "JOB",
        conflicts_with_all = ["snapshot", "target", "paths", "include", "exclude", "overwrite", "safe", "to_device", "stream"],
        help_heading = "Runbook"
    )]
    pub runbook: Option<String>,
    /// From this snapshot (default: the job's latest)
    #[arg(long = "snapshot", id = "from", value_name = "SNAPSHOT", conflicts_with_all = ["target", "to_device"], help_heading = "Runbook")]
    pub from: Option<String>,
    /// Overwrite without asking
    #[arg(long, short, conflicts_with_all = ["target", "to_device"], help_heading = "Runbook")]
    pub yes: bool,
    /// Of a job with sets by role: take the runbook of this one
    #[arg(long, env = "BK_ROLE", value_name = "NAME", help_heading = "Runbook")]
    pub role: Option<String>,
    /// With the keys of this agent
    #[arg(long, env = "BK_AGENT", value_name = "NAME", help_heading = "Runbook")]
    pub agent: Option<String>,
    /// This node's name (default: as configured, or the host's)
    #[arg(long, env = "BK_NODE", value_name = "NAME", help_heading = "Runbook")]
    pub node: Option<String>,
    /// Where steps are noted (default: /var/lib/bk, or below the home of who is not root)
    #[arg(long, env = "BK_STATE_DIR", value_name = "DIR", help_heading = "Runbook")]
    pub state_dir: Option<PathBuf>,
}

/// `bk drill`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk drill shop --scratch /var/tmp\n  bk drill shop/latest~1 --scratch /var/tmp -- sh -c 'pg_restore -l $BK_DRILL_STREAMS/shop'\nThe restored tree lies in BK_DRILL_TREE, each stream as a file in BK_DRILL_STREAMS; both are removed at the end."
)]
pub struct DrillArgs {
    /// The job, of which the newest snapshot is taken; or a snapshot
    #[arg(value_name = "JOB|SNAPSHOT")]
    pub what: String,
    /// Restore into a directory of its own in this one (default: as configured)
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Run this command against what was restored, and take its exit code into account (default: as configured)
    #[arg(last = true, value_name = "COMMAND")]
    pub run: Vec<String>,
    /// This node's name (default: as configured, or the host's)
    #[arg(long, env = "BK_NODE", value_name = "NAME")]
    pub node: Option<String>,
}
