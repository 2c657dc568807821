//! Parts of the CSV that a reader has found, read while other processes write.

use std::{io, sync::Arc};

use crate::storage::{
    disk::{Disk, FileKind},
    files::Files,
    journal::{Header, Layout},
};

/// Reads rows whose place is known, as long as no rebuild moves them.
#[derive(Debug, Clone)]
pub struct FileParts {
    files: Arc<Files>,
    /// No rebuild moves a row before this offset.
    settled: u64,
    /// `Header::rebuilds` when the rows were found.
    rebuilds: u64,
}

impl FileParts {
    pub(super) fn new(files: &Arc<Files>, settled: u64, rebuilds: u64) -> Self {
        Self { files: Arc::clone(files), settled, rebuilds }
    }

    /// Reads a part of the CSV, or less at its end.
    ///
    /// # Errors
    /// The system's error, or that a rebuild may have moved the rows since they were found.
    pub fn read(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let text = self.files.read(FileKind::Csv, offset, bytes)?;
        // guard: moved_rows: no row is served in parts because a rebuild moved it
        if offset + bytes > self.settled && Header::tells_of_moved_rows(&self.files, Layout::REAL, self.rebuilds)? {
            return Err(io::Error::other("the end of the file was rebuilt meanwhile; read it again"));
        }
        Ok(text)
    }
}

/// The file up to its verified end at one moment: whole rows, which do not change any more.
#[derive(Debug, Clone)]
pub struct Snapshot {
    parts: FileParts,
    bytes: u64,
    tag: String,
}

impl Snapshot {
    pub(super) fn new(parts: FileParts, bytes: u64, tag: String) -> Self {
        Self { parts, bytes, tag }
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Differs from the tags of other snapshots; letters, digits and a dash.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Reads a part of it, or less at its end.
    ///
    /// # Errors
    /// As `FileParts::read`.
    pub fn read(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        self.parts.read(offset, bytes.min(self.bytes.saturating_sub(offset)))
    }
}
