//! Rowlock: many replicas, one CSV, every acknowledged row exactly once.
//!
//! The way of a row, one room a step, and arrows only go down:
//!
//! ```text
//! main -> cli -> server -> http -> commit -> { lock, storage } -> { record, schema, config }
//! ```
//!
//! ARCHITECTURE.md says what each room promises and where that is kept.

pub mod cli;
pub mod client;
pub mod commit;
pub mod config;
#[cfg(test)]
mod corpus;
mod formula;
pub mod http;
pub mod load;
pub mod lock;
pub mod metrics;
mod points;
mod quoting;
pub mod random;
pub mod record;
pub mod schema;
pub mod server;
pub mod storage;
