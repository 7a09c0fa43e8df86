//! What several nodes that share a job settle between them, beside the log: whether this node may act, and which database member a
//! dump is taken from ([`gate`], [`datasource`]); which run of the job goes on ([`lease`]).

pub mod datasource;
pub mod gate;
mod http;
pub mod keeper;
pub mod lease;
mod patroni;
pub mod process;
