//! What travels through the rooms: a row on its way in, and its acknowledgement on the way out.

use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::formula::is_formula;

/// A number that grows with every grant of the lock; a row carries that of the lease it was written under.
pub type FencingToken = u64;

/// A random number that one lease has and no other: it tells two leases apart that were granted the same token.
pub type LeaseId = u128;

/// The rows of one request: their data cells, checked and quoted, waiting for the columns that only the holder can fill.
///
/// `Schema::rows` makes it, `Schema::push` adds a row, `Schema::write_rows` turns all of them into lines. It is flat, since
/// half a million rows would otherwise be as many small allocations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Each run of neighbouring data columns as CSV text, without its outer commas; one run behind another.
    text: Vec<u8>,
    /// For each row the lengths of its runs, and behind them how many data cells they hold.
    counts: Vec<u32>,
    runs_per_row: usize,
    /// Where in `text` an apostrophe was put in front of a formula, which is no part of the data; `None` where none is to be.
    guards: Option<Vec<usize>>,
}

/// One of them.
pub(crate) struct Row<'a> {
    text: &'a [u8],
    lengths: &'a [u32],
    /// How many data cells the runs hold.
    pub(crate) cells: usize,
}

impl<'a> Row<'a> {
    pub(crate) fn runs(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.text;
        self.lengths.iter().map(move |&length| {
            let (run, behind) = rest.split_at(length as usize);
            rest = behind;
            run
        })
    }
}

impl Rows {
    /// No rows yet, each of them to have this many runs; in which formulas are guarded, or not.
    pub(crate) fn new(runs_per_row: usize, is_guarded: bool) -> Self {
        Self { text: Vec::new(), counts: Vec::new(), runs_per_row, guards: is_guarded.then(Vec::new) }
    }

    /// Makes room for a row's runs.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.text.reserve(bytes);
    }

    /// Adds the next run of a row, which `write` appends, noting where it guards formulas if it is to.
    pub(crate) fn push_run(&mut self, write: impl FnOnce(&mut Vec<u8>, Option<&mut Vec<usize>>)) {
        let start = self.text.len();
        write(&mut self.text, self.guards.as_mut());
        self.counts.push(u32::try_from(self.text.len() - start).expect("a body is bounded"));
    }

    /// Ends a row whose runs were added.
    pub(crate) fn end_row(&mut self, cells: usize) {
        self.counts.push(u32::try_from(cells).expect("a body is bounded"));
        debug_assert_eq!(self.counts.len() % (self.runs_per_row + 1), 0, "a row has all its runs");
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.counts.len() / (self.runs_per_row + 1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// In order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let mut rest = &*self.text;
        self.counts.chunks_exact(self.runs_per_row + 1).map(move |counts| {
            let (lengths, cells) = counts.split_at(self.runs_per_row);
            let (text, behind) = rest.split_at(lengths.iter().map(|&length| length as usize).sum());
            rest = behind;
            Row { text, lengths, cells: cells[0] as usize }
        })
    }

    /// The bytes of their data cells, as they will stand in the file.
    pub fn cell_bytes(&self) -> usize {
        self.text.len()
    }

    /// The bytes that they keep in memory while they wait, bookkeeping included.
    pub fn weight_bytes(&self) -> usize {
        let guards = self.guards.as_deref().map_or(0, size_of_val);
        size_of::<Self>() + self.text.len() + size_of_val(&*self.counts) + guards
    }

    /// Of all data as it was sent: the same whether formulas are guarded or not.
    fn fingerprint(&self) -> u64 {
        let mut cells = Sha256::new();
        let (mut guards, mut start) = (self.guards.as_deref().unwrap_or_default(), 0);
        for row in self.iter() {
            cells.update((row.cells as u64).to_le_bytes());
            for run in row.runs() {
                let end = start + run.len();
                let (here, behind) = guards.split_at(guards.partition_point(|&at| at < end));
                cells.update(((run.len() - here.len()) as u64).to_le_bytes());
                for &guard in here {
                    cells.update(&self.text[start..guard]);
                    start = guard + 1;
                }
                cells.update(&self.text[start..end]);
                (guards, start) = (behind, end);
            }
        }
        u64::from_le_bytes(cells.finalize()[..8].try_into().expect("8 bytes"))
    }
}

/// The longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;

/// A client's name for one request, by which a repeat of it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As it stands in a column named `key`, before quoting. Where formulas are guarded, a key that would be one has an
    /// apostrophe in front, and so has one that has one already: two keys are never written alike.
    pub text: Box<str>,
    /// The first half of its SHA-256: nobody finds a second key with the same one.
    pub hash: u128,
    /// Of the data cells that it came with.
    pub fingerprint: u64,
}

impl Key {
    /// A key that comes with these rows. `None` unless it is 1 to `KEY_BYTES_MAX` printable ASCII characters.
    pub fn new(text: &str, rows: &Rows) -> Option<Self> {
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !printable || text.is_empty() || text.len() > KEY_BYTES_MAX {
            return None;
        }
        let hash = Sha256::digest(text);
        let is_guarded = rows.guards.is_some() && (text.starts_with('\'') || is_formula(text.as_bytes()));
        Some(Self {
            text: if is_guarded { format!("'{text}").into() } else { text.into() },
            hash: u128::from_le_bytes(hash[..16].try_into().expect("16 bytes")),
            fingerprint: rows.fingerprint(),
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
    #[schema(value_type = String)]
    pub replica: std::sync::Arc<str>,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(runs_per_row: usize, all: &[(&[&str], usize)]) -> Rows {
        let mut rows = Rows::new(runs_per_row, false);
        for (runs, cells) in all {
            runs.iter().for_each(|run| rows.push_run(|text, _| text.extend_from_slice(run.as_bytes())));
            rows.end_row(*cells);
        }
        rows
    }

    #[test]
    fn rows_come_back_as_they_were_added() {
        let rows = rows(2, &[(&["a", "b,c"], 3), (&["", "\"\","], 3)]);
        assert_eq!((rows.len(), rows.cell_bytes()), (2, 7));
        let back: Vec<_> = rows.iter().map(|row| (row.runs().collect::<Vec<_>>(), row.cells)).collect();
        assert_eq!(back, [(vec![&b"a"[..], b"b,c"], 3), (vec![b"", b"\"\","], 3)]);
    }

    #[test]
    fn a_fingerprint_is_what_it_was_in_the_versions_that_remembered_it() {
        let fingerprint = |rows: &Rows| Key::new("k-1", rows).expect("a key").fingerprint;
        let named = [(&["Oslo", "\"709,037\",x"][..], 3), (&["", "\"\",å"], 3)];
        assert_eq!(fingerprint(&rows(2, &named)), 0xec5f_538a_175d_5f31);
        assert_eq!(fingerprint(&rows(2, &named[..1])), 0x3a68_fcd3_7fbc_2397);
        assert_eq!(fingerprint(&rows(1, &[(&["a,b"], 2), (&["\"\""], 1)])), 0x5be5_7daf_b905_63a5);
    }
}
