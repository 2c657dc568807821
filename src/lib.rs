//! Rowlock: many replicas, one CSV, every acknowledged row exactly once.
//!
//! A row passes through these modules; a module uses only those to its right:
//!
//! ```text
//! main -> cli -> server -> http -> commit -> { lock, storage } -> { api, csv, config, metrics, fencing, progress, time }
//! ```
//!
//! ARCHITECTURE.md says what each module does and where each promise is kept.

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
pub mod progress;
pub mod random;
pub mod server;
pub mod simulation;
pub mod storage;
mod time;
