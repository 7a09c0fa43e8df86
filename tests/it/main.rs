//! bk seen from outside: every test here runs the real binary on real trees and looks at what comes back.
//!
//! One module a behaviour. `support` holds the command runner, the tree generator and the inventory that two trees
//! are compared by. A test whose tools are missing prints `SKIP <test>: <why>` (and appends it to the file named by
//! `BK_TEST_SKIPS`), never passes silently. No test asserts a duration.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test says what is wrong by stopping there"
)]

mod ahead;
mod bits;
mod cli;
mod config;
mod copy;
mod corpus;
mod crash;
mod damage;
mod devices;
mod examples;
mod expiry;
mod expiry_time;
mod floors;
mod gates;
mod golden;
mod hanging;
mod harness;
mod history;
mod hostile;
mod increments;
mod interop;
mod kernel;
mod lease;
mod lost_records;
mod medium;
mod memory;
mod model;
mod modes;
mod monitoring;
mod mount;
mod partial;
mod patroni;
mod power;
mod profile;
mod racing;
mod recovering;
mod reference;
mod reopened;
mod roundtrip;
mod run;
mod runbook;
mod s3;
mod s3_access;
mod s3_credentials;
mod s3_faults;
mod s3_signals;
mod sources;
mod space;
mod stock;
mod streams;
mod support;
mod trouble;
mod tune;
mod units;
mod validate;
mod view;
