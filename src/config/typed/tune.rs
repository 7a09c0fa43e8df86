//! What was typed for `bk tune`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `bk tune`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bk tune /home --volume /srv/bk\n  bk tune home --write home\n  pg_dump shop | bk tune --stdin --size 40GiB\nNothing is stored; what is written to the volume to measure it is removed again. See docs/tune.md."
)]
pub struct TuneArgs {
    /// A configured job whose trees are sampled; or directories and files
    #[arg(value_name = "JOB|PATH", required_unless_present = "stdin", conflicts_with = "stdin")]
    pub paths: Vec<PathBuf>,
    /// Sample the beginning of standard input
    #[arg(long)]
    pub stdin: bool,
    /// How long that stream is, for the prediction
    #[arg(long, value_name = "SIZE", requires = "stdin")]
    pub size: Option<String>,
    /// PATHs are below this directory
    #[arg(long, short = 'C', value_name = "DIR", conflicts_with = "stdin")]
    pub directory: Option<PathBuf>,
    /// Leave out what matches, as in `bk snapshot`
    #[arg(long, short, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Leave out other file systems
    #[arg(long, short = 'x')]
    pub one_file_system: bool,
    /// How long it may take
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    pub time: String,
    /// What matters most: the settings for this are shown, checked and written
    #[arg(long, value_enum, default_value = "balanced")]
    pub wish: WishArg,
    /// Also store the sample with these settings, and show what was predicted against what was measured
    #[arg(long)]
    pub check: bool,
    /// Write the settings into this job of the configuration; comments stay
    #[arg(long, value_name = "JOB")]
    pub write: Option<String>,
}

/// What matters most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WishArg {
    /// The least time
    Fastest,
    /// Small, for at most half as much time again
    Balanced,
    /// The fewest bytes
    Smallest,
}
