//! One run book a verb: the steps in order, each named; nothing here prints.

pub mod cat;
pub mod copy;
pub mod diff;
pub mod drill;
pub mod expire;
pub mod export;
pub mod health;
pub mod keep;
pub mod lease;
pub mod list;
pub mod ls;
pub mod mount;
pub mod orphans;
pub mod recover;
pub mod restore;
pub mod run;
pub mod runbook;
pub mod snapshot;
pub mod status;
pub mod tune;
pub mod verify;
