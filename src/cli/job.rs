//! What a snapshot is asked for: a configured job, or what was typed; both become a [`Request`]. What was typed goes before what
//! is configured.

use std::{collections::BTreeMap, path::PathBuf};

use super::Context;
use crate::{
    clock::{Clock, System},
    config::{
        file::Config,
        gate::{Gate, GateKind, TypedGate},
        job::{Chosen, From, Job},
        meaning::{self, Named, StoringText},
        step::Step,
        typed::SnapshotArgs,
        volume::Target,
    },
    engine::write::pipeline,
    error::{Error, Kind, Result},
    model::{ids::Name, time::Lifetime, units::parse_size},
    ops::snapshot::{Guards, Input, Request, Sanity},
    plan::{level, schedule::Schedule},
    source::{
        command::CommandLine,
        select::{Globs, Selection, parse_exclude_file},
    },
    steps,
};

/// What a snapshot is asked for.
#[derive(Clone)]
pub enum Asked {
    /// A configured job.
    Job(Box<Job>),
    /// Sources that were typed, for the job of this name.
    Typed(Name),
}

/// Whether a configured job is meant: it is named alone, or nothing but its name was typed.
pub fn asked(context: &Context<'_>, args: &SnapshotArgs) -> Result<Asked> {
    let is_bare = args.stdin.is_none() && args.run.is_empty();
    let name = match (&args.paths[..], &args.job) {
        ([path], typed) if is_bare => {
            let name = path.to_str().and_then(|text| text.parse::<Name>().ok());
            name.filter(|name| typed.as_ref().is_none_or(|typed| typed == name.as_str()))
        }
        ([], Some(typed)) if is_bare => Some(typed.parse()?),
        _ => None,
    };
    let Some(name) = name else { return meaning::job(args.job.as_ref()).map(Asked::Typed) };
    let config = context.config()?;
    if config.job(&name).is_none() && args.job.is_some() {
        return Ok(Asked::Typed(name));
    }
    let chosen =
        Chosen { is_open: gate_tells_roles(config, &name), ..chosen(args.role.as_ref(), args.agent.as_ref())? };
    Ok(Asked::Job(Box::new(Job::resolve(config, &name, &chosen)?)))
}

/// Role and agent as typed.
pub fn chosen(role: Option<&String>, agent: Option<&String>) -> Result<Chosen> {
    let name = |typed: Option<&String>| typed.filter(|text| !text.is_empty()).map(|text| text.parse()).transpose();
    Ok(Chosen { role: name(role)?, agent: name(agent)?, is_open: false })
}

/// Whether the job's gate knows more of this node than whether it may act.
fn gate_tells_roles(config: &Config, name: &Name) -> bool {
    let gate = config.job(name).and_then(|job| job.gate.as_ref());
    gate.is_some_and(|gate| !matches!(gate.kind, GateKind::Always | GateKind::Lease))
}

impl Asked {
    /// Whether the gate is yet to tell the role on which it depends.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Job(job) if job.is_open)
    }

    /// Whether there may be steps that are not known yet.
    pub fn has_steps_by_role(&self, context: &Context<'_>) -> Result<bool> {
        match self {
            Self::Job(job) if job.is_open => {
                let sets = Job::resolve_all(context.config()?, &job.name)?;
                Ok(sets.iter().any(|set| set.text.step.as_ref().is_some_and(|steps| !steps.is_empty())))
            }
            _ => Ok(false),
        }
    }

    /// What goes on around the snapshot: a gate that is always open, and no steps, where nothing is configured.
    pub fn around(&self, args: &SnapshotArgs) -> Result<Around> {
        let mut around = match self {
            Self::Typed(_) => Around::default(),
            Self::Job(job) => Around {
                gate: job.text.gate.clone().unwrap_or_default(),
                steps: job.text.step.clone().unwrap_or_default(),
                max_hold: job.text.max_hold.map(|span| span.0),
            },
        };
        let typed = TypedGate {
            datasource: args.datasource.clone().filter(|name| !name.is_empty()),
            require_replica: args.require_replica,
            require_automatic_mode: args.require_automatic_mode,
        };
        let refused = |e| Error::usage(format!("the job's gate cannot do what was typed: {e}"));
        around.gate = around.gate.with(typed).map_err(refused)?;
        let is_configured = matches!(self, Self::Job(job) if job.text.offline == Some(true));
        if !args.offline.unwrap_or(is_configured) {
            around.steps.retain(|step| !step.offline);
        } else if !self.is_open() && !around.steps.iter().any(|step| step.offline) {
            return Err(Error::usage("the job has no step that takes its datasource offline")
                .with_hint("`offline = true` marks such a step in the configuration"));
        }
        Ok(around)
    }

    /// Where numbers are written to after a run.
    pub fn metrics<'a>(&'a self, args: &'a SnapshotArgs) -> Option<&'a std::path::Path> {
        let configured = match self {
            Self::Typed(_) => None,
            Self::Job(job) => job.text.metrics.as_deref(),
        };
        args.metrics.as_deref().or(configured).filter(|path| !path.as_os_str().is_empty())
    }

    /// The same with the role that the gate told, where it depends on that.
    pub fn in_role(&self, context: &Context<'_>, args: &SnapshotArgs, told: Option<&str>) -> Result<Self> {
        match self {
            Self::Job(job) if job.is_open => {
                let told = told.map(str::to_lowercase);
                let chosen = chosen(told.as_ref(), args.agent.as_ref())?;
                Ok(Self::Job(Box::new(Job::resolve(context.config()?, &job.name, &chosen)?)))
            }
            known => Ok(known.clone()),
        }
    }

    /// Volumes it is copied to.
    pub fn copy_to(&self) -> Vec<PathBuf> {
        match self {
            Self::Typed(_) => Vec::new(),
            Self::Job(job) => job.text.copy_to.iter().flatten().map(|name| name.as_str().into()).collect(),
        }
    }

    /// Whether snapshots past their time go after it.
    pub fn expires_after(&self) -> bool {
        matches!(self, Self::Job(job) if job.text.expire_after == Some(true))
    }

    /// Its volume.
    pub fn target(&self, context: &Context<'_>, stored: &Name) -> Result<Target> {
        // A set may name a volume of its own, which the name of the job does not tell.
        if let (Self::Job(job), None) =
            (self, context.global.volume.as_ref().filter(|path| !path.as_os_str().is_empty()))
            && let Some(name) = &job.text.volume
        {
            return Target::configured(context.config()?, name, &context.access()?);
        }
        context.target(Some(Named::Job(stored)))
    }

    /// What is asked of a run.
    pub fn request(&self, context: &Context<'_>, args: &SnapshotArgs) -> Result<Request> {
        match self {
            Self::Typed(name) => {
                let sources = Sources {
                    base: args.directory.clone(),
                    paths: args.paths.clone(),
                    streams: typed_streams(name, args)?,
                    exclude_caches: false,
                    exclude_if_present: Vec::new(),
                    patterns: Vec::new(),
                    is_one_file_system: false,
                };
                let common = Common {
                    job: name.clone(),
                    node: context.node(args.node.as_ref())?,
                    storing: meaning::storing(&storing_text(args)?)?,
                    threads: meaning::threads(context.global)?,
                    level: level(args, None, None)?,
                    min_interval: meaning::min_interval(args.min_interval.as_ref())?,
                    keep: keep(args)?,
                    keep_promoted: None,
                };
                request(args, sources, common, Guards::default(), false)
            }
            Self::Job(job) => Configured { config: context.config()?, job }.request(context, args),
        }
    }
}

/// What goes on around a snapshot.
#[derive(Default)]
pub struct Around {
    pub gate: Gate,
    pub steps: Vec<Step>,
    pub max_hold: Option<std::time::Duration>,
}

struct Sources {
    base: Option<PathBuf>,
    paths: Vec<PathBuf>,
    streams: Vec<(Name, Input)>,
    patterns: Vec<String>,
    exclude_caches: bool,
    exclude_if_present: Vec<String>,
    is_one_file_system: bool,
}

struct Common {
    job: Name,
    node: String,
    storing: meaning::Storing,
    threads: usize,
    level: level::Request,
    min_interval: Option<Lifetime>,
    keep: Option<Lifetime>,
    keep_promoted: Option<Lifetime>,
}

fn request(
    args: &SnapshotArgs,
    mut sources: Sources,
    common: Common,
    guards: Guards,
    ignore_inode: bool,
) -> Result<Request> {
    let mut patterns = std::mem::take(&mut sources.patterns);
    patterns.extend(args.exclude.iter().cloned());
    for file in &args.exclude_file {
        patterns.extend(read_patterns(file)?);
    }
    sources.exclude_if_present.extend(args.exclude_if_present.iter().cloned());
    Ok(Request {
        job: common.job,
        node: common.node,
        level: Some(common.level),
        min_interval: common.min_interval,
        keep: common.keep,
        keep_promoted: common.keep_promoted,
        base: sources.base,
        sources: sources.paths,
        selection: Selection {
            exclude: Globs::new(&patterns)?,
            exclude_caches: sources.exclude_caches || args.exclude_caches,
            exclude_if_present: sources.exclude_if_present,
            one_file_system: sources.is_one_file_system || args.one_file_system,
        },
        patterns,
        streams: sources.streams,
        pipeline: pipeline::Settings {
            threads: common.threads,
            codec: common.storing.codec,
            frame_len: common.storing.frame_len,
            verify_all: args.verify_write,
        },
        part_len: common.storing.part_len,
        ignore_inode: ignore_inode || args.ignore_inode,
        guards,
        values: BTreeMap::new(),
    })
}

fn typed_streams(job: &Name, args: &SnapshotArgs) -> Result<Vec<(Name, Input)>> {
    Ok(match (&args.stdin, args.run.is_empty()) {
        (Some(name), _) => vec![(name.parse()?, Input::Stdin)],
        (None, true) => Vec::new(),
        (None, false) => {
            let name = args.stream_name.as_ref().map_or_else(|| Ok(job.clone()), |name| name.parse())?;
            let line =
                CommandLine { argv: args.run.clone(), pass_env: args.pass_env.clone(), ..CommandLine::default() };
            vec![(name, Input::Command(line))]
        }
    })
}

fn read_patterns(file: &std::path::Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Error::io(format!("cannot read {}", file.display()), e).with_kind(Kind::Usage))?;
    Ok(parse_exclude_file(&text))
}

fn storing_text(args: &SnapshotArgs) -> Result<StoringText> {
    let size = |text: &Option<String>| text.as_deref().map(parse_size).transpose();
    Ok(StoringText {
        compression: args.compression.clone(),
        frame_size: size(&args.frame_size)?,
        part_size: size(&args.part_size)?,
    })
}

fn keep(args: &SnapshotArgs) -> Result<Option<Lifetime>> {
    args.expire.as_ref().filter(|text| !text.is_empty()).map(|text| text.parse::<Lifetime>()).transpose()
}

/// The level that is wanted: as typed, or as configured, or by a schedule for this day in this node's time zone.
fn level(args: &SnapshotArgs, configured: Option<u8>, schedule: Option<Schedule>) -> Result<level::Request> {
    let typed = args.levels.as_ref().filter(|text| !text.trim().is_empty());
    let typed = typed.map(|text| text.parse::<Schedule>()).transpose()?;
    // A schedule that was typed goes before a level that is configured.
    let configured = configured.filter(|_| typed.is_none());
    let by_schedule = |schedule: Schedule| -> Result<(u8, Option<String>)> {
        let zone = jiff::tz::TimeZone::try_system().unwrap_or(jiff::tz::TimeZone::UTC);
        let now = System.now()?.0.to_zoned(zone);
        let (level, clause) = schedule.on(now.date());
        Ok((level, Some(format!("`{clause}` on {}", now.strftime("%A %Y-%m-%d, %Q")))))
    };
    let (level, because) = match (args.level.as_deref(), configured, typed.or(schedule)) {
        (None, Some(level), _) => (level, None),
        (None, None, None) => (0, None),
        (None | Some("auto"), _, Some(schedule)) => by_schedule(schedule)?,
        (Some("auto"), _, None) => {
            return Err(Error::usage("--level auto has no schedule").with_hint("--levels '0 on sun, 1 otherwise'"));
        }
        (Some(text), _, _) => match text.parse::<u8>() {
            Ok(level @ 0..=9) => (level, None),
            _ => return Err(Error::usage(format!("--level {text} is not 0 to 9 or auto"))),
        },
    };
    Ok(level::Request { level, because, no_promote: args.no_promote, strict_base: args.strict_base })
}

/// A configured job and where it stands.
pub struct Configured<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The job.
    pub job: &'a Job,
}

impl Configured<'_> {
    fn wrong(&self, key: &str) -> impl FnOnce(Error) -> Error {
        move |e| self.job.wrong(self.config, key, e)
    }

    fn request(&self, context: &Context<'_>, args: &SnapshotArgs) -> Result<Request> {
        let (job, text) = (self.job, &self.job.text);
        let node = match (args.node.as_ref().filter(|name| !name.is_empty()), &text.node) {
            (None, Some(node)) => node.to_string(),
            (typed, _) => context.node(typed)?,
        };
        let configured = self.level()?;
        let mut level = level(args, text.level, configured)?;
        level.no_promote |= text.no_promote == Some(true);
        level.strict_base |= text.strict_base == Some(true);
        let kept = |level| text.expire.as_ref().and_then(|expire| expire.of(level)).map(|keep| keep.0);
        let keep_of_level = kept(level.level);
        let typed_keep = keep(args)?;
        let threads = match context.global.threads {
            Some(_) => meaning::threads(context.global)?,
            None => meaning::thread_count(text.threads).map_err(self.wrong("threads"))?,
        };
        let common = Common {
            job: job.stored_name(&node)?,
            node,
            storing: job.storing(self.config, &storing_text(args)?)?,
            threads,
            level,
            min_interval: meaning::min_interval(args.min_interval.as_ref())?.or(text.min_interval.map(|keep| keep.0)),
            keep: typed_keep.or(keep_of_level),
            keep_promoted: typed_keep.or_else(|| kept(0)),
        };
        self.producers()?;
        let ignore_inode = text.ignore_inode == Some(true);
        let mut request = request(args, self.sources()?, common, self.guards(), ignore_inode)?;
        if let Some(directory) = &args.directory {
            request.base = Some(directory.clone());
        }
        request.pipeline.verify_all |= text.verify_write == Some(true);
        Ok(request)
    }

    fn level(&self) -> Result<Option<Schedule>> {
        let schedule = self.job.text.levels.as_ref().map(|text| text.parse::<Schedule>()).transpose();
        schedule.map_err(self.wrong("levels"))
    }

    fn sources(&self) -> Result<Sources> {
        let text = &self.job.text;
        let mut patterns = text.exclude.clone().unwrap_or_default();
        Globs::new(&patterns).map_err(self.wrong("exclude"))?;
        for file in text.exclude_file.iter().flatten() {
            let more = read_patterns(file).and_then(|more| Globs::new(&more).map(|_| more));
            patterns.extend(more.map_err(self.wrong("exclude_file"))?);
        }
        let paths = text.paths.clone().unwrap_or_default();
        let is_relative = |path: &&PathBuf| path.is_relative() && text.directory.is_none();
        if let Some(path) = paths.iter().find(is_relative) {
            let error = Error::usage(format!("{} is not an absolute path", path.display()));
            return Err(self.wrong("paths")(error.with_hint("or `directory` says what it is relative to")));
        }
        if let Some(directory) = text.directory.as_ref().filter(|directory| directory.is_relative()) {
            let error = Error::usage(format!("{} is not an absolute path", directory.display()));
            return Err(self.wrong("directory")(error));
        }
        let streams = self.job.streams.iter().map(|(name, stream)| {
            let input = match &stream.from {
                From::Device(device) => Input::Device(device.clone()),
                From::Command(argv) => Input::Command(CommandLine {
                    argv: argv.iter().map(Into::into).collect(),
                    env: stream.text.env.clone(),
                    pass_env: stream.text.pass_env.clone(),
                    user: stream.text.user.clone(),
                    timeout: stream.text.timeout.map(|span| span.0),
                }),
            };
            (name.clone(), input)
        });
        Ok(Sources {
            base: text.directory.clone(),
            paths,
            streams: streams.collect(),
            patterns,
            exclude_caches: text.exclude_caches == Some(true),
            exclude_if_present: text.exclude_if_present.clone().unwrap_or_default(),
            is_one_file_system: text.one_file_system == Some(true),
        })
    }

    /// Its trees: base directory, paths and what is left out.
    pub fn trees(&self) -> Result<(Option<PathBuf>, Vec<PathBuf>, Selection)> {
        let sources = self.sources()?;
        let selection = Selection {
            exclude: Globs::new(&sources.patterns)?,
            exclude_caches: sources.exclude_caches,
            exclude_if_present: sources.exclude_if_present,
            one_file_system: sources.is_one_file_system,
        };
        Ok((sources.base, sources.paths, selection))
    }

    fn guards(&self) -> Guards {
        let text = &self.job.text;
        let sanity = |(name, stream): &(Name, crate::config::job::Stream)| {
            let text = &stream.text;
            let sanity = Sanity {
                len_min: text.min_size.map_or(0, |size| size.0),
                drop_max: text.max_drop.map(|percent| percent.0),
                end_line: text.end_line.clone(),
                end_bytes: text.end_bytes.clone(),
            };
            (name.clone(), sanity)
        };
        Guards {
            mounts: text.require_mount.clone().unwrap_or_default(),
            files_min: text.min_files,
            streams: self.job.streams.iter().map(sanity).collect(),
            free_bytes_min: 0,
        }
    }

    /// All that is found wrong without reading a source: for `config check`.
    pub fn check(&self) -> Result<()> {
        self.level()?;
        self.sources()?;
        self.job.storing(self.config, &StoringText::default())?;
        meaning::thread_count(self.job.text.threads).map_err(self.wrong("threads"))?;
        self.programs()
    }

    /// Refuses programs that bk would not run as root.
    fn programs(&self) -> Result<()> {
        let text = &self.job.text;
        if let Some(GateKind::Command { argv, user, .. } | GateKind::Postgres { argv, user, .. }) =
            text.gate.as_ref().map(|gate| &gate.kind)
        {
            steps::check_program(argv, user.as_deref()).map_err(self.wrong("gate"))?;
        }
        steps::check_ahead(text.step.as_deref().unwrap_or_default()).map_err(self.wrong("step"))?;
        self.producers()
    }

    /// The same of the commands of its streams.
    fn producers(&self) -> Result<()> {
        self.job.streams.iter().try_for_each(|(name, stream)| match &stream.from {
            From::Device(_) => Ok(()),
            From::Command(argv) => steps::check_program(argv, stream.text.user.as_deref())
                .map_err(|e| self.wrong("stream")(e.context(format!("stream {name}")))),
        })
    }
}
