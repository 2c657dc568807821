//! Rowlock: many replicas, one CSV, every acknowledged row exactly once.
//!
//! The way of a row, one room a step, and arrows only go down:
//!
//! ```text
//! main -> cli -> server -> http -> commit -> { lock, storage } -> { record, schema, config }
//! ```
//!
//! ARCHITECTURE.md says what each room promises and where that is kept.

pub mod api;
pub mod cli;
pub mod client;
pub mod commit;
pub mod config;
pub mod csv;
mod failpoints;
pub mod fencing;
#[cfg(test)]
mod fuzz_corpus;
pub mod http;
pub mod load;
pub mod lock;
pub mod metrics;
pub mod random;
pub mod server;
pub mod simulation;
pub mod storage;
mod time;
