//! What was typed for `bk status`, `bk abort` and `bk check`.

use std::path::PathBuf;

use clap::Args;

/// `bk status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this job
    pub job: Option<String>,
    /// Show them again and again, till none goes on
    #[arg(long, short)]
    pub follow: bool,
}

/// `bk abort`
#[derive(Debug, Args)]
pub struct AbortArgs {
    /// The job
    pub job: String,
    /// Why
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// This node's name in what the run is told (default: the host's name)
    #[arg(long, env = "BK_NODE", value_name = "NAME")]
    pub node: Option<String>,
}

/// `bk check`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk check --warn-age 26h --crit-age 50h\n  bk check db --crit-age 0=8d --crit-age 26h --warn-free 50GiB --prometheus /var/lib/node_exporter/bk.prom\nN=TIME is for the newest good snapshot of level N or below; a limit that neither is typed nor stands in the job's `check` is not looked at."
)]
pub struct CheckArgs {
    /// Jobs; all of the volume by default
    pub jobs: Vec<String>,
    /// Warn when the newest good snapshot is so old
    #[arg(long, value_name = "[N=]TIME")]
    pub warn_age: Vec<String>,
    /// Call it critical when the newest good snapshot is so old
    #[arg(long, value_name = "[N=]TIME")]
    pub crit_age: Vec<String>,
    /// Warn when the newest snapshot holds so many percent less than the one of its level before (default: as configured, or 50)
    #[arg(long, value_name = "PERCENT")]
    pub warn_drop: Option<u64>,
    /// Call that critical
    #[arg(long, value_name = "PERCENT")]
    pub crit_drop: Option<u64>,
    /// Warn when the volume has no more free than this
    #[arg(long, value_name = "SIZE")]
    pub warn_free: Option<String>,
    /// Call that critical
    #[arg(long, value_name = "SIZE")]
    pub crit_free: Option<String>,
    /// Warn when the newest drill is so old, or there was none
    #[arg(long, value_name = "TIME")]
    pub warn_drill: Option<String>,
    /// Call that critical
    #[arg(long, value_name = "TIME")]
    pub crit_drill: Option<String>,
    /// Write the numbers to a file for Prometheus' node exporter, too
    #[arg(long, value_name = "FILE")]
    pub prometheus: Option<PathBuf>,
}
