//! What callers pass to storage, and what they get back.

use std::{ops::Range, path::PathBuf, sync::Arc, time::Instant};

use crate::{
    api::acknowledgement::Acknowledgement,
    csv::{idempotency_key::Key, rows::Rows},
    fencing::{FencingToken, LeaseId},
    metrics::Meter,
    storage::error::Refusal,
};

/// How to open one CSV.
#[derive(Debug, Clone)]
pub struct Options {
    /// The CSV; created if it is missing.
    pub path: PathBuf,
    /// A new file's header as a CSV record, or `none`.
    pub header: String,
    /// The replica's name, as written in rows.
    pub replica: String,
    /// The journal's size in bytes.
    pub journal_bytes: u64,
    /// How many idempotency keys are remembered.
    pub keys: usize,
    /// Whether a volume without file locks is accepted.
    pub accept_unlocked: bool,
    /// Whether an operator asked for a repair: then an edited file, and a quote that is never closed, are accepted.
    pub is_repair: bool,
    /// Counts checkpoints and recoveries.
    pub meter: Arc<Meter>,
}

/// The lease under which one call writes.
pub struct Turn<'a> {
    /// The lease's fencing token, also a cell of rows that have a token column.
    pub token: FencingToken,
    /// Tells two leases apart that were granted the same token.
    pub lease: LeaseId,
    /// When the lease was granted.
    pub granted: Instant,
    /// RFC 3339, for rows that have a timestamp column.
    pub timestamp: &'a str,
    /// How long to try for the OS lock.
    pub deadline: Instant,
    /// Called after the OS lock is taken and before the first byte is written.
    pub still_held: &'a dyn Fn() -> bool,
}

/// The rows of one request.
pub struct AppendEntry<'a> {
    /// Written all or none.
    pub rows: &'a Rows,
    /// The request's idempotency key.
    pub key: Option<&'a Key>,
    /// How many keys were recorded when the request arrived.
    pub keys_seen: u64,
    /// Milliseconds, for the answer that is remembered with the key.
    pub waited_ms: u64,
    /// For the answer that is remembered with the key.
    pub released: bool,
}

/// What happened to the rows of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryOutcome {
    /// The rows are durable.
    Written {
        /// Byte offset of the first row.
        offset: u64,
        /// Bytes, line endings included.
        bytes: u64,
        /// Milliseconds from the grant to the record, if they are remembered with a key.
        held_ms: Option<u64>,
    },
    /// The key is known: the answer to its first request.
    Replayed(Acknowledgement),
    /// Nothing was written for this request.
    Refused(Refusal),
}

/// An idempotency key that was recorded before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownKey {
    /// With the same data: the answer to its first request.
    Replayed(Acknowledgement),
    /// With other data.
    Reused,
}

impl From<KnownKey> for EntryOutcome {
    fn from(key: KnownKey) -> Self {
        match key {
            KnownKey::Replayed(ack) => Self::Replayed(ack),
            KnownKey::Reused => Self::Refused(Refusal::KeyReused),
        }
    }
}

/// What an idle refresh found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleOutcome {
    /// Nothing to do.
    Clean,
    /// A checkpoint is under way: call again soon.
    Checkpointing,
    /// The CSV needs a repair, which only a holder of the lock may make.
    NeedsRepair,
}

/// One row of the CSV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Byte offset of its start.
    pub offset: u64,
    /// Its cells; bytes that are not UTF-8 are replaced.
    pub cells: Vec<String>,
}

/// Where consecutive rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// From the first byte of each row to the end of its line ending, in the file's order.
    pub rows: Vec<Range<u64>>,
    /// Offset of the first row, or of the end of the file.
    pub start: u64,
    /// Offset of the following row, if there is one yet.
    pub next: Option<u64>,
}

/// A position between two rows, for a reader that follows the file. If a rebuild moves rows, it goes back to where none can have moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Byte offset.
    pub offset: u64,
    /// No rebuild moves a row before this offset.
    pub(super) settled: u64,
    /// `Header::rebuilds` then.
    pub(super) rebuilds: u64,
}

impl Position {
    /// Whether no rebuild began between the moments at which the two were taken.
    pub fn is_of_same_rows(self, other: Self) -> bool {
        self.rebuilds == other.rebuilds
    }
}

/// The rows after a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRows {
    /// The start of the first row.
    pub start: Position,
    /// The end of the last row.
    pub end: Position,
    /// How many rows there are.
    pub count: u64,
    /// The newest of them.
    pub rows: Vec<Row>,
}
