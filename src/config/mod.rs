//! Configuration in two layers: what was typed ([`typed`]) and what it means ([`meaning`]).

pub mod meaning;
pub mod typed;
