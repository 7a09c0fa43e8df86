//! Configuration in two layers: what was typed ([`typed`]) and what it means ([`meaning`]). Steps and gates have both in one file.

pub mod gate;
pub mod meaning;
pub mod step;
pub mod typed;
