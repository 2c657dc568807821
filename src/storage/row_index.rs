//! An index of row offsets. Quoted cells may contain line breaks, so only reading from the start tells where rows begin.

use std::{fmt, io, mem};

use crate::{
    csv::row_splitter::{Piece, RowSplitter, without_line_end},
    storage::{
        disk::{Disk, FileKind, FileRange},
        format::Format,
    },
};

/// The index has an entry about every so many bytes: a search reads no more than that.
const STEP_BYTES: u64 = 64 << 10;

/// A row that begins at `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub(super) offset: u64,
    /// How many rows come before it.
    pub(super) rows_before: u64,
}

/// Where rows begin, about every 64 KiB.
pub(super) struct RowIndex {
    entries: Vec<IndexEntry>,
    splitter: RowSplitter,
    /// Rows so far, without the header.
    rows: u64,
    /// The next record is the header.
    header_is_due: bool,
}

impl RowIndex {
    pub(super) fn new(format: &Format) -> Self {
        let splitter = RowSplitter::new(format.start);
        Self { entries: Vec::new(), splitter, rows: 0, header_is_due: format.schema.width().is_some() }
    }

    /// Rows so far, without the header.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Offset after the last indexed row.
    pub(super) fn end(&self) -> u64 {
        self.splitter.at()
    }

    /// Offset of the first row.
    pub(super) fn first_row(&self) -> u64 {
        self.entries.first().map_or(self.splitter.at(), |entry| entry.offset)
    }

    /// Reads on to `end`, where a row ends.
    pub(super) fn extend(&mut self, disk: &impl Disk, end: u64) -> io::Result<()> {
        let Self { entries, splitter, rows, header_is_due } = self;
        let input = FileRange::new(disk, FileKind::Csv, splitter.at(), end);
        splitter.feed_all(input, &mut |piece| {
            let Piece::Row(offset, row) = piece else { return };
            if mem::take(header_is_due) || without_line_end(row).is_empty() {
                return;
            }
            if entries.last().is_none_or(|entry: &IndexEntry| offset - entry.offset >= STEP_BYTES) {
                entries.push(IndexEntry { offset, rows_before: *rows });
            }
            *rows += 1;
        })
    }

    /// Forgets the rows from `offset` on.
    pub(super) fn forget_from(&mut self, offset: u64, format: &Format) {
        let kept = self.entries.partition_point(|entry| entry.offset <= offset);
        // `extend` reads on from the last kept entry and adds it again.
        let Some(&last) = self.entries[..kept].last() else {
            *self = Self::new(format);
            return;
        };
        self.entries.truncate(kept - 1);
        (self.splitter, self.rows) = (RowSplitter::new(last.offset), last.rows_before);
    }

    /// The last entry at or before `offset`.
    pub(super) fn entry_before(&self, offset: u64) -> IndexEntry {
        let at = self.entries.partition_point(|entry| entry.offset <= offset);
        self.last_of_first(at)
    }

    /// The last entry at or before the row of this number, counted from 0.
    pub(super) fn entry_at_row(&self, row: u64) -> IndexEntry {
        let at = self.entries.partition_point(|entry| entry.rows_before <= row);
        self.last_of_first(at)
    }

    fn last_of_first(&self, at: usize) -> IndexEntry {
        let none = IndexEntry { offset: self.splitter.at(), rows_before: 0 };
        at.checked_sub(1).and_then(|at| self.entries.get(at)).copied().unwrap_or(none)
    }
}

impl fmt::Debug for RowIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowIndex({} rows)", self.rows)
    }
}
