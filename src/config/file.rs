//! The configuration: one file and those in `conf.d` beside it, read and put together. A name stands in one of them only.

use std::{
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    document::Document,
    keys::{FileText, JobText, LogText, VolumeText},
    suggest::nearest,
};
use crate::{
    error::{Error, Kind, Result},
    model::ids::Name,
};

/// Where the configuration is when nothing else is said.
pub const DEFAULT_FILE: &str = "/etc/bk/bk.toml";
/// Longer files are none of ours, bytes.
const FILE_LEN_MAX: u64 = 4 << 20;

/// All files together.
#[derive(Debug, Default)]
pub struct Config {
    documents: Vec<Document>,
    /// What they say.
    pub text: FileText,
}

impl Config {
    /// Reads `named`, or the default file when it is there, and `conf.d/*.toml` beside it. An empty name is no configuration.
    pub fn load(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        if path.as_os_str().is_empty() {
            return Ok(Self::default());
        }
        let mut config = Self::default();
        match read_file(path) {
            Err(e) if e.kind() == Kind::Other && named.is_none() => {}
            Err(e) => return Err(e.with_kind(Kind::Usage)),
            Ok(text) => config.add(Document::new(path, text))?,
        }
        for path in beside(path)? {
            let text = read_file(&path).map_err(|e| e.with_kind(Kind::Usage))?;
            config.add(Document::new(&path, text))?;
        }
        Ok(config)
    }

    /// A configuration of one text, for what is made and shown.
    pub fn of(path: &Path, text: String) -> Result<Self> {
        let mut config = Self::default();
        config.add(Document::new(path, text))?;
        Ok(config)
    }

    fn add(&mut self, document: Document) -> Result<()> {
        let text: FileText = document.read()?;
        let twice = |keys: &[&str]| {
            let first = self.place(keys);
            Err(Error::usage(format!("{}: {} stands in {first} already", document.place(keys), keys.join("."))))
        };
        let all = &self.text;
        if text.node.is_some() && all.node.is_some() {
            return twice(&["node"]);
        }
        if text.state_dir.is_some() && all.state_dir.is_some() {
            return twice(&["state_dir"]);
        }
        if text.log.is_some() && all.log.is_some() {
            return twice(&["log"]);
        }
        let paths =
            [(&["state_dir"][..], text.state_dir.as_ref()), (&["log", "file"], text.log.as_ref().map(|log| &log.file))];
        for (keys, path) in paths {
            if let Some(path) = path.filter(|path| path.is_relative() && !path.as_os_str().is_empty()) {
                let what = format!("{}: {} is not an absolute path", document.place(keys), path.display());
                return Err(Error::usage(what));
            }
        }
        if let Some(key) = text.defaults.keys().into_iter().find(|key| all.defaults.keys().contains(key)) {
            return twice(&["defaults", key]);
        }
        if let Some(name) = text.volume.keys().find(|name| all.volume.contains_key(name)) {
            return twice(&["volume", name.as_str()]);
        }
        if let Some(name) = text.agent.keys().find(|name| all.agent.contains_key(name)) {
            return twice(&["agent", name.as_str()]);
        }
        if let Some(name) = text.job.keys().find(|name| all.job.contains_key(name)) {
            return twice(&["job", name.as_str()]);
        }
        let all = &mut self.text;
        all.node = all.node.take().or(text.node);
        all.state_dir = all.state_dir.take().or(text.state_dir);
        all.log = all.log.take().or(text.log);
        all.defaults = std::mem::take(&mut all.defaults).over(&text.defaults);
        all.volume.extend(text.volume);
        all.agent.extend(text.agent);
        all.job.extend(text.job);
        self.documents.push(document);
        Ok(())
    }

    /// Where steps are noted, of a configuration that cannot be read as a whole: what was begun must be left all the same.
    pub fn state_dir_of_broken(named: Option<&Path>) -> Option<PathBuf> {
        #[derive(serde::Deserialize)]
        struct Line {
            state_dir: PathBuf,
        }
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let files = std::iter::once(path.to_owned()).chain(beside(path).unwrap_or_default());
        files.filter_map(|path| read_file(&path).ok()).find_map(|text| {
            let lines = text.lines().filter(|line| line.trim_start().starts_with("state_dir"));
            lines.filter_map(|line| toml::from_str::<Line>(line).ok()).map(|line| line.state_dir).next()
        })
    }

    /// The files it was read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.documents.iter().map(|document| &*document.path)
    }

    /// The file in which a key stands.
    pub fn document(&self, keys: &[&str]) -> Option<&Document> {
        self.documents.iter().find(|document| document.has(keys))
    }

    /// `FILE:LINE` of a key.
    pub fn place(&self, keys: &[&str]) -> String {
        let has = |depth: usize| self.documents.iter().find(|document| document.has(&keys[..depth]));
        let found = (1..=keys.len()).rev().find_map(has).or(self.documents.first());
        found.map_or_else(|| "the configuration".to_owned(), |document| document.place(keys))
    }

    /// A key's value as it was typed.
    pub fn value(&self, keys: &[&str]) -> Option<String> {
        self.documents.iter().find(|document| document.has(keys))?.value(keys)
    }

    /// The keys of a table, in the order they stand there.
    pub fn keys_of(&self, table: &[&str]) -> Vec<String> {
        self.documents.iter().find(|document| document.has(table)).map_or_else(Vec::new, |one| one.keys(table))
    }

    /// An error of a key: its place and name go before.
    pub fn wrong(&self, keys: &[&str], error: Error) -> Error {
        error.with_kind(Kind::Usage).context(format!("{}: {}", self.place(keys), keys.join(".")))
    }

    /// A configured volume.
    pub fn volume(&self, name: &Name) -> Option<&VolumeText> {
        self.text.volume.get(name)
    }

    /// A configured job.
    pub fn job(&self, name: &Name) -> Option<&JobText> {
        self.text.job.get(name)
    }

    /// The configured job, by its name on the volume: with `per_node` that is `JOB.NODE`.
    pub fn job_of(&self, stored: &Name) -> Option<&Name> {
        let begins =
            |name: &Name| stored.as_str().strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('.'));
        let per_node = self.text.job.iter().filter(|(name, text)| text.per_node == Some(true) && begins(name));
        let of_node = || per_node.max_by_key(|(name, _)| name.as_str().len()).map(|(name, _)| name);
        self.text.job.get_key_value(stored).map(|(name, _)| name).or_else(of_node)
    }

    /// The volume of a job, by the job's name on the volume.
    pub fn volume_of(&self, stored: &Name) -> Option<&Name> {
        let job = self.job(self.job_of(stored)?)?;
        let agent = job.agent.as_ref().or(self.text.defaults.agent.as_ref()).and_then(|name| self.text.agent.get(name));
        job.volume.as_ref().or_else(|| agent?.volume.as_ref())
    }

    /// The volume when nothing says another: the one of `[defaults]`, or the only one.
    pub fn default_volume(&self) -> Option<&Name> {
        let mut names = self.text.volume.keys();
        let only = names.next().filter(|_| names.next().is_none());
        self.text.defaults.volume.as_ref().or(only)
    }

    /// Where is logged to.
    pub fn log(&self) -> Option<&LogText> {
        self.text.log.as_ref()
    }

    /// `what` has no such name: the nearest one, or all.
    pub fn no_such<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a Name> + Clone) -> Error {
        let error = Error::usage(format!("there is no {what} `{name}` in the configuration"));
        match nearest(name, known.clone().map(Name::as_str)) {
            Some(near) => error.with_hint(format!("did you mean `{near}`?")),
            None => {
                let all: Vec<&str> = known.map(Name::as_str).collect();
                let none = format!("no {what} is configured");
                error.with_hint(if all.is_empty() { none } else { format!("there are {}", all.join(", ")) })
            }
        }
    }
}

/// The files of `conf.d`, by name.
fn beside(file: &Path) -> Result<Vec<PathBuf>> {
    let dir = file.parent().unwrap_or(Path::new("")).join("conf.d");
    let failed = |e| Error::io(format!("cannot read {}", dir.display()), e).with_kind(Kind::Usage);
    let entries = match std::fs::read_dir(&dir) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(failed)?,
    };
    trusted(&dir.metadata().map_err(failed)?, &dir)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ext| ext == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a file that only its owner can have written: what stands in it is run.
fn read_file(path: &Path) -> Result<String> {
    let failed = |e: std::io::Error| {
        let is_missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io(format!("cannot read {}", path.display()), e);
        error.with_kind(if is_missing { Kind::Other } else { Kind::Usage })
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    trusted(&meta, path)?;
    let mut text = String::new();
    file.take(FILE_LEN_MAX + 1).read_to_string(&mut text).map_err(|e| failed(e).with_kind(Kind::Usage))?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(Error::usage(format!("{} is longer than 4 MiB", path.display())));
    }
    Ok(text)
}

/// Owned by root or by who runs bk, and written by nobody else.
pub fn trusted(meta: &std::fs::Metadata, path: &Path) -> Result<()> {
    let (me, shown) = (rustix::process::geteuid().as_raw(), path.display());
    if meta.uid() != 0 && meta.uid() != me {
        return Err(Error::usage(format!("{shown} belongs to user {}, neither root nor who runs bk", meta.uid()))
            .with_hint(format!("chown root {shown}")));
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Error::usage(format!(
            "{shown} can be written by others (mode {mode:04o}): what stands in it is run"
        ))
        .with_hint(format!("chmod go-w {shown}")));
    }
    Ok(())
}
