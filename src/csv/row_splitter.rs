//! Cuts CSV text that arrives in chunks into rows.

use crate::csv::scanner::Scanner;

/// No row is longer: a quote that is still open then was never meant to be.
pub(crate) const ROW_BYTES_MAX: usize = 64 << 20;

/// What the text is made of, with the offset where it begins.
pub(crate) enum Piece<'a> {
    /// A row with its line ending; perhaps a blank line.
    Row(u64, &'a [u8]),
    /// A quote opens in the first of these lines and is not closed. The cut goes on behind that line.
    EndlessQuote(u64, &'a [u8]),
}

/// Follows the rows, chunk by chunk. Lines without quotes are found without parsing them.
pub(crate) struct RowSplitter {
    /// Where the row that comes next begins.
    at: u64,
    /// What was fed of it, and how much of that the parser has seen.
    pending: Vec<u8>,
    scanned: usize,
    scanner: Scanner,
}

impl RowSplitter {
    /// `at` is where a row begins.
    pub(crate) fn new(at: u64) -> Self {
        Self { at, pending: Vec::new(), scanned: 0, scanner: Scanner::new() }
    }

    /// Where the row that comes next begins.
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
            self.pass_over_endless_quote(found);
        }
    }

    fn found(&mut self, row: &[u8], found: &mut impl FnMut(Piece<'_>)) {
        found(Piece::Row(self.at, row));
        self.at += row.len() as u64;
    }

    fn pass_over_endless_quote(&mut self, found: &mut impl FnMut(Piece<'_>)) {
        let text = std::mem::take(&mut self.pending);
        found(Piece::EndlessQuote(self.at, &text));
        let line_end = memchr::memchr(b'\n', &text).map_or(text.len(), |at| at + 1);
        *self = Self::new(self.at + line_end as u64);
        self.feed(&text[line_end..], found);
    }

    /// What follows the last row.
    pub(crate) fn into_rest(self) -> (u64, Vec<u8>) {
        (self.at, self.pending)
    }
}

/// A row without its line ending.
pub(crate) fn bare(row: &[u8]) -> &[u8] {
    let bare = row.strip_suffix(b"\n").unwrap_or(row);
    bare.strip_suffix(b"\r").unwrap_or(bare)
}
