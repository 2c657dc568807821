//! Finds where rows end, with a CSV parser, since a quoted cell may contain line breaks.

use std::io::Read;

use csv_core::{ReadFieldResult, Reader, ReaderBuilder, Terminator};

use crate::csv::bom::keep_bom;

const CHUNK_BYTES: usize = 256 << 10;
/// The parser writes the text of cells, which nobody reads, in pieces of this size.
const CELL_BYTES: usize = 1 << 10;
/// How often the progress of a long read is logged.
const PROGRESS_BYTES: u64 = 1 << 30;

/// A last line without its line ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenLine {
    pub(crate) bytes: u64,
    pub(crate) cells: usize,
    pub(crate) in_quotes: bool,
    pub(crate) last_byte: u8,
}

/// Parses CSV text chunk by chunk. Only `\n` ends a row, so that `\r\n` is never split. The text begins behind a BOM.
///
/// Making one takes longer than parsing a line, so callers with many texts use one for all of them.
pub(crate) struct Scanner {
    reader: Reader,
    /// Bytes fed so far.
    fed: u64,
    /// How many of these are whole rows.
    whole: u64,
    /// Complete cells of the current row.
    cells: usize,
    first_width: Option<usize>,
    last_byte: u8,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        let mut reader = ReaderBuilder::new().terminator(Terminator::Any(b'\n')).build();
        keep_bom(&mut reader);
        Self { reader, fed: 0, whole: 0, cells: 0, first_width: None, last_byte: 0 }
    }

    /// Begins a new text.
    fn reset(&mut self) {
        self.reader.reset();
        keep_bom(&mut self.reader);
        (self.fed, self.whole, self.cells, self.first_width, self.last_byte) = (0, 0, 0, None, 0);
    }

    pub(super) fn feed(&mut self, mut text: &[u8]) {
        let mut cell = [0; CELL_BYTES];
        while !text.is_empty() {
            if text[0] == b'\n' && self.fed == self.whole {
                // The parser skips a blank line. Nothing is open after it.
                (self.fed, self.whole, self.last_byte) = (self.fed + 1, self.whole + 1, b'\n');
                text = &text[1..];
                continue;
            }
            let (result, read, _) = self.reader.read_field(text, &mut cell);
            self.fed += read as u64;
            if read > 0 {
                self.last_byte = text[read - 1];
            }
            text = &text[read..];
            if let ReadFieldResult::Field { record_end } = result {
                self.cells += 1;
                if record_end {
                    self.first_width.get_or_insert(self.cells);
                    (self.whole, self.cells) = (self.fed, 0);
                }
            }
        }
    }

    /// How many of the bytes fed so far are whole rows.
    pub(super) fn whole_bytes(&self) -> u64 {
        self.whole
    }

    /// What follows the last whole row. Ends the text.
    fn open_line(&mut self) -> Option<OpenLine> {
        let bytes = self.fed - self.whole;
        // Inside quotes, a line break does not end the row. (A clone of the reader would lose its state.)
        let ended = matches!(self.reader.read_field(b"\n", &mut [0; 8]).0, ReadFieldResult::Field { record_end: true });
        (bytes > 0).then_some(OpenLine { bytes, cells: self.cells + 1, in_quotes: !ended, last_byte: self.last_byte })
    }

    /// Splits a text into rows with their line endings, and what follows the last row.
    pub(crate) fn split_rows<'t>(&mut self, text: &'t [u8]) -> (Vec<&'t [u8]>, &'t [u8]) {
        self.reset();
        let (mut rows, mut from) = (Vec::new(), 0);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            self.feed(line);
            let whole = self.whole as usize;
            if whole > from {
                rows.push(&text[from..whole]);
                from = whole;
            }
        }
        (rows, &text[from..])
    }

    /// Whether a line ending would make the text a whole row: it has this many cells, and its quotes are closed.
    pub(crate) fn is_closable(&mut self, text: &[u8], width: Option<usize>) -> bool {
        self.reset();
        self.feed(text);
        self.open_line().is_some_and(|open| !open.in_quotes && width.is_none_or(|width| width == open.cells))
    }
}

/// What `scan_rows` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScannedRows {
    /// How many bytes are whole rows.
    pub(crate) whole_bytes: u64,
    /// The line after them.
    pub(crate) open: Option<OpenLine>,
    /// Whether there are NUL bytes, which no row contains: a hole that a power cut left.
    pub(crate) has_hole: bool,
}

/// Reads to the end, and logs the progress of a long read.
pub(crate) fn scan_rows(mut input: impl Read) -> std::io::Result<ScannedRows> {
    let mut scanner = Scanner::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut next_progress, mut has_hole) = (PROGRESS_BYTES, false);
    loop {
        let read = input.read(&mut chunk)?;
        if read == 0 {
            return Ok(ScannedRows { whole_bytes: scanner.whole, open: scanner.open_line(), has_hole });
        }
        has_hole = has_hole || chunk[..read].contains(&0);
        scanner.feed(&chunk[..read]);
        if scanner.fed >= next_progress {
            tracing::info!(gib = next_progress / PROGRESS_BYTES, "reading the CSV through");
            next_progress += PROGRESS_BYTES;
        }
    }
}

/// As `Scanner::split_rows`, for a single text.
pub(crate) fn split_rows(text: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    Scanner::new().split_rows(text)
}

/// The first record of a text.
pub(crate) struct FirstRecord {
    /// With its line ending, and blank lines before it.
    pub(crate) text: Vec<u8>,
    /// Its cells so far.
    pub(crate) width: usize,
    /// Whether it ends within the text.
    pub(crate) is_whole: bool,
}

/// Reads the first record.
pub(crate) fn first_record(mut input: impl Read) -> std::io::Result<FirstRecord> {
    let (mut scanner, mut text) = (Scanner::new(), Vec::new());
    let mut chunk = vec![0; 4096];
    loop {
        let read = input.read(&mut chunk)?;
        for line in chunk[..read].split_inclusive(|&byte| byte == b'\n') {
            scanner.feed(line);
            text.extend_from_slice(line);
            if let Some(width) = scanner.first_width {
                return Ok(FirstRecord { text, width, is_whole: true });
            }
        }
        if read == 0 {
            return Ok(FirstRecord { text, width: scanner.cells + 1, is_whole: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> (u64, Option<(u64, usize, bool)>) {
        let rows = scan_rows(text.as_bytes()).expect("memory reads");
        (rows.whole_bytes, rows.open.map(|open| (open.bytes, open.cells, open.in_quotes)))
    }

    #[test]
    fn rows_and_open_line_are_found() {
        assert_eq!(scan(""), (0, None));
        assert_eq!(scan("a,b\n"), (4, None));
        assert_eq!(scan("a,b\r\nc,d\r\n"), (10, None));
        assert_eq!(scan("a,b\n\n"), (5, None));
        assert_eq!(scan("\n\na,b\n\n\nc"), (8, Some((1, 1, false))));
        assert_eq!(scan("a,\"b\n\n"), (0, Some((6, 2, true))));
        assert_eq!(scan("a,b\nc"), (4, Some((1, 1, false))));
        assert_eq!(scan("a,b\nc,"), (4, Some((2, 2, false))));
        assert_eq!(scan("a,\"b\n"), (0, Some((5, 2, true))));
        assert_eq!(scan("a,\"b\n\"\"c\"\nd,e"), (10, Some((3, 2, false))));
        assert_eq!(scan("\u{feff}\"a\nb\"\nc"), (9, Some((1, 1, false))), "the cell does not begin with a quote");
        assert_eq!(scan("5\" pipe,b\nc"), (10, Some((1, 1, false))), "a quote inside an unquoted cell opens nothing");
    }

    #[test]
    fn result_is_independent_of_chunk_boundaries() {
        let text = "x,\"a\r\n\"\"b\"\"\",y\r\n\r\n1,2,3\r\n\"open";
        let mut whole = Scanner::new();
        whole.feed(text.as_bytes());
        let expected = (whole.whole, whole.open_line());
        for cut in 0..text.len() {
            let mut parts = Scanner::new();
            parts.feed(&text.as_bytes()[..cut]);
            parts.feed(&text.as_bytes()[cut..]);
            assert_eq!((parts.whole, parts.open_line()), expected, "cut at {cut}");
        }
    }
}
