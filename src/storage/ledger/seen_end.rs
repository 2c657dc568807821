//! The end of the rows that a process saw at its last refresh.

use std::io;

use crate::storage::disk::{Disk, FileKind};

/// How many of the last bytes are remembered.
pub(super) const SEEN_BYTES_MAX: usize = 256;

/// The last bytes before an offset. Empty at first, and when the rows may have moved.
#[derive(Debug, Default)]
pub(super) struct SeenEnd {
    offset: u64,
    bytes: Vec<u8>,
}

impl SeenEnd {
    /// Remembers the end of `rows`, which end at `offset`.
    pub(super) fn see(&mut self, rows: &[u8], offset: u64) {
        self.offset = offset;
        self.bytes.clear();
        self.bytes.extend_from_slice(&rows[rows.len().saturating_sub(SEEN_BYTES_MAX)..]);
    }

    /// Rows may have moved.
    pub(super) fn forget(&mut self) {
        self.bytes.clear();
    }

    /// Whether the CSV still has these bytes before `offset`; `None` if others were seen last.
    pub(super) fn still_stands(&self, disk: &impl Disk, offset: u64) -> io::Result<Option<bool>> {
        if self.bytes.is_empty() || self.offset != offset {
            return Ok(None);
        }
        let bytes = self.bytes.len() as u64;
        Ok(Some(disk.read(FileKind::Csv, offset - bytes, bytes)? == self.bytes))
    }
}
