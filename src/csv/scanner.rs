//! Finds where rows end, with a CSV parser, since a quoted cell may contain line breaks.

use std::io::Read;

use csv_core::{ReadFieldResult, Reader, ReaderBuilder, Terminator};

use crate::csv::bom::keep_bom;

const CHUNK_BYTES: usize = 256 << 10;
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
pub(super) struct Scanner {
    reader: Reader,
    output: Box<[u8]>,
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
    pub(super) fn new() -> Self {
        let mut reader = ReaderBuilder::new().terminator(Terminator::Any(b'\n')).build();
        keep_bom(&mut reader);
        Self { reader, output: vec![0; 64 << 10].into(), fed: 0, whole: 0, cells: 0, first_width: None, last_byte: 0 }
    }

    pub(super) fn feed(&mut self, mut text: &[u8]) {
        while !text.is_empty() {
            let (result, read, _) = self.reader.read_field(text, &mut self.output);
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

    /// What follows the last whole row.
    fn into_open_line(mut self) -> Option<OpenLine> {
        let bytes = self.fed - self.whole;
        // Inside quotes, a line break does not end the row. (A clone of the reader would lose its state.)
        let ended = matches!(self.reader.read_field(b"\n", &mut [0; 8]).0, ReadFieldResult::Field { record_end: true });
        (bytes > 0).then_some(OpenLine { bytes, cells: self.cells + 1, in_quotes: !ended, last_byte: self.last_byte })
    }

    /// Cells of the first row, complete or not.
    fn width_of_first(&self) -> usize {
        self.first_width.unwrap_or(self.cells + 1)
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
            return Ok(ScannedRows { whole_bytes: scanner.whole, open: scanner.into_open_line(), has_hole });
        }
        has_hole = has_hole || chunk[..read].contains(&0);
        scanner.feed(&chunk[..read]);
        if scanner.fed >= next_progress {
            tracing::info!(gib = next_progress / PROGRESS_BYTES, "reading the CSV through");
            next_progress += PROGRESS_BYTES;
        }
    }
}

/// Splits text into rows with their line endings, and what follows the last row.
pub(crate) fn split_rows(text: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let (mut scanner, mut rows, mut from) = (Scanner::new(), Vec::new(), 0);
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        scanner.feed(line);
        let whole = scanner.whole as usize;
        if whole > from {
            rows.push(&text[from..whole]);
            from = whole;
        }
    }
    (rows, &text[from..])
}

/// Whether a line ending would make the text a whole row: it has this many cells, and its quotes are closed.
pub(crate) fn is_closable(text: &[u8], width: Option<usize>) -> bool {
    let mut scanner = Scanner::new();
    scanner.feed(text);
    scanner.into_open_line().is_some_and(|open| !open.in_quotes && width.is_none_or(|width| width == open.cells))
}

/// Reads the first record. Returns it with its line ending, and its number of cells.
pub(crate) fn first_record(mut input: impl Read) -> std::io::Result<(Vec<u8>, usize)> {
    let (mut scanner, mut record) = (Scanner::new(), Vec::new());
    let mut chunk = vec![0; 4096];
    loop {
        let read = input.read(&mut chunk)?;
        for line in chunk[..read].split_inclusive(|&byte| byte == b'\n') {
            scanner.feed(line);
            record.extend_from_slice(line);
            if scanner.first_width.is_some() {
                return Ok((record, scanner.width_of_first()));
            }
        }
        if read == 0 {
            return Ok((record, scanner.width_of_first()));
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
        let expected = (whole.whole, whole.into_open_line());
        for cut in 0..text.len() {
            let mut parts = Scanner::new();
            parts.feed(&text.as_bytes()[..cut]);
            parts.feed(&text.as_bytes()[cut..]);
            assert_eq!((parts.whole, parts.into_open_line()), expected, "cut at {cut}");
        }
    }
}
