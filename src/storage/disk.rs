//! The file operations that storage needs, as a trait: tests replace the real files by simulated ones that lose power and
//! fail to sync.

use std::io;

/// The CSV and its side files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// The rows.
    Csv,
    /// `<csv>.journal`.
    Journal,
    /// `<csv>.keys`.
    Keys,
    /// `<csv>.torn`: quarantined bytes.
    Torn,
    /// `<csv>.rebuild-0` and `-1`: the CSV's new tail during a rebuild.
    Tail(u8),
}

/// Where an append landed, computed from the file's end after the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AppendedRange {
    /// Offset of the first byte.
    pub(crate) start: u64,
    /// Offset after the last byte. The range is longer than the write if another process appended in between.
    pub(crate) end: u64,
}

/// Access to the files by kind. Nothing is durable before `sync` returns, unless the disk is direct.
pub(crate) trait Disk {
    /// Whether the files are on a volume that several hosts share: every write is durable when it returns, and every read is
    /// of what the server has. A sync does nothing, least of all for what another host wrote. After a failed write the lock
    /// may be lost.
    fn is_direct(&self) -> bool;
    /// The CSV's inode number.
    fn csv_inode(&self) -> u64;
    /// Makes the next reads ask the server.
    fn forget_read_ahead(&self);
    fn len(&self, kind: FileKind) -> io::Result<u64>;
    /// Reads until `buffer` is full or the file ends, and returns the number of bytes read.
    fn read_at(&self, kind: FileKind, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Overwrites with the concatenation of `parts`. The CSV only on a direct disk, with bytes that it has there already.
    fn write_parts_at(&self, kind: FileKind, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Writes at the current end of the file.
    fn append(&self, kind: FileKind, bytes: &[u8]) -> io::Result<AppendedRange>;
    /// Sets the file's length.
    fn truncate(&self, kind: FileKind, len: u64) -> io::Result<()>;
    /// Allocates space for `bytes` from `offset` on without changing the file's length.
    fn reserve(&self, kind: FileKind, offset: u64, bytes: u64) -> io::Result<()>;
    fn sync(&self, kind: FileKind) -> io::Result<()>;

    /// Overwrites with a single part.
    fn write_at(&self, kind: FileKind, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_parts_at(kind, offset, &[bytes])
    }

    /// Reads `bytes` bytes from `offset`, or fewer where the file ends.
    fn read(&self, kind: FileKind, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut buffer = vec![0; bytes];
        let read = self.read_at(kind, offset, &mut buffer)?;
        buffer.truncate(read);
        Ok(buffer)
    }
}

/// Reads a range of a file as a stream.
pub(crate) struct FileRange<'a, D> {
    disk: &'a D,
    kind: FileKind,
    at: u64,
    end: u64,
}

impl<'a, D: Disk> FileRange<'a, D> {
    /// The bytes from `start` to `end`, or to the end of the file.
    pub(crate) fn new(disk: &'a D, kind: FileKind, start: u64, end: u64) -> Self {
        Self { disk, kind, at: start, end }
    }
}

impl<D: Disk> io::Read for FileRange<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.disk.read_at(self.kind, self.at, &mut buffer[..left])?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Fills `from..to` with zeros. Overwriting allocated space later needs no metadata update, which makes its sync cheaper.
pub(crate) fn write_zeros(from: u64, to: u64, write_at: impl Fn(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let zeros = vec![0; CHUNK_BYTES as usize];
    let mut at = from;
    while at < to {
        let bytes = CHUNK_BYTES.min(to - at);
        write_at(at, &zeros[..bytes as usize])?;
        at += bytes;
    }
    Ok(())
}
