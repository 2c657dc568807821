//! What storage asks of a file system, so that its tests can put one in place that kills, loses power and fails to sync.

use std::io;

/// The files that belong together: the CSV and what lies beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The rows.
    Csv,
    /// `<csv>.journal`.
    Journal,
    /// `<csv>.keys`.
    Keys,
    /// `<csv>.torn`: what was cut away.
    Torn,
    /// `<csv>.rebuild-0` and `-1`: the CSV's new tail, while it is being rebuilt.
    Tail(u8),
}

/// Where an append landed, as the file's end told afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Landed {
    /// Offset of the first byte.
    pub(crate) start: u64,
    /// Offset after the last byte; further away than the bytes are long if somebody wrote in between.
    pub(crate) end: u64,
}

/// Files by place. Nothing is durable before `sync` has returned.
pub(crate) trait Disk {
    fn len(&self, place: Place) -> io::Result<u64>;
    /// Reads until `buffer` is full or the file ends, and says how far that was.
    fn read_at(&self, place: Place, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Overwrites, with one part behind another. Not for the CSV, where others append meanwhile.
    fn write_parts_at(&self, place: Place, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Writes at the end, wherever that is by then.
    fn append(&self, place: Place, bytes: &[u8]) -> io::Result<Landed>;
    /// Makes the file this long.
    fn cut(&self, place: Place, len: u64) -> io::Result<()>;
    /// Makes sure of room for `bytes` from `offset` on, without changing the file's length.
    fn reserve(&self, place: Place, offset: u64, bytes: u64) -> io::Result<()>;
    fn sync(&self, place: Place) -> io::Result<()>;

    /// Overwrites with a single part.
    fn write_at(&self, place: Place, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_parts_at(place, offset, &[bytes])
    }

    /// Reads this many bytes from `offset`, or fewer where the file ends.
    fn read(&self, place: Place, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut buffer = vec![0; bytes];
        let read = self.read_at(place, offset, &mut buffer)?;
        buffer.truncate(read);
        Ok(buffer)
    }
}

/// Reads a stretch of a file as a stream.
pub(crate) struct Stretch<'a, D> {
    disk: &'a D,
    place: Place,
    at: u64,
    end: u64,
}

impl<'a, D: Disk> Stretch<'a, D> {
    /// The bytes from `start` to `end`, or to the file's end.
    pub(crate) fn new(disk: &'a D, place: Place, start: u64, end: u64) -> Self {
        Self { disk, place, at: start, end }
    }
}

impl<D: Disk> io::Read for Stretch<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.disk.read_at(self.place, self.at, &mut buffer[..left])?;
        self.at += read as u64;
        Ok(read)
    }
}
