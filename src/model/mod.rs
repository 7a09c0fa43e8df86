//! Small values every floor above shares: names, places, digests, units, times, entries, escaped text.

pub mod digest;
pub mod entry;
pub mod ids;
pub mod path;
pub mod place;
pub mod processes;
pub mod secret;
pub mod show;
pub mod span;
pub mod stop;
pub mod text;
pub mod time;
pub mod units;
