//! bk: backups on clusters, restorable with stock tools.
//!
//! This is the map. A module imports only from lower floors, and two modules of one floor never import each other;
//! `tests/it/floors.rs` holds the code to it.
//!
//! | floor | modules | what |
//! |---|---|---|
//! | 8 | `main` | the process |
//! | 7 | [`cli`] | one file a verb; the only floor that prints |
//! | 6 | [`ops`] | one run book a verb |
//! | 5 | [`mount`] | snapshots as a file system: `core` without FUSE, `fuse` the adapter, `attach` |
//! | 4 | [`engine`] | `write` (tree, stream, increment, delta, framer, chunk, pipeline, part, index), `read`, `copy`, `catalog`, `cluster` (lease, gate), `beat`, `begun` |
//! | 3 | [`volume`], [`source`], [`steps`] | where objects lie (a directory, S3); what is read; a user's commands, their journal and its watcher |
//! | 2 | [`format`], [`plan`], [`config`] | bytes to values and back, pure; decisions, pure; what was typed and what it means |
//! | 1 | [`model`], [`monitor`], [`clock`] | small values; how the library reports; the time |
//! | 0 | [`error`] | one error type |
//!
//! # The life of a snapshot
//!
//! 1. `cli::snapshot` turns what was typed into a [`ops::snapshot::Request`].
//! 2. [`ops::snapshot::prepare`] checks the volume, takes the job's lease ([`engine::cluster::keeper`] renews it), and reads the log,
//!    once; [`plan::interval`] asks whether the job is due, [`plan::level`] chooses level and base.
//! 3. [`source::walk`] tells entries in order; [`engine::write::tree`] writes each one's tar header and reads its bytes behind it,
//!    straight into the frame of [`engine::write::framer`].
//!    Of an increment, [`engine::write::increment`] holds each directory against the base and [`engine::write::delta`] each long content.
//! 4. [`engine::write::pipeline`] hands full frames to workers that hash and compress them.
//! 5. [`engine::write::part`] stores them in order as parts and tells [`engine::write::index`] where everything lies.
//! 6. [`engine::catalog::commit()`] creates the record. From then on, and only from then on, the snapshot exists,
//!    until a record of [`ops::expire`] names it: objects are deleted only after that.
//!
//! # The life of a read
//!
//! 1. `cli` names a snapshot; [`engine::catalog::find`] reads its record.
//! 2. [`engine::read::chain`] opens the indexes of its chain and reads them as one; [`engine::read::index`] opens one: the tail first,
//!    then only the blocks that are needed.
//! 3. [`engine::read::frame`] fetches a frame, checks its digest and decodes it.
//! 4. [`engine::read::extract`] writes files below a target, [`engine::read::content`] gives bytes in order,
//!    [`engine::read::check`] only checks.

pub mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod error;
pub mod format;
pub mod model;
pub mod monitor;
pub mod mount;
pub mod ops;
pub mod plan;
pub mod source;
pub mod steps;
pub mod volume;
