//! `bk tune`

use std::os::unix::fs::MetadataExt;

use super::{Context, Ended, job::Configured, progress::show_time};
use crate::{
    clock::System,
    config::{
        edit,
        job::{Chosen, Job},
        meaning::{self, Named, StoringText},
        typed::{TuneArgs, WishArg},
    },
    engine::write::pipeline,
    error::{Error, Result},
    model::{
        ids::Name,
        place::Place,
        span::Span,
        units::{parse_size, show_size},
    },
    ops::tune::{
        self, Outcome, Request, Source,
        predict::{Choice, Wish},
    },
    source::select::{Globs, Selection},
};

/// Columns and rows of the chart.
const WIDTH: usize = 60;
const HEIGHT: usize = 12;

pub fn run(context: &Context<'_>, args: &TuneArgs) -> Result<Ended> {
    let job = job(context, args)?;
    let to = args.write.as_ref().map(|name| name.parse::<Name>()).transpose()?;
    let config = context.config()?;
    if let Some(name) = to.as_ref().filter(|name| config.job(name).is_none()) {
        return Err(crate::config::file::Config::no_such("job", name.as_str(), config.text.job.keys()));
    }
    let of_job = job.as_ref().map(|job| &job.name).or(to.as_ref());
    let is_named = context.global.volume.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    let target = if is_named || of_job.is_some() || config.default_volume().is_some() {
        Some(super::itself(context.target(of_job.map(Named::Job))?))
    } else {
        None
    };
    let volume = target.as_ref().map(super::open).transpose()?;
    let dir = target.as_ref().and_then(|target| match &target.place {
        Place::Dir(path) => path.metadata().ok(),
        Place::S3(_) => None,
    });
    let wish = match args.wish {
        WishArg::Fastest => Wish::Fastest,
        WishArg::Balanced => Wish::Balanced,
        WishArg::Smallest => Wish::Smallest,
    };
    let usual = meaning::thread_count(None)?;
    let (present, source) = (present(context, job.as_ref())?, source(context, args, job.as_ref())?);
    let request = Request {
        source,
        present,
        threads_max: usual.max(present.threads),
        volume_dir: dir.map(|meta| (meta.dev(), meta.ino())),
        free_bytes_min: target.as_ref().and_then(|target| target.expected.min_free).unwrap_or(0),
        time: args.time.parse::<Span>().map_err(|e| e.context("--time"))?.0,
        check: args.check.then_some(wish),
    };
    let progress = context.progress("tune");
    let found = tune::run(volume.as_ref(), &request, &System, &progress);
    drop(progress);
    let found = found?;
    let explicit = job.as_ref().is_some_and(|job| job.text.threads.is_some());
    let values = values(found.of(wish), (explicit || present.threads != usual).then_some(()), usual);
    if context.out.is_json() {
        let settings: serde_json::Map<_, _> =
            values.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())).collect();
        #[derive(serde::Serialize)]
        struct Shown<'a> {
            #[serde(flatten)]
            found: &'a Outcome,
            settings: serde_json::Map<String, serde_json::Value>,
        }
        context.out.object("result", &Shown { found: &found, settings })?;
    } else {
        show(context, &found, args.check)?;
        let name = of_job.map_or("NAME", Name::as_str);
        context.out.line(&format!("\n# {}\n[job.{name}]", name_of(wish)))?;
        values.iter().try_for_each(|(key, value)| context.out.line(&format!("{key} = {value}")))?;
    }
    if let Some(name) = &to {
        let path = edit::set(config, name, &values)?;
        context.out.say(&format!("written to [job.{name}] in {}", path.display()));
    }
    Ok(Ended::Done)
}

/// The configured job that is meant, when its name stands alone.
fn job(context: &Context<'_>, args: &TuneArgs) -> Result<Option<Job>> {
    let [path] = &args.paths[..] else { return Ok(None) };
    let Some(name) = path.to_str().and_then(|text| text.parse::<Name>().ok()).filter(|_| !path.exists()) else {
        return Ok(None);
    };
    let config = context.config()?;
    Job::resolve(config, &name, &Chosen { role: None, agent: None, is_open: true }).map(Some)
}

/// Settings as they are now: of the job, or as they are when nothing is said.
fn present(context: &Context<'_>, job: Option<&Job>) -> Result<pipeline::Settings> {
    let storing = match job {
        Some(job) => job.storing(context.config()?, &StoringText::default())?,
        None => meaning::storing(&StoringText::default())?,
    };
    let threads = match context.global.threads {
        Some(_) => meaning::threads(context.global)?,
        None => meaning::thread_count(job.and_then(|job| job.text.threads))?,
    };
    Ok(pipeline::Settings { threads, codec: storing.codec, frame_len: storing.frame_len, verify_all: false })
}

fn source(context: &Context<'_>, args: &TuneArgs, job: Option<&Job>) -> Result<Source> {
    if args.stdin {
        return Ok(Source::Stdin(args.size.as_deref().map(parse_size).transpose()?));
    }
    let Some(job) = job else {
        let selection = Selection {
            exclude: Globs::new(&args.exclude)?,
            one_file_system: args.one_file_system,
            ..Selection::default()
        };
        return Ok(Source::Tree { base: args.directory.clone(), paths: args.paths.clone(), selection });
    };
    let (base, paths, selection) = Configured { config: context.config()?, job }.trees()?;
    if paths.is_empty() {
        let error = Error::usage(format!("job {} has no trees: a command is not run to sample it", job.name));
        return Err(error.with_hint("COMMAND | bk tune --stdin --size SIZE"));
    }
    if !job.streams.is_empty() {
        let names: Vec<&str> = job.streams.iter().map(|(name, _)| name.as_str()).collect();
        let what = format!("the streams of job {} are left out: {}", job.name, names.join(", "));
        context.out.warn(&format!("{what} (COMMAND | bk tune --stdin --size SIZE measures one)"));
    }
    Ok(Source::Tree { base, paths, selection })
}

/// The keys of a job for a choice. Threads are left to the machine where they are what it would take anyway.
fn values(choice: &Choice, says_threads: Option<()>, usual: usize) -> Vec<(&'static str, String)> {
    let mut values = vec![
        ("compression", format!("\"{}\"", choice.compression)),
        ("frame_size", format!("\"{}\"", frame(choice.frame_size))),
    ];
    if says_threads.is_some() || choice.threads != usual {
        values.push(("threads", choice.threads.to_string()));
    }
    values
}

fn frame(len: u64) -> String {
    if len >= 1 << 20 { format!("{}MiB", len >> 20) } else { format!("{}KiB", len >> 10) }
}

fn name_of(wish: Wish) -> &'static str {
    match wish {
        Wish::Fastest => "fastest",
        Wish::Balanced => "balanced",
        Wish::Smallest => "smallest",
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown with three digits")]
fn time(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.1} s") } else { show_time(seconds as u64) }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shown with three digits")]
fn rate(bytes: f64) -> String {
    format!("{}/s", show_size(bytes as u64))
}

fn show(context: &Context<'_>, found: &Outcome, is_checked: bool) -> Result<()> {
    let out = context.out;
    let source = &found.source;
    let more = if source.is_all { "" } else { " or more (the time was too short to count)" };
    out.line(&format!(
        "{} entries, {}{more}; measured on {} of it in {}",
        source.entries,
        show_size(source.content_bytes),
        show_size(found.sample_bytes),
        time(found.seconds)
    ))?;
    let volume = found.write_bytes_per_second.map_or("not named".to_owned(), rate);
    out.line(&format!(
        "reading {}, hashing {} a thread, the volume {volume}",
        rate(found.read_bytes_per_second),
        rate(found.hash_bytes_per_second)
    ))?;
    out.line("\nA full backup would take:\n")?;
    out.line("compression  frames  threads       time        speed       stored   ratio  bottleneck")?;
    for choice in &found.choices {
        out.line(&format!(
            "{:<11}  {:>6}  {:>7}  {:>9}  {:>11}  {:>11}  {:>6.2}  {}",
            choice.compression.to_string(),
            frame(choice.frame_size),
            choice.threads,
            time(choice.seconds),
            rate(choice.bytes_per_second),
            show_size(choice.stored_bytes),
            choice.ratio,
            choice.bottleneck
        ))?;
    }
    if !found.skipped.is_empty() {
        out.line(&format!("no time for: {}", found.skipped.join("; ")))?;
    }
    out.line("")?;
    chart(found).iter().try_for_each(|line| out.line(line))?;
    out.line("")?;
    if found.present.is_none() {
        out.line("now       no time to measure")?;
    }
    let rows = [
        ("now", found.present.as_ref()),
        ("fastest", Some(&found.fastest)),
        ("balanced", Some(&found.balanced)),
        ("smallest", Some(&found.smallest)),
    ];
    for (name, choice) in rows.into_iter().filter_map(|(name, choice)| Some((name, choice?))) {
        out.line(&format!(
            "{name:<9} {}, frames of {}, {} threads: {}, {} ({:.2} : 1), held up by {}",
            choice.compression,
            frame(choice.frame_size),
            choice.threads,
            time(choice.seconds),
            show_size(choice.stored_bytes),
            choice.ratio,
            choice.bottleneck
        ))?;
    }
    if is_checked && found.check.is_none() {
        out.line("\nnot checked: no time, or no room")?;
    }
    if let Some(check) = &found.check {
        out.line(&format!(
            "\nchecked   {} on {}: predicted {} and {}, measured {} and {}",
            check.compression,
            show_size(check.content_bytes),
            time(check.predicted_seconds),
            show_size(check.predicted_bytes),
            time(check.measured_seconds),
            show_size(check.measured_bytes)
        ))?;
    }
    Ok(())
}

/// Speed (upwards, by factors) against ratio (to the right), of the usual frames and all threads.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "places on a small chart"
)]
fn chart(found: &Outcome) -> Vec<String> {
    let (frame_size, threads) = (found.frame_size, found.choices.iter().map(|choice| choice.threads).max());
    let is_shown = |choice: &&Choice| choice.frame_size == frame_size && Some(choice.threads) == threads;
    let choices: Vec<&Choice> = found.choices.iter().filter(is_shown).collect();
    let range = |of: &dyn Fn(&Choice) -> f64| {
        let each = || choices.iter().map(|choice| of(choice));
        let (low, high) = (each().fold(f64::MAX, f64::min), each().fold(f64::MIN, f64::max));
        (low, (high - low).max(1e-9))
    };
    let speed = |choice: &Choice| choice.bytes_per_second.max(1.0).ln();
    let ratio = |choice: &Choice| choice.ratio;
    let ((slow, by_speed), (low, by_ratio)) = (range(&speed), range(&ratio));
    let mut grid = vec![vec![' '; WIDTH + 8]; HEIGHT];
    for choice in &choices {
        let x = ((ratio(choice) - low) / by_ratio * (WIDTH - 1) as f64).round() as usize;
        let y = HEIGHT - 1 - ((speed(choice) - slow) / by_speed * (HEIGHT - 1) as f64).round() as usize;
        let label: Vec<char> = choice.compression.to_string().chars().collect();
        // Where two meet, the later one stands beside the first.
        let row = &mut grid[y.min(HEIGHT - 1)];
        let x = (x..WIDTH + 8 - label.len().min(8)).find(|x| row[*x..*x + label.len()].iter().all(|c| *c == ' '));
        if let Some(x) = x {
            row[x..x + label.len()].copy_from_slice(&label);
        }
    }
    let (fast, far) = (rate((slow + by_speed).exp()), low + by_ratio);
    let mut lines = vec![format!("speed, up to {fast}")];
    lines.extend(grid.into_iter().map(|row| format!("| {}", row.into_iter().collect::<String>().trim_end())));
    lines.push(format!("+{:-<width$}", "", width = WIDTH + 9));
    lines.push(format!("  {:<40}{:>28}", format!("ratio {low:.2}"), format!("{far:.2}")));
    lines
}
