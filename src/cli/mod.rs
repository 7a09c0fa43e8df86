//! The command line: one file a verb, and the only floor that prints.

mod as_user;
mod browse;
mod check;
mod config;
mod copy;
mod drill;
mod exit;
mod expire;
mod health;
mod job;
mod lease;
mod list;
mod log;
mod mount;
mod output;
mod progress;
mod recover;
mod restore;
mod run;
mod runbook;
mod shell;
mod signals;
mod snapshot;
mod status;
mod teller;
mod tune;
mod volume;

use std::{cell::OnceCell, path::Path, process::ExitCode};

use clap::Parser;

use crate::{
    config::{
        file::Config,
        job::{Chosen, Job},
        meaning::{self, Named},
        typed::{Cli, Command, Global},
        volume::Target,
    },
    error::{Error, Kind, Result},
    model::{
        ids::Name,
        place::{Access, Place},
    },
    plan::health::Status,
    volume::{Volume, local::LocalStore, mount as mounted},
};
use log::Log;
use output::{Loudness, Output};

/// Runs bk with the process's arguments.
pub fn main() -> ExitCode {
    if let Some(code) = as_user::when_asked() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return output::usage(&e),
    };
    let out = Output::new(cli.global.json, loudness(&cli));
    if let Some(path) = cli.global.log.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        out.log_to(Log::open(path, None));
    }
    out.detail(&format!("begins: {}", line()));
    // A watcher has to outlive what ends its run.
    let is_watcher = matches!(&cli.command, Command::Recover(args) if args.watch.is_some());
    let watch = if is_watcher { signals::outlive } else { signals::watch };
    let result = watch().and_then(|signals| run(&cli, &out, &signals));
    exit::code(&out, result)
}

fn loudness(cli: &Cli) -> Loudness {
    let is_notice = matches!(&cli.command, Command::Snapshot(args) if args.notice);
    match (cli.global.quiet, is_notice, cli.global.verbose) {
        (true, ..) => Loudness::Quiet,
        (_, true, _) => Loudness::Notice,
        (.., 0) => Loudness::Info,
        _ => Loudness::Verbose,
    }
}

/// The command line, for the log; a stream's own command is left out: a password may stand in it.
fn line() -> String {
    let words = std::env::args_os().skip(1).take_while(|word| word != "--");
    words.map(|word| crate::model::show::name(word.as_encoded_bytes())).collect::<Vec<_>>().join(" ")
}

/// How a verb ended when it did not fail.
enum Ended {
    Done,
    /// Done, but not all of it: exit 3.
    Incomplete,
    /// Faults were found in what is stored: exit 8.
    Faults,
    /// All was told already: this is the exit code.
    Code(u8),
    /// What a monitoring system is told, in its own codes.
    Health(Status),
}

fn run(cli: &Cli, out: &Output, signals: &signals::Signals) -> Result<Ended> {
    let context = Context { global: &cli.global, out, signals, config: OnceCell::new() };
    match &cli.command {
        Command::Snapshot(args) => snapshot::run(&context, args),
        Command::List(args) => list::run(&context, args),
        Command::Ls(args) => browse::ls(&context, args),
        Command::Cat(args) => browse::cat(&context, args),
        Command::Mount(args) => mount::mount(&context, args),
        Command::Umount(args) => mount::umount(&context, args),
        Command::Export(args) => browse::export(&context, args),
        Command::Diff(args) => browse::diff(&context, args),
        Command::Restore(args) => restore::run(&context, args),
        Command::Drill(args) => drill::run(&context, args),
        Command::Recover(args) => recover::run(&context, args),
        Command::Verify(args) => check::run(&context, args),
        Command::Expire(args) => expire::run(&context, args),
        Command::Hold(args) => expire::hold(&context, args),
        Command::Release(args) => expire::release(&context, args),
        Command::Why(args) => expire::why(&context, args),
        Command::Status(args) => status::run(&context, args),
        Command::Abort(args) => status::abort(&context, args),
        Command::Check(args) => health::run(&context, args),
        Command::Tune(args) => tune::run(&context, args),
        Command::Copy(args) => copy::run(&context, args),
        Command::Lease(command) => lease::run(&context, command),
        Command::Config(command) => config::run(&context, command),
        Command::Volume(command) => volume::run(&context, command),
        Command::Completions { shell } => shell::completions(*shell),
        Command::Man { dir } => shell::man(dir),
    }
}

/// What every verb needs.
struct Context<'a> {
    global: &'a Global,
    out: &'a Output,
    signals: &'a signals::Signals,
    config: OnceCell<Config>,
}

impl Context<'_> {
    /// The configuration, read when it is first asked for.
    fn config(&self) -> Result<&Config> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let config = Config::load(self.global.config.as_deref())?;
        if let Some(text) = config.log().filter(|_| !self.out.has_log()) {
            self.out.log_to(Log::open(&text.file, Some(text)));
        }
        let files: Vec<String> = config.files().map(|path| path.display().to_string()).collect();
        self.out
            .detail(&format!("configuration: {}", if files.is_empty() { "none".to_owned() } else { files.join(", ") }));
        Ok(self.config.get_or_init(|| config))
    }

    /// This node's name: as typed, as configured, or the host's.
    fn node(&self, typed: Option<&String>) -> Result<String> {
        match typed.filter(|name| !name.is_empty()) {
            Some(_) => Ok(meaning::node(typed)),
            None => Ok(meaning::node(self.config()?.text.node.as_ref().map(ToString::to_string).as_ref())),
        }
    }

    /// How an S3 volume is reached, as typed; a signal ends its waiting, too.
    fn access(&self) -> Result<Access> {
        Ok(Access { stop: self.signals.stop(), ..meaning::access(self.global)? })
    }

    /// Which volume is meant.
    fn target(&self, named: Option<Named<'_>>) -> Result<Target> {
        meaning::target(self.global, &self.access()?, &|| self.config(), named)
    }

    /// Whether a volume was typed, or stands in the environment: then no configuration is needed.
    fn has_typed_volume(&self) -> bool {
        self.global.volume.as_ref().is_some_and(|path| !path.as_os_str().is_empty())
    }

    /// A job's name on the volume: that of a configured job with `per_node` is this node's own.
    fn stored(&self, job: &Name) -> Result<Name> {
        let config = match self.config() {
            Err(_) if self.has_typed_volume() => return Ok(job.clone()),
            config => config?,
        };
        // What is wrong with a job is said by who runs it.
        let open = Chosen { is_open: true, ..Chosen::default() };
        let Ok(configured) = Job::resolve(config, job, &open) else { return Ok(job.clone()) };
        match &configured.text.node {
            Some(node) => configured.stored_name(node.as_str()),
            None => configured.stored_name(&self.node(None)?),
        }
    }

    /// The volume as a reader wants it: records it has seen before are not fetched again.
    fn volume(&self) -> Result<Volume> {
        open(&self.target(None)?)
    }

    /// The same, of a snapshot's job.
    fn volume_of(&self, job: &Name) -> Result<Volume> {
        open(&self.target(Some(Named::Job(job)))?)
    }

    /// The volume with nothing remembered of it: what is checked, added to or deleted from is what lies there.
    fn volume_itself(&self) -> Result<Volume> {
        open(&itself(self.target(None)?))
    }

    /// The same, of a snapshot's job.
    fn volume_itself_of(&self, job: &Name) -> Result<Volume> {
        open(&itself(self.target(Some(Named::Job(job)))?))
    }

    /// Another volume, named in another place than --volume, to be added to.
    fn other(&self, place: &Path) -> Result<Volume> {
        open(&itself(self.target(Some(Named::Place(place)))?))
    }

    fn progress(&self, verb: &'static str) -> progress::Progress<'_> {
        progress::Progress::new(self.out, self.signals, verb)
    }
}

fn itself(target: Target) -> Target {
    Target { access: Access { no_cache: true, ..target.access }, ..target }
}

/// The volume's directory, when it is one.
fn local(target: &Target) -> Result<Option<LocalStore>> {
    match &target.place {
        Place::Dir(path) => LocalStore::open(path).map(Some),
        Place::S3(_) => Ok(None),
    }
}

/// Opens a volume that is what its configuration says.
fn open(target: &Target) -> Result<Volume> {
    if let (Place::Dir(dir), Some(mount_point)) = (&target.place, &target.expected.mount_point) {
        mounted::require_of(&LocalStore::open(dir)?, mount_point)?;
    }
    let volume = crate::volume::open(&target.place, &target.access)?;
    match &target.expected.id {
        Some(id) if *id != volume.file.id => Err(Error::new(
            Kind::Volume,
            format!("{} is another volume: its id is {}, not {}", volume.shown, volume.file.id.as_str(), id.as_str()),
        )
        .with_hint("is the right medium mounted? `id` in the configuration says which volume is meant")),
        _ => Ok(volume),
    }
}
