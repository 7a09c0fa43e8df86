//! A volume that keeps nothing: what would be written is counted by who writes it. For measuring all that goes before.

use super::{Created, Item, Store, Upload};
use crate::error::{Error, Result};

/// Takes everything and keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Upload for Discard {
    fn write(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn nothing<T>(key: &str) -> Result<T> {
    Err(Error::integrity(format!("{key} is missing")))
}

impl Store for Discard {
    fn create(&self, _: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Self))
    }

    fn put_new(&self, _: &str, _: &[u8]) -> Result<Created> {
        Ok(Created::New)
    }

    fn read_at(&self, key: &str, _: u64, _: &mut [u8]) -> Result<()> {
        nothing(key)
    }

    fn read(&self, key: &str, _: u64) -> Result<Vec<u8>> {
        nothing(key)
    }

    fn head(&self, _: &str) -> Result<Option<u64>> {
        Ok(None)
    }

    fn list(&self, _: &str) -> Result<Vec<Item>> {
        Ok(Vec::new())
    }

    fn delete(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn scratch(&self) -> Result<std::fs::File> {
        super::memory::file()
    }

    fn check_writable(&self) -> Result<()> {
        Ok(())
    }
}
