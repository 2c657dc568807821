//! A request, and what its client learns.

use crate::{
    csv::{idempotency_key::Key, rows::Rows},
    fencing::FencingToken,
};

/// The cells of each row, and the key.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) rows: Vec<Vec<String>>,
    pub(super) key: Option<usize>,
}

impl Request {
    /// The first data cell of each row, which tells it from all others.
    pub(super) fn data(&self) -> impl Iterator<Item = &String> {
        self.rows.iter().map(|cells| &cells[0])
    }
}

/// A request that a client wants to be written.
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) rows: Rows,
    pub(super) key: Option<Key>,
    /// Where it waits.
    pub(super) replica: Option<usize>,
    /// How many keys the replica knew when it arrived.
    pub(super) keys_seen: u64,
    /// What became of the last try.
    pub(super) attempt: Attempt,
}

/// What a client learns of one attempt.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attempt {
    Written {
        offset: u64,
    },
    Replayed {
        offset: u64,
    },
    Fenced {
        highest_token: FencingToken,
    },
    DiskFull,
    /// The rows do not fit.
    Refused,
    /// Too many newer keys were recorded while it waited.
    KeyMayBeForgotten,
    /// The lock on the files was lost before the rows were written.
    LockLost,
    /// The rows may be written or not.
    Unknown,
}
