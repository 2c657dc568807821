//! Reads more than is asked for, since each read of a network volume is a round trip.

use std::{fs::File, io, mem, os::unix::fs::FileExt, sync::Mutex};

/// The first read fetches at least this much.
const BYTES_MIN: usize = 16 << 10;
/// The most that is read ahead.
const BYTES_MAX: usize = 1 << 20;

/// The parts of a file that were read last, as they were then. What it holds is valid until `forget`.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(Mutex<Pieces>);

/// The journal's headers and its last records are apart.
#[derive(Debug, Default)]
struct Pieces {
    newest: Piece,
    older: Piece,
}

#[derive(Debug, Default)]
struct Piece {
    offset: u64,
    bytes: Vec<u8>,
}

impl ReadAhead {
    /// Drops what was read, so that the next read asks the server.
    pub(super) fn forget(&self) {
        *self.0.lock().expect("not poisoned") = Pieces::default();
    }

    /// Fills `buffer` from `offset` on, up to the end of the file, and returns the number of bytes. Does not read ahead past
    /// `len`.
    pub(super) fn read_at(&self, file: &File, offset: u64, buffer: &mut [u8], len: u64) -> io::Result<usize> {
        if buffer.len() >= BYTES_MAX {
            return read_full(file, offset, buffer);
        }
        let mut pieces = self.0.lock().expect("not poisoned");
        if pieces.older.holds(offset, buffer.len()) {
            return Ok(pieces.older.copy(offset, buffer));
        }
        if !pieces.newest.holds(offset, buffer.len()) {
            // Each read that continues the one before fetches twice as much.
            let next = if pieces.newest.is_continued_by(offset) { pieces.newest.bytes.len() * 2 } else { 0 };
            let left = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
            let bytes = buffer.len().max(next.clamp(BYTES_MIN, BYTES_MAX).min(left));
            let mut read = vec![0; bytes];
            let len = read_full(file, offset, &mut read)?;
            read.truncate(len);
            pieces.older = mem::replace(&mut pieces.newest, Piece { offset, bytes: read });
        }
        Ok(pieces.newest.copy(offset, buffer))
    }
}

impl Piece {
    fn is_continued_by(&self, offset: u64) -> bool {
        (self.offset..=self.offset + self.bytes.len() as u64).contains(&offset)
    }

    fn holds(&self, offset: u64, bytes: usize) -> bool {
        offset >= self.offset && offset + bytes as u64 <= self.offset + self.bytes.len() as u64
    }

    /// Fewer bytes than the buffer has room for are what the file has there.
    fn copy(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let from = ((offset - self.offset) as usize).min(self.bytes.len());
        let present = &self.bytes[from..];
        let len = present.len().min(buffer.len());
        buffer[..len].copy_from_slice(&present[..len]);
        len
    }
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(some) => read += some,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}
