//! The rows of one request as flat CSV text.

use sha2::{Digest, Sha256};

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

    /// Whether formulas are guarded in these rows.
    pub(crate) fn guards_formulas(&self) -> bool {
        self.guards.is_some()
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
    pub(crate) fn fingerprint(&self) -> u64 {
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
