//! Credentials in a file, as Amazon's own tools keep them: `AWS_SHARED_CREDENTIALS_FILE` names it, `AWS_PROFILE` a section.
//!
//! The file must be the user's or root's, and no one else may read or write it. Credentials in the environment come first.

use std::{io::Read, os::unix::fs::MetadataExt, path::PathBuf};

use crate::error::{Error, Result};

/// Longer files are none of this kind.
const LEN_MAX: u64 = 1 << 20;

/// What signs requests.
#[derive(PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Secrets {
    pub id: String,
    pub key: String,
    pub token: Option<String>,
}

fn set(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Those of the file the environment names, when it has none itself.
pub(super) fn from_file() -> Result<Option<Secrets>> {
    let path = match set("AWS_SHARED_CREDENTIALS_FILE") {
        Some(path) if set("AWS_ACCESS_KEY_ID").is_none() => PathBuf::from(path),
        _ => return Ok(None),
    };
    let shown = path.display();
    let failed =
        |e| Error::io(format!("cannot read the credentials in {shown}"), e).with_kind(crate::error::Kind::Usage);
    let file = std::fs::File::open(&path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if meta.mode() & 0o077 != 0 || ![0, own].contains(&meta.uid()) {
        let what = format!("others can read or write the credentials in {shown} (mode {:04o})", meta.mode() & 0o7777);
        return Err(Error::usage(what).with_hint(format!("chmod 600 {shown}")));
    }
    let mut text = String::new();
    file.take(LEN_MAX).read_to_string(&mut text).map_err(failed)?;
    let profile = set("AWS_PROFILE").map_or_else(|| "default".to_owned(), |name| name.to_string_lossy().into_owned());
    match find(&text, &profile) {
        Some(secrets) => Ok(Some(secrets)),
        None => Err(Error::usage(format!("there are no credentials of profile `{profile}` in {shown}"))),
    }
}

fn find(text: &str, profile: &str) -> Option<Secrets> {
    let (mut id, mut key, mut token, mut is_own) = (None, None, None, false);
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            is_own = section.trim() == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| is_own && !line.starts_with('#')) {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => key = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(Secrets { id: id?, key: key?, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_found() {
        let text = "[other]\naws_access_key_id=A\n[default]\n# aws_access_key_id = no\naws_access_key_id = B\n\
                    aws_secret_access_key=C=D/+\nregion = x\n\n[ third ]\naws_access_key_id=E\n\
                    aws_secret_access_key=F\naws_session_token=G\n";
        let of = |profile: &str| find(text, profile).map(|secrets| (secrets.id, secrets.key, secrets.token));
        assert_eq!(of("default"), Some(("B".into(), "C=D/+".into(), None)));
        assert_eq!(of("third"), Some(("E".into(), "F".into(), Some("G".into()))));
        assert_eq!(of("other"), None);
        assert_eq!(of("none"), None);
    }
}
