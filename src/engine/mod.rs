//! The engine: how a snapshot is written and read.

pub mod beat;
pub mod begun;
pub mod catalog;
pub mod cluster;
pub mod copy;
pub mod parallel;
pub mod read;
pub mod write;
