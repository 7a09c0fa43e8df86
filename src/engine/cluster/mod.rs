//! What several nodes that share a job settle between them, beside the log.

pub mod keeper;
pub mod lease;
pub mod process;
