//! bk: backups on clusters, restorable with stock tools.
pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod error;
pub mod format;
pub mod model;
pub mod monitor;
pub mod ops;
pub mod source;
pub mod volume;
