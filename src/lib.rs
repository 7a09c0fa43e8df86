//! bk
pub mod engine;
pub mod error;
pub mod format;
pub mod model;
pub mod monitor;
pub mod volume;
