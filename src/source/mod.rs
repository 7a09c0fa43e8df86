//! What is read: trees of files, and streams from commands.

pub mod ahead;
pub mod command;
pub mod listing;
pub mod look;
pub mod meta;
pub mod roots;
pub mod select;
pub mod walk;
