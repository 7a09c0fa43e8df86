//! One run book a verb: the steps in order, each named; nothing here prints.

pub mod list;
pub mod snapshot;
