//! Bytes to values and back, pure: nothing here reads or writes a file. Each file is a section of `docs/format.md`.

pub mod change;
pub mod codec;
pub mod delta;
pub mod drill;
pub mod envelope;
pub mod index;
pub mod layout;
pub mod lease;
pub mod notes;
pub mod record;
pub mod restore_txt;
pub mod seek_table;
pub mod tar;
pub mod varint;
pub mod volume;
