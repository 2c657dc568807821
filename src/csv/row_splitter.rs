//! Splits CSV text that comes in chunks into rows.

use std::io::{self, Read};

use crate::csv::scanner::Scanner;

const CHUNK_BYTES: usize = 64 << 10;

/// The longest row. A quote that is open for longer is a stray quote.
pub(crate) const ROW_BYTES_MAX: usize = 64 << 20;

/// A part of the text, with its offset.
pub(crate) enum Piece<'a> {
    /// A row with its line ending, or a blank line.
    Row(u64, &'a [u8]),
    /// Text whose first line opens a quote that is not closed. Splitting continues after that line.
    EndlessQuote(u64, &'a [u8]),
}

/// Splits the text chunk by chunk. Lines without quotes are not parsed.
pub(crate) struct RowSplitter {
    /// Offset of the next row.
    at: u64,
    /// The bytes of it so far.
    pending: Vec<u8>,
    /// How many of these the scanner has parsed.
    scanned: usize,
    scanner: Scanner,
}

impl RowSplitter {
    /// `at` is the offset of a row.
    pub(crate) fn new(at: u64) -> Self {
        Self { at, pending: Vec::new(), scanned: 0, scanner: Scanner::new() }
    }

    /// Offset of the next row.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn feed(&mut self, text: &[u8], found: &mut impl FnMut(Piece<'_>)) {
        let mut from = 0;
        for end in memchr::memchr_iter(b'\n', text).map(|at| at + 1) {
            self.line(&text[from..end], found);
            from = end;
        }
        self.pending.extend_from_slice(&text[from..]);
    }

    /// Feeds all that `input` has.
    ///
    /// # Errors
    /// The input's error.
    pub(crate) fn feed_all(&mut self, mut input: impl Read, found: &mut impl FnMut(Piece<'_>)) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = input.read(&mut chunk)?;
            if read == 0 {
                return Ok(());
            }
            self.feed(&chunk[..read], found);
        }
    }

    fn line(&mut self, line: &[u8], found: &mut impl FnMut(Piece<'_>)) {
        if self.pending.is_empty() && memchr::memchr(b'"', line).is_none() {
            return self.found(line, found);
        }
        self.pending.extend_from_slice(line);
        let whole = self.scanner.whole_bytes();
        self.scanner.feed(&self.pending[self.scanned..]);
        self.scanned = self.pending.len();
        if self.scanner.whole_bytes() > whole {
            let mut row = std::mem::take(&mut self.pending);
            self.found(&row, found);
            row.clear();
            (self.pending, self.scanned) = (row, 0);
        } else if self.pending.len() > ROW_BYTES_MAX {
            self.skip_endless_quote(found);
        }
    }

    fn found(&mut self, row: &[u8], found: &mut impl FnMut(Piece<'_>)) {
        found(Piece::Row(self.at, row));
        self.at += row.len() as u64;
    }

    fn skip_endless_quote(&mut self, found: &mut impl FnMut(Piece<'_>)) {
        let text = std::mem::take(&mut self.pending);
        found(Piece::EndlessQuote(self.at, &text));
        let line_end = memchr::memchr(b'\n', &text).map_or(text.len(), |at| at + 1);
        *self = Self::new(self.at + line_end as u64);
        self.feed(&text[line_end..], found);
    }

    /// Offset and text of what follows the last row.
    pub(crate) fn into_rest(self) -> (u64, Vec<u8>) {
        (self.at, self.pending)
    }
}

/// A row without its line ending.
pub(crate) fn without_line_end(row: &[u8]) -> &[u8] {
    let row = row.strip_suffix(b"\n").unwrap_or(row);
    row.strip_suffix(b"\r").unwrap_or(row)
}
