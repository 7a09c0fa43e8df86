//! The write path: entries and bytes become frames, frames become parts, and an index says where everything lies.
//!
//! One thread reads and lays out frames ([`framer`], fed by [`tree`] and [`stream`]), workers hash and compress them,
//! one thread stores them in order ([`pipeline`], [`part`], [`index`]). Queues are bounded by a fixed number of buffers.
//! [`profile`] tells where their time went.
//! [`chunk`] cuts contents where they are equal to what was stored before, and names the pieces.

pub mod chunk;
pub mod delta;
pub mod framer;
pub mod increment;
pub mod index;
pub mod links;
pub mod part;
pub mod pipeline;
pub mod profile;
pub mod sorted;
pub mod stream;
pub mod tree;
