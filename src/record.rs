//! What travels through the rooms: a row on its way in, and its acknowledgement on the way out.

use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

/// A number that grows with every grant of the lock; a row carries that of the lease it was written under.
pub type FencingToken = u64;

/// A random number that one lease has and no other: it tells two leases apart that were granted the same token.
pub type LeaseId = u128;

/// One row's data cells, checked and quoted, waiting for the columns that only the holder can fill.
///
/// `Schema::record` makes it, `Schema::write_row` turns it into a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Each run of neighbouring data columns as CSV text, without its outer commas.
    pub(crate) runs: Vec<Box<[u8]>>,
    /// How many data cells the runs hold.
    pub(crate) cells: usize,
}

impl Record {
    /// The bytes of its data cells, as they will stand in the file.
    pub fn cell_bytes(&self) -> usize {
        self.runs.iter().map(|run| run.len()).sum()
    }

    /// The bytes that this row keeps in memory while it waits, bookkeeping included.
    pub fn weight_bytes(&self) -> usize {
        size_of::<Self>() + self.runs.iter().map(|run| run.len() + size_of::<Box<[u8]>>()).sum::<usize>()
    }
}

/// The longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;

/// A client's name for one request, by which a repeat of it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As it stands in a column named `key`, before quoting.
    pub text: Box<str>,
    /// The first half of its SHA-256: nobody finds a second key with the same one.
    pub hash: u128,
    /// Of the data cells that it came with.
    pub fingerprint: u64,
}

impl Key {
    /// A key that comes with these rows. `None` unless it is 1 to `KEY_BYTES_MAX` printable ASCII characters.
    pub fn new(text: &str, rows: &[Record]) -> Option<Self> {
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !printable || text.is_empty() || text.len() > KEY_BYTES_MAX {
            return None;
        }
        let mut cells = Sha256::new();
        for row in rows {
            cells.update((row.cells as u64).to_le_bytes());
            for run in &row.runs {
                cells.update((run.len() as u64).to_le_bytes());
                cells.update(run);
            }
        }
        let (hash, cells) = (Sha256::digest(text), cells.finalize());
        Some(Self {
            text: text.into(),
            hash: u128::from_le_bytes(hash[..16].try_into().expect("16 bytes")),
            fingerprint: u64::from_le_bytes(cells[..8].try_into().expect("8 bytes")),
        })
    }
}

/// Whole milliseconds, as answers and Redis have them.
pub(crate) fn ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the rows of one request ask of their turn, besides being written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Simulation {
    /// How long the lock is held before the rows are written.
    pub sleep: std::time::Duration,
    /// After the write the lock is left to expire, as if the replica had crashed.
    pub skip_release: bool,
}

impl Simulation {
    /// Whether this request wants a lock hold of its own, shared with nobody.
    pub fn wants_own_turn(&self) -> bool {
        self.skip_release || !self.sleep.is_zero()
    }
}

/// Proof that rows are durable, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = json!({"offset": 29, "bytes": 40, "token": 1, "replica": "r1", "waited_ms": 0, "held_ms": 1, "released": true}))]
pub struct Ack {
    /// Rows written; left out of the answer where it is always one.
    #[serde(skip)]
    pub rows: usize,
    /// Byte offset of the first row in the CSV.
    pub offset: u64,
    /// Bytes of the rows, line endings included.
    #[schema(minimum = 1)]
    pub bytes: u64,
    /// The fencing token that the rows were written under.
    #[schema(value_type = u64, minimum = 1)]
    pub token: FencingToken,
    /// The replica that wrote them.
    pub replica: String,
    /// Milliseconds from arrival to the grant of the lock.
    pub waited_ms: u64,
    /// Milliseconds from the grant to the moment the rows were durable; with a key, to that when the answer was recorded.
    pub held_ms: u64,
    /// False only where `skip_release` left the lock to expire.
    pub released: bool,
    /// Whether this is the answer that the request's key got before.
    #[serde(skip)]
    pub replayed: bool,
    /// How long the sync took that made them durable; zero in an answer that is repeated.
    #[serde(skip)]
    pub sync: std::time::Duration,
}
