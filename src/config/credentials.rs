//! Keys of an S3 store in a file, as Amazon's own tools keep them, or as an environment file: the one reader of such files.
//!
//! The file belongs to root or to who runs bk, and nobody else reads or writes it. What stands in it is never shown.

use std::{
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Kind, Result},
    model::place::Keys,
};

/// Longer files hold no keys, bytes.
const LEN_MAX: u64 = 1 << 20;

/// The keys of the only section of a file. A name without a slash is a credential that systemd handed over.
pub fn read(named: &Path) -> Result<Keys> {
    if named.components().count() > 1 || named.is_absolute() {
        return keys(named, None, 0o077);
    }
    let dir = set("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        Error::usage(format!("there is no credential `{}`: systemd handed over none", named.display()))
            .with_hint("a file is named by its absolute path, a credential by LoadCredential= of the unit")
    })?;
    // systemd's own copies may be readable by a group it made for them.
    keys(&Path::new(&dir).join(named), None, 0o037)
}

/// Those of the file the environment names (`AWS_SHARED_CREDENTIALS_FILE`, a section by `AWS_PROFILE`), when it has none itself.
pub fn of_environment() -> Result<Option<Keys>> {
    let path = match set("AWS_SHARED_CREDENTIALS_FILE") {
        Some(path) if set("AWS_ACCESS_KEY_ID").is_none() => PathBuf::from(path),
        _ => return Ok(None),
    };
    let profile = set("AWS_PROFILE").map_or_else(|| "default".to_owned(), |name| name.to_string_lossy().into_owned());
    keys(&path, Some(&profile), 0o077).map(Some)
}

fn set(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn keys(path: &Path, profile: Option<&str>, open_bits: u32) -> Result<Keys> {
    let shown = path.display();
    let failed = |e| Error::io(format!("cannot read the credentials in {shown}"), e).with_kind(Kind::Usage);
    let file = std::fs::File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let mode = meta.mode() & 0o7777;
    if mode & open_bits != 0 {
        return Err(Error::usage(format!("others can read or write the credentials in {shown} (mode {mode:04o})"))
            .with_hint(format!("chmod 600 {shown}")));
    }
    super::file::trusted(&meta, path)?;
    let mut text = String::new();
    file.take(LEN_MAX).read_to_string(&mut text).map_err(failed)?;
    parse(&text, profile).map_err(|e| e.context(shown))
}

/// A section of the file, or what stands before the first one.
#[derive(Default)]
struct Section {
    name: Option<String>,
    id: Option<String>,
    secret: Option<String>,
    token: Option<String>,
}

fn parse(text: &str, profile: Option<&str>) -> Result<Keys> {
    let mut sections = vec![Section::default()];
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = Some(name.trim_end_matches(']').trim().to_owned());
            sections.push(Section { name, ..Section::default() });
            continue;
        }
        // A line is never shown: it may be the secret itself.
        let not = || Error::usage(format!("line {} is not `name = value`", n + 1));
        let (name, value) = line.split_once('=').ok_or_else(not)?;
        let value = Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty());
        let Some(section) = sections.last_mut() else { continue };
        match name.trim().trim_start_matches("export ").to_ascii_lowercase().as_str() {
            "aws_access_key_id" => section.id = value,
            "aws_secret_access_key" => section.secret = value,
            "aws_session_token" => section.token = value,
            _ => {}
        }
    }
    let none = match profile {
        Some(profile) => {
            sections.retain(|section| section.name.as_deref() == Some(profile));
            format!("there are no credentials of profile `{profile}`")
        }
        None if sections.len() > 2 => {
            return Err(Error::usage("there are several sections: one file holds the keys of one volume"));
        }
        None => "it names no aws_access_key_id and aws_secret_access_key".to_owned(),
    };
    let found = sections.into_iter().rev().find_map(|section| Some((section.id?, section.secret?, section.token)));
    let (id, secret, token) = found.ok_or_else(|| Error::usage(none))?;
    made(&id, &secret, token, ["aws_access_key_id", "aws_session_token"])
}

/// Keys as they are sent: without white space around them, and without a token that is empty.
///
/// # Errors
///
/// Id or token, which go into headers, hold what cannot stand there; `names` are theirs.
pub fn made(id: &str, secret: &str, token: Option<String>, names: [&str; 2]) -> Result<Keys> {
    let id = id.trim().to_owned();
    let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    for (name, value) in names.into_iter().zip([Some(&id), token.as_ref()]) {
        if value.is_some_and(|value| !value.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::usage(format!("{name} holds white space, control characters, or what is not ASCII")));
        }
    }
    Ok(Keys { id, secret: secret.trim().to_owned(), token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_both_usual_forms() {
        for text in [
            "[default]\naws_access_key_id = AK\naws_secret_access_key = s3cr3t\n",
            "# for bk\nAWS_ACCESS_KEY_ID=AK\nexport AWS_SECRET_ACCESS_KEY=\"s3cr3t\"\n",
        ] {
            let keys = parse(text, None).unwrap();
            assert_eq!((keys.id.as_str(), keys.secret.as_str()), ("AK", "s3cr3t"));
            assert!(!format!("{keys:?}").contains("s3cr3t"));
        }
        for bad in ["", "aws_access_key_id = x", "[a]\n[b]\naws_access_key_id=a\naws_secret_access_key=b"] {
            assert!(parse(bad, None).is_err(), "{bad}");
        }
        let error = parse("aws_access_key_id = x\ns3cr3t", None).unwrap_err();
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
    }

    #[test]
    fn a_profile_is_found() {
        let text = "[other]\naws_access_key_id=A\n[default]\n# aws_access_key_id = no\naws_access_key_id = B\n\
                    aws_secret_access_key=C=D/+\nregion = x\n\n[ third ]\naws_access_key_id=E\n\
                    aws_secret_access_key=F\naws_session_token=G\n";
        let of = |profile: &str| parse(text, Some(profile)).ok().map(|keys| (keys.id, keys.secret, keys.token));
        assert_eq!(of("default"), Some(("B".into(), "C=D/+".into(), None)));
        assert_eq!(of("third"), Some(("E".into(), "F".into(), Some("G".into()))));
        assert_eq!(of("other"), None);
        assert_eq!(of("none"), None);
    }
}
