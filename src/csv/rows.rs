//! The rows of one request as flat CSV text.

use sha2::{Digest, Sha256};

/// The rows of one request: their data cells, checked and quoted. The service columns are added when the rows are written.
///
/// `Schema::rows` creates it, `Schema::push` adds a row, `Schema::write_rows` writes the lines. It is flat, since a batch of
/// half a million rows would otherwise need as many small allocations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Runs of neighbouring data columns as CSV text, one after another, without commas between the runs.
    text: Vec<u8>,
    /// For each row the lengths of its runs in bytes, then its number of data cells.
    counts: Vec<u32>,
    runs_per_row: usize,
    /// Positions in `text` of the apostrophes in front of formulas; `None` if formulas are not guarded.
    guards: Option<Vec<usize>>,
}

/// One row.
pub(crate) struct Row<'a> {
    text: &'a [u8],
    lengths: &'a [u32],
    /// How many data cells the runs contain.
    pub(crate) cells: usize,
}

impl<'a> Row<'a> {
    pub(super) fn runs(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.text;
        self.lengths.iter().map(move |&length| {
            let (run, behind) = rest.split_at(length as usize);
            rest = behind;
            run
        })
    }
}

impl Rows {
    /// An empty list of rows with this many runs each.
    pub(super) fn new(runs_per_row: usize, is_guarded: bool) -> Self {
        Self { text: Vec::new(), counts: Vec::new(), runs_per_row, guards: is_guarded.then(Vec::new) }
    }

    /// Reserves memory for a row's runs.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.text.reserve(bytes);
    }

    /// Adds the next run of a row: `write` appends its text, and the positions of guards if formulas are guarded.
    pub(super) fn push_run(&mut self, write: impl FnOnce(&mut Vec<u8>, Option<&mut Vec<usize>>)) {
        let start = self.text.len();
        write(&mut self.text, self.guards.as_mut());
        self.counts.push(u32::try_from(self.text.len() - start).expect("a body is bounded"));
    }

    /// Ends a row after its last run.
    pub(super) fn end_row(&mut self, cells: usize) {
        self.counts.push(u32::try_from(cells).expect("a body is bounded"));
        debug_assert_eq!(self.counts.len() % (self.runs_per_row + 1), 0, "a row has all its runs");
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.counts.len() / (self.runs_per_row + 1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The rows in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let mut rest = &*self.text;
        self.counts.chunks_exact(self.runs_per_row + 1).map(move |counts| {
            let (lengths, cells) = counts.split_at(self.runs_per_row);
            let (text, behind) = rest.split_at(lengths.iter().map(|&length| length as usize).sum());
            rest = behind;
            Row { text, lengths, cells: cells[0] as usize }
        })
    }

    /// Whether formulas are guarded in these rows.
    pub(super) fn guards_formulas(&self) -> bool {
        self.guards.is_some()
    }

    /// Bytes of the encoded data cells.
    pub fn cell_bytes(&self) -> usize {
        self.text.len()
    }

    /// Bytes of memory that the rows take, bookkeeping included.
    pub fn weight_bytes(&self) -> usize {
        let guards = self.guards.as_deref().map_or(0, size_of_val);
        size_of::<Self>() + self.text.len() + size_of_val(&*self.counts) + guards
    }

    /// Fingerprint of the data as it was sent, which does not depend on whether formulas are guarded.
    pub(super) fn fingerprint(&self) -> u64 {
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
