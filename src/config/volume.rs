//! What a configured volume means: where it is, how it is reached, and what it must look like before anything is written.

use std::{io::Read, os::unix::fs::MetadataExt, path::Path};

use super::{file::Config, keys::VolumeText, value::Mount};
use crate::{
    error::{Error, Result},
    model::{
        ids::Name,
        place::{Access, Expected, Keys, Place},
    },
};

/// A volume as it was configured, or typed.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it is.
    pub place: Place,
    /// How it is reached.
    pub access: Access,
    /// What it must look like.
    pub expected: Expected,
}

/// Longer files hold no keys, bytes.
const KEYS_LEN_MAX: u64 = 64 << 10;

impl Target {
    /// The configured volume `name`; what was typed goes over it.
    pub fn configured(config: &Config, name: &Name, typed: &Access) -> Result<Self> {
        let Some(text) = config.volume(name) else {
            return Err(Config::no_such("volume", name.as_str(), config.text.volume.keys()));
        };
        let wrong = |key: &str, e: Error| config.wrong(&["volume", name.as_str(), key], e);
        let place = Place::parse(text.url.clone().into()).map_err(|e| wrong("url", e))?;
        check(text, &place).map_err(|(key, e)| wrong(key, e))?;
        let keys = text.credentials_file.as_deref().map(read_keys).transpose();
        let keys = keys.map_err(|e| wrong("credentials_file", e))?;
        let access = Access {
            endpoint: typed.endpoint.clone().or_else(|| text.endpoint.clone()),
            region: typed.region.clone().or_else(|| text.region.clone()),
            path_style: typed.path_style || text.path_style == Some(true),
            ca_file: typed.ca_file.clone().or_else(|| text.ca_file.clone()),
            no_cache: typed.no_cache || text.no_cache == Some(true),
            in_flight: text.in_flight.map(|size| size.0),
            keys,
            ..typed.clone()
        };
        let mount_point = match (&text.require_mount, &place) {
            (Some(Mount::Path(path)), _) => Some(path.clone()),
            (Some(Mount::Itself(true)), Place::Dir(dir)) => Some(dir.clone()),
            _ => None,
        };
        let expected = Expected { id: text.id.clone(), mount_point, min_free: text.min_free.map(|size| size.0) };
        Ok(Self { place, access, expected })
    }

    /// A volume that was typed: nothing is expected of it.
    pub fn typed(place: Place, access: Access) -> Self {
        Self { place, access, expected: Expected::default() }
    }
}

/// Keys that are for the other kind of volume.
fn check(text: &VolumeText, place: &Place) -> Result<(), (&'static str, Error)> {
    let of_s3 = [
        ("endpoint", text.endpoint.is_some()),
        ("region", text.region.is_some()),
        ("path_style", text.path_style.is_some()),
        ("ca_file", text.ca_file.is_some()),
        ("credentials_file", text.credentials_file.is_some()),
        ("in_flight", text.in_flight.is_some()),
        ("no_cache", text.no_cache.is_some()),
    ];
    match place {
        Place::Dir(dir) if !dir.is_absolute() => {
            let error = Error::usage(format!("{} is not an absolute path", dir.display()));
            Err(("url", error.with_hint("a directory, file:///DIR or s3://BUCKET/PREFIX")))
        }
        Place::Dir(_) => match of_s3.iter().find(|(_, is)| *is) {
            Some((key, _)) => Err((key, Error::usage("this is for volumes on S3, and the volume is a directory"))),
            None => Ok(()),
        },
        Place::S3(_) if text.require_mount.is_some() => {
            Err(("require_mount", Error::usage("this is for directories, and the volume is on S3")))
        }
        Place::S3(_) => Ok(()),
    }
}

/// The keys in a file that only its owner can read: `aws_access_key_id = …`, as in `~/.aws/credentials` or an environment file.
/// A name without a slash is a credential that systemd handed over.
fn read_keys(named: &Path) -> Result<Keys> {
    let mut path = named.to_owned();
    if named.components().count() == 1 && !named.is_absolute() {
        let dir = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty()).ok_or_else(|| {
            Error::usage(format!("there is no credential `{}`: systemd handed over none", named.display()))
                .with_hint("a file is named by its absolute path, a credential by LoadCredential= of the unit")
        })?;
        path = Path::new(&dir).join(named);
    }
    let failed = |e| Error::io(format!("cannot read {}", path.display()), e);
    let file = std::fs::File::open(&path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    super::file::trusted(&meta, &path)?;
    let mode = meta.mode() & 0o7777;
    // systemd's own copies may be readable by a group it made for them.
    let open_bits = if path == named { 0o077 } else { 0o037 };
    if mode & open_bits != 0 {
        return Err(Error::usage(format!("{} can be read by others (mode {mode:04o})", path.display()))
            .with_hint(format!("chmod 600 {}", path.display())));
    }
    let mut text = String::new();
    file.take(KEYS_LEN_MAX).read_to_string(&mut text).map_err(failed)?;
    parse_keys(&text).map_err(|e| e.context(path.display()))
}

fn parse_keys(text: &str) -> Result<Keys> {
    let (mut id, mut secret, mut token, mut sections) = (None, None, None, 0);
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with('[') {
            sections += 1;
            continue;
        }
        // A line is never shown: it may be the secret itself.
        let not = || Error::usage(format!("line {} is not `name = value`", n + 1));
        let (name, value) = line.split_once('=').ok_or_else(not)?;
        let value = value.trim().trim_matches(['"', '\'']).to_owned();
        let name = name.trim().trim_start_matches("export ").to_ascii_lowercase();
        match name.as_str() {
            "aws_access_key_id" => id = Some(value),
            "aws_secret_access_key" => secret = Some(value),
            "aws_session_token" => token = Some(value),
            _ => {}
        }
    }
    if sections > 1 {
        return Err(Error::usage("there are several sections: one file holds the keys of one volume"));
    }
    match (id, secret) {
        (Some(id), Some(secret)) => Ok(Keys { id, secret, token }),
        _ => Err(Error::usage("it names no aws_access_key_id and aws_secret_access_key")),
    }
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
            let keys = parse_keys(text).unwrap();
            assert_eq!((keys.id.as_str(), keys.secret.as_str()), ("AK", "s3cr3t"));
            assert!(!format!("{keys:?}").contains("s3cr3t"));
        }
        for bad in ["", "aws_access_key_id = x", "[a]\n[b]\naws_access_key_id=a\naws_secret_access_key=b"] {
            assert!(parse_keys(bad).is_err(), "{bad}");
        }
        let error = parse_keys("aws_access_key_id = x\ns3cr3t").unwrap_err();
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
    }
}
