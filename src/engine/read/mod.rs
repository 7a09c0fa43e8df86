//! The read side: an index opened, frames fetched and checked, contents, restores, checks, comparisons.

mod ahead;
pub mod chain;
pub mod check;
pub mod compare;
pub mod content;
pub mod export;
pub mod extract;
pub mod filled;
pub mod frame;
pub mod index;
pub mod metadata;
pub mod outcome;
pub mod patience;
pub mod restored;
pub mod select;
pub mod target;
pub mod worker;

#[cfg(test)]
mod tests;
