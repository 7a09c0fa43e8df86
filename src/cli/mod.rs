//! The command line: one file a verb, and the only floor that prints.

mod browse;
mod check;
mod copy;
mod exit;
mod expire;
mod health;
mod lease;
mod list;
mod mount;
mod output;
mod progress;
mod restore;
mod shell;
mod signals;
mod snapshot;
mod status;
mod volume;

use std::{path::Path, process::ExitCode};

use clap::Parser;

use crate::{
    config::{
        meaning,
        typed::{Cli, Command, Global},
    },
    error::{Kind, Result},
    model::place::{Access, Place},
    plan::health::Status,
    volume::{Volume, local::LocalStore},
};
use output::Output;

/// Runs bk with the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return output::usage(&e),
    };
    let out = Output::new(cli.global.json, cli.global.quiet);
    let result = signals::watch().and_then(|signals| run(&cli, &out, &signals));
    exit::code(&out, result)
}

/// How a verb ended when it did not fail.
enum Ended {
    Done,
    /// Done, but not all of it: exit 3.
    Incomplete,
    /// Faults were found in what is stored: exit 8.
    Faults,
    /// Done, but what was to be done after it failed, and that was said: the exit code of this.
    But(Kind),
    /// What a monitoring system is told, in its own codes.
    Health(Status),
}

fn run(cli: &Cli, out: &Output, signals: &signals::Signals) -> Result<Ended> {
    let context = Context { global: &cli.global, out, signals };
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
        Command::Verify(args) => check::run(&context, args),
        Command::Expire(args) => expire::run(&context, args),
        Command::Hold(args) => expire::hold(&context, args),
        Command::Release(args) => expire::release(&context, args),
        Command::Why(args) => expire::why(&context, args),
        Command::Status(args) => status::run(&context, args),
        Command::Abort(args) => status::abort(&context, args),
        Command::Check(args) => health::run(&context, args),
        Command::Copy(args) => copy::run(&context, args),
        Command::Lease(command) => lease::run(&context, command),
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
}

impl Context<'_> {
    /// The volume as a reader wants it: records it has seen before are not fetched again.
    fn volume(&self) -> Result<Volume> {
        self.volume_at(&meaning::volume(self.global)?)
    }

    fn volume_at(&self, place: &Place) -> Result<Volume> {
        crate::volume::open(place, &meaning::access(self.global))
    }

    /// The volume with nothing remembered of it: what is checked, added to or deleted from is what lies there.
    fn volume_itself(&self) -> Result<Volume> {
        let access = Access { no_cache: true, ..meaning::access(self.global) };
        crate::volume::open(&meaning::volume(self.global)?, &access)
    }

    /// Another volume, to be added to.
    fn other(&self, place: &Path) -> Result<Volume> {
        let access = Access { no_cache: true, ..meaning::access(self.global) };
        crate::volume::open(&Place::parse(place.to_owned())?, &access)
    }

    /// The volume's directory, when it is one.
    fn local(&self) -> Result<Option<LocalStore>> {
        match meaning::volume(self.global)? {
            Place::Dir(path) => LocalStore::open(&path).map(Some),
            Place::S3(_) => Ok(None),
        }
    }

    fn progress(&self, verb: &'static str) -> progress::Progress<'_> {
        progress::Progress::new(self.out, self.signals, verb)
    }
}
