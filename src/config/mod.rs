//! Configuration in two layers: what was typed ([`typed`] on the command line, [`keys`] in files) and what it means ([`meaning`], [`job`],
//! [`volume`]). Steps, gates and runbooks have both in one file.

pub mod credentials;
mod document;
pub mod edit;
pub mod file;
pub mod gate;
pub mod job;
pub mod keys;
pub mod meaning;
pub mod runbook;
pub mod step;
pub mod suggest;
pub mod typed;
pub mod value;
pub mod volume;
