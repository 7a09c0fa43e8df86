//! Sets keys of a job in its configuration file. All else in the file stays as it is, to the byte: comments, order, spaces.

use std::{
    io::Write,
    ops::Range,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{fs::XattrFlags, io::Errno};
use toml::de::DeTable;

use super::{document::Document, file::Config};
use crate::{
    error::{Error, Kind, Result},
    model::ids::Name,
};

/// Longest value of an extended attribute there can be, bytes.
const ATTRIBUTE_LEN_MAX: usize = 64 << 10;
const ACCESS_LIST: &str = "system.posix_acl_access";

/// Sets `values`, each a key and its value as TOML, in the table of `job`; gives the file that was written.
pub fn set(config: &Config, job: &Name, values: &[(&str, String)]) -> Result<PathBuf> {
    let keys = ["job", job.as_str()];
    let missing = || Config::no_such("job", job.as_str(), config.text.job.keys());
    let document = config.document(&keys).ok_or_else(missing)?;
    let refused = || {
        let what = format!("{}: [job.{job}] is not written as a table of its own", document.place(&keys));
        Error::usage(what).with_hint("put the lines there by hand")
    };
    let text = edited(document.text(), job, values).ok_or_else(refused)?;
    // What would be read is what was wanted, or nothing is written.
    let read = Document::new(&document.path, text.clone());
    let is_right = |(key, value): &(&str, String)| read.value(&["job", job.as_str(), key]).as_deref() == Some(value);
    if !values.iter().all(is_right) {
        return Err(refused());
    }
    Config::of(&document.path, text.clone())?;
    replace(&document.path, document.text(), &text)?;
    Ok(document.path.clone())
}

/// The text with the values in place; none when the job has no table with a header.
fn edited(text: &str, job: &Name, values: &[(&str, String)]) -> Option<String> {
    let tree = DeTable::parse(text).ok()?.into_inner();
    let (_, jobs) = tree.get_key_value("job")?;
    let (name, table) = jobs.get_ref().as_table()?.get_key_value(job.as_str())?;
    let table = table.get_ref().as_table()?;
    let mut changes: Vec<(Range<usize>, String)> = Vec::new();
    let mut new = String::new();
    for (key, value) in values {
        match table.get(*key) {
            Some(old) => changes.push((old.span(), value.clone())),
            None => new += &format!("{key} = {value}\n"),
        }
    }
    if !new.is_empty() {
        let at = after_header(text, name.span().start, job)?;
        if at > 0 && !text[..at].ends_with('\n') {
            new.insert(0, '\n');
        }
        changes.push((at..at, new));
    }
    changes.sort_by_key(|(span, _)| span.start);
    let mut text = text.to_owned();
    for (span, value) in changes.into_iter().rev() {
        text.replace_range(span, &value);
    }
    Some(text)
}

/// Where the line after `[job.NAME]` begins, `at` being in that line.
fn after_header(text: &str, at: usize, job: &Name) -> Option<usize> {
    let begin = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let end = text[at..].find('\n').map_or(text.len(), |end| at + end + 1);
    let header: String =
        text[begin..end].split('#').next()?.chars().filter(|c| !c.is_whitespace() && *c != '"').collect();
    (header == format!("[job.{job}]")).then_some(end)
}

/// Puts `text` in the place of the file at once: whoever reads it meets the old one or the new one.
fn replace(path: &Path, before: &str, text: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(format!("cannot write {}", path.display()), e).with_kind(Kind::Usage);
    let path = path.canonicalize().map_err(failed)?;
    if std::fs::read_to_string(&path).map_err(failed)? != before {
        return Err(Error::usage(format!("{} was changed meanwhile", path.display())).with_hint("try again"));
    }
    let meta = path.metadata().map_err(failed)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".bk-new");
    let beside = path.with_file_name(name);
    let made = (|| {
        let mut open = std::fs::OpenOptions::new();
        let mut file = open.write(true).create_new(true).mode(meta.mode() & 0o7777).open(&beside)?;
        std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
        file.set_permissions(meta.permissions())?;
        copy_attributes(&path, &file)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)
    })();
    if made.as_ref().is_err_and(|e| e.kind() != std::io::ErrorKind::AlreadyExists) {
        let _ = std::fs::remove_file(&beside);
    }
    made.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::usage(format!("{} is in the way", beside.display()))
            .with_hint("what writes there now, or was killed as it did, left it: remove it"),
        _ => failed(e),
    })?;
    let dir = std::fs::File::open(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
    dir.sync_all().map_err(failed)
}

/// Gives `file` the access control list and label of what is at `path`.
///
/// Without its list the group would have the rights that are the list's mask; with one of the directory's, others would have rights.
fn copy_attributes(path: &Path, file: &std::fs::File) -> std::io::Result<()> {
    for name in [ACCESS_LIST, "security.selinux"] {
        let mut value = vec![0; ATTRIBUTE_LEN_MAX];
        let len = match rustix::fs::getxattr(path, name, &mut value) {
            Ok(len) => len,
            Err(Errno::NODATA) if name == ACCESS_LIST => match rustix::fs::fremovexattr(file, name) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => continue,
                Err(e) => return Err(e.into()),
            },
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => continue,
            Err(e) => return Err(e.into()),
        };
        match rustix::fs::fsetxattr(file, name, &value[..len], XattrFlags::empty()) {
            // The policy gives it the label it is to have.
            Err(_) if name == "security.selinux" => {}
            done => done?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<String> {
        let values = [("compression", "\"zstd:9\"".to_owned()), ("threads", "2".to_owned())];
        edited(text, &"home".parse().unwrap(), &values)
    }

    #[test]
    fn a_list_of_the_directory_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bk.toml");
        std::fs::write(&path, "old").unwrap();
        // Version, then tag, rights and id of each: the owner, user 65534, the group, the mask, others.
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, rights, id) in
            [(1_u16, 6_u16, u32::MAX), (2, 4, 65534), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
        {
            list.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
            list.extend(id.to_le_bytes());
        }
        if let Err(e) = rustix::fs::setxattr(dir.path(), "system.posix_acl_default", &list, XattrFlags::empty()) {
            let _ = writeln!(std::io::stderr(), "SKIP a_list_of_the_directory_lets_nobody_in: {e}");
            return;
        }
        replace(&path, "old", "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        let found = rustix::fs::getxattr(&path, ACCESS_LIST, &mut vec![0; ATTRIBUTE_LEN_MAX]);
        assert_eq!(found, Err(Errno::NODATA));
    }

    #[test]
    fn all_else_stays() {
        let before = "# top\n[job.web]\nthreads = 1\n\n[job.home] # mine\npaths = [\"/home\"]\ncompression  =  \"zstd:3\" # fair\n\n[job.home.check]\n";
        let after = "# top\n[job.web]\nthreads = 1\n\n[job.home] # mine\nthreads = 2\npaths = [\"/home\"]\ncompression  =  \"zstd:9\" # fair\n\n[job.home.check]\n";
        assert_eq!(of(before).unwrap(), after);
        assert_eq!(of(after).unwrap(), after);
        assert_eq!(of("[job.home]").unwrap(), "[job.home]\ncompression = \"zstd:9\"\nthreads = 2\n");
    }

    #[test]
    fn what_has_no_table_is_not_touched() {
        for text in
            ["job.home.paths = [\"/h\"]", "[job]\nhome = { paths = [\"/h\"] }", "[job.home.check]\n", "[job.web]"]
        {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
