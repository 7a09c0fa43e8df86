//! Decisions, pure: records and a reading of the clock go in, a value that can be shown comes out. Nothing here touches
//! a volume, so that a dry run and the real one cannot differ.

pub mod commit;
pub mod expiry;
pub mod health;
pub mod interval;
pub mod lease;
pub mod level;
pub mod log;
pub mod schedule;
