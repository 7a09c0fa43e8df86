//! The cluster: whether this node may act for it, and which database member a dump is taken from.

pub mod datasource;
pub mod gate;
mod http;
mod patroni;
