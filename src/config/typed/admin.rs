//! What was typed for `bk lease`, `bk volume` and `bk config`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `bk lease`
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// List the newest lease of each job
    List {
        /// Only this job
        job: Option<String>,
    },
    /// End a lease that is in the way; without it, a run waits at most 36 seconds for one that is not renewed
    Release(LeaseReleaseArgs),
}

/// `bk lease release`
#[derive(Debug, Args)]
pub struct LeaseReleaseArgs {
    /// The job
    pub job: String,
    /// Also one that is renewed: its run is not stopped by that, and may still count
    #[arg(long)]
    pub yes: bool,
    /// This node's name in the lease (default: the host's name)
    #[arg(long, env = "BK_NODE", value_name = "NAME")]
    pub node: Option<String>,
}

/// `bk volume`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a directory, or a prefix of an S3 bucket, a volume
    Create {
        /// The directory, made when it is missing, or s3://BUCKET/PREFIX
        place: PathBuf,
        /// Accept a store without conditional create: only one process at a time will ever write to it
        #[arg(long)]
        exclusive_writer: bool,
    },
    /// List the configured volumes, each with its id
    List,
    /// Describe a volume
    Info {
        /// The volume (default: --volume)
        place: Option<PathBuf>,
    },
    /// Try whether a volume's store does what bk relies on
    Check {
        /// The volume (default: --volume)
        place: Option<PathBuf>,
    },
}

/// `bk config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read all of it and say what is wrong
    Check,
    /// Show what holds for a job, and where each value comes from; without JOB, what is configured
    Show {
        /// The job
        job: Option<String>,
        /// The set for this role
        #[arg(long, env = "BK_ROLE", value_name = "NAME")]
        role: Option<String>,
        /// With this agent
        #[arg(long, env = "BK_AGENT", value_name = "NAME")]
        agent: Option<String>,
    },
    /// Write a commented example
    Init {
        /// The file, which must not be there yet [default: /etc/bk/bk.toml]
        file: Option<PathBuf>,
    },
}
