//! What a configured volume means: where it is, how it is reached, and what it must look like before anything is written.

use super::{
    credentials,
    file::Config,
    keys::VolumeText,
    meaning::check_rate,
    value::{Mount, Size},
};
use crate::{
    error::{Error, Result},
    model::{
        ids::Name,
        place::{Access, Expected, Place},
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

impl Target {
    /// The configured volume `name`; what was typed goes over it.
    pub fn configured(config: &Config, name: &Name, typed: &Access) -> Result<Self> {
        let Some(text) = config.volume(name) else {
            return Err(Config::no_such("volume", name.as_str(), config.text.volume.keys()));
        };
        let wrong = |key: &str, e: Error| config.wrong(&["volume", name.as_str(), key], e);
        let place = Place::parse(text.url.clone().into()).map_err(|e| wrong("url", e))?;
        check(text, &place).map_err(|(key, e)| wrong(key, e))?;
        let keys = text.credentials_file.as_deref().map(credentials::read).transpose();
        let keys = keys.map_err(|e| wrong("credentials_file", e))?;
        let rate = |key: &'static str, size: Option<Size>| {
            size.map(|size| check_rate(size.0, key)).transpose().map_err(|e| wrong(key, e))
        };
        let access = Access {
            endpoint: typed.endpoint.clone().or_else(|| text.endpoint.clone()),
            region: typed.region.clone().or_else(|| text.region.clone()),
            path_style: typed.path_style || text.path_style == Some(true),
            ca_file: typed.ca_file.clone().or_else(|| text.ca_file.clone()),
            no_cache: typed.no_cache || text.no_cache == Some(true),
            cache_len: typed.cache_len.or(text.cache_size.map(|size| size.0)),
            exclusive_writer: typed.exclusive_writer || text.exclusive_writer == Some(true),
            limit_upload: typed.limit_upload.or(rate("limit_upload", text.limit_upload)?),
            limit_download: typed.limit_download.or(rate("limit_download", text.limit_download)?),
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
        ("cache_size", text.cache_size.is_some()),
        ("exclusive_writer", text.exclusive_writer.is_some()),
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
