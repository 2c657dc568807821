//! The rows of one request as flat CSV text.

use sha2::{Digest, Sha256};

use crate::csv::{
    large_buffer::grow,
    varints::{self, Varints},
};

/// The rows of one request: their data cells, checked and quoted. The service columns are added when the rows are written.
///
/// `Schema::rows` creates it, `Schema::push` adds a row, `Schema::write_rows` writes the lines. It is flat and compact: a row takes
/// hardly more memory than its cells take in the file, however short it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Runs of neighbouring data columns as CSV text, one after another, without commas between the runs.
    text: Vec<u8>,
    /// For each row the lengths of its runs in bytes, then its number of data cells unless all rows have `cells_per_row`.
    counts: Varints,
    rows: usize,
    runs_per_row: usize,
    cells_per_row: Option<usize>,
    /// The apostrophes in front of formulas; `None` if formulas are not guarded.
    guards: Option<GuardPositions>,
}

/// Positions in a text, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GuardPositions {
    /// The distance of each position from the one before.
    distances: Varints,
    last: usize,
}

impl GuardPositions {
    pub(super) fn push(&mut self, at: usize) {
        self.distances.push(at - self.last);
        self.last = at;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.distances.iter().scan(0, |at, distance| {
            *at += distance;
            Some(*at)
        })
    }
}

/// One row.
pub(crate) struct Row<'a> {
    text: &'a [u8],
    lengths: std::iter::Take<varints::Iter<'a>>,
    /// How many data cells the runs contain.
    pub(crate) cells: usize,
}

impl<'a> Row<'a> {
    pub(super) fn runs(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.text;
        self.lengths.clone().map(move |length| {
            let (run, behind) = rest.split_at(length);
            rest = behind;
            run
        })
    }
}

impl Rows {
    /// An empty list of rows with this many runs each, and this many data cells each unless it is `None`.
    pub(super) fn new(runs_per_row: usize, cells_per_row: Option<usize>, is_guarded: bool) -> Self {
        let guards = is_guarded.then(GuardPositions::default);
        Self { text: Vec::new(), counts: Varints::default(), rows: 0, runs_per_row, cells_per_row, guards }
    }

    /// Reserves memory for a row's runs.
    pub(super) fn reserve(&mut self, bytes: usize) {
        grow(&mut self.text, bytes);
    }

    /// Adds the next run of a row: `write` appends its text, and the positions of guards if formulas are guarded.
    pub(super) fn push_run(&mut self, write: impl FnOnce(&mut Vec<u8>, Option<&mut GuardPositions>)) {
        let start = self.text.len();
        write(&mut self.text, self.guards.as_mut());
        self.counts.push(self.text.len() - start);
    }

    /// Ends a row after its last run.
    pub(super) fn end_row(&mut self, cells: usize) {
        self.rows += 1;
        match self.cells_per_row {
            Some(expected) => assert_eq!(cells, expected, "a row has all data cells"),
            None => self.counts.push(cells),
        }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        let (mut rest, mut counts) = (&*self.text, self.counts.iter());
        (0..self.rows).map(move |_| {
            let lengths = counts.clone().take(self.runs_per_row);
            let bytes = counts.by_ref().take(self.runs_per_row).sum();
            let cells = self.cells_per_row.or_else(|| counts.next()).expect("a row has a number of cells");
            let (text, behind) = rest.split_at(bytes);
            rest = behind;
            Row { text, lengths, cells }
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
        let guards = self.guards.as_ref().map_or(0, |guards| guards.distances.bytes());
        size_of::<Self>() + self.text.len() + self.counts.bytes() + guards
    }

    /// Fingerprint of the data as it was sent, which does not depend on whether formulas are guarded.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut cells = Sha256::new();
        let mut guards = self.guards.iter().flat_map(GuardPositions::iter).peekable();
        let mut start = 0;
        for row in self.iter() {
            cells.update((row.cells as u64).to_le_bytes());
            for run in row.runs() {
                let end = start + run.len();
                let here: Vec<_> = std::iter::from_fn(|| guards.next_if(|&at| at < end)).collect();
                cells.update(((run.len() - here.len()) as u64).to_le_bytes());
                for guard in here {
                    cells.update(&self.text[start..guard]);
                    start = guard + 1;
                }
                cells.update(&self.text[start..end]);
                start = end;
            }
        }
        u64::from_le_bytes(cells.finalize()[..8].try_into().expect("8 bytes"))
    }
}
