//! Reads the cells of one row in pieces of bounded size, however long the row is.

use csv_core::{ReadFieldResult, Reader};

use crate::csv::bom::keep_bom;

/// The longest piece of a cell, in bytes before bytes that are not UTF-8 are replaced.
const PIECE_BYTES_MAX: usize = 4096;
/// The most bytes of an incomplete UTF-8 character.
const CHARACTER_BYTES_MAX: usize = 3;

/// A part of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CellPiece<'a> {
    /// The next text of the current cell.
    Text(&'a str),
    /// The current cell is complete.
    End,
}

/// Parses one row, which does not begin a file. Bytes that are not UTF-8 are replaced, as by `String::from_utf8_lossy`.
pub(crate) struct CellPieces {
    reader: Reader,
    /// Begins with the bytes of an incomplete character.
    output: Box<[u8]>,
    incomplete: usize,
    /// The record has ended; what follows in its row is not part of it.
    is_done: bool,
}

impl CellPieces {
    pub(crate) fn new() -> Self {
        let mut reader = Reader::new();
        keep_bom(&mut reader);
        Self { reader, output: vec![0; CHARACTER_BYTES_MAX + PIECE_BYTES_MAX].into(), incomplete: 0, is_done: false }
    }

    /// Begins the next row.
    pub(crate) fn reset(&mut self) {
        self.reader.reset();
        keep_bom(&mut self.reader);
        (self.incomplete, self.is_done) = (0, false);
    }

    /// Reads the next bytes of the row. The last of them are its line ending.
    pub(crate) fn feed(&mut self, mut text: &[u8], found: &mut impl FnMut(CellPiece<'_>)) {
        while !self.is_done && !text.is_empty() {
            let read = self.step(text, found);
            text = &text[read..];
        }
    }

    /// Ends the row. Only a row with a bare carriage return, which ends a record, can leave a quote open.
    pub(crate) fn finish(&mut self, found: &mut impl FnMut(CellPiece<'_>)) {
        if !self.is_done {
            self.step(b"", found);
        }
    }

    fn step(&mut self, text: &[u8], found: &mut impl FnMut(CellPiece<'_>)) -> usize {
        let (result, read, written) = self.reader.read_field(text, &mut self.output[self.incomplete..]);
        let end = self.incomplete + written;
        let decoded = decode(&self.output[..end], found);
        self.output.copy_within(decoded..end, 0);
        self.incomplete = end - decoded;
        if let ReadFieldResult::Field { record_end } = result {
            if self.incomplete > 0 {
                found(CellPiece::Text("\u{fffd}"));
            }
            found(CellPiece::End);
            (self.incomplete, self.is_done) = (0, record_end);
        }
        read
    }
}

/// Decodes up to an incomplete character at the end, and returns how many bytes that were.
fn decode(mut bytes: &[u8], found: &mut impl FnMut(CellPiece<'_>)) -> usize {
    let all = bytes.len();
    loop {
        let error = match std::str::from_utf8(bytes) {
            Ok("") => return all,
            Ok(text) => {
                found(CellPiece::Text(text));
                return all;
            }
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        if let Ok(text) = std::str::from_utf8(valid)
            && !text.is_empty()
        {
            found(CellPiece::Text(text));
        }
        let Some(invalid) = error.error_len() else { return all - rest.len() };
        found(CellPiece::Text("\u{fffd}"));
        bytes = &rest[invalid..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::csv::{bom::record_reader, scanner::split_rows};

    fn cells_in_pieces(reader: &mut CellPieces, row: &[u8], sizes: &[usize]) -> Vec<String> {
        let (mut cells, mut cell, mut at) = (Vec::new(), String::new(), 0);
        let mut sizes = sizes.iter().cycle();
        let mut found = |piece: CellPiece<'_>| match piece {
            CellPiece::Text(text) => cell.push_str(text),
            CellPiece::End => cells.push(std::mem::take(&mut cell)),
        };
        while at < row.len() {
            let end = row.len().min(at + sizes.next().expect("endless"));
            reader.feed(&row[at..end], &mut found);
            at = end;
        }
        reader.finish(&mut found);
        cells
    }

    fn whole_cells(row: &[u8]) -> Vec<String> {
        let record = record_reader(row).byte_records().next().and_then(Result::ok).unwrap_or_default();
        record.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect()
    }

    #[test]
    fn long_cells_and_cut_characters_are_read_whole() {
        let mut reader = CellPieces::new();
        let long = "\u{10ffff}ø\u{1}".repeat(10_000);
        for row in [format!("a,\"{long}\"\"\n{long}\",\n"), format!("\u{feff}{long},b\r\n"), format!("x{long}\n")] {
            assert_eq!(cells_in_pieces(&mut reader, row.as_bytes(), &[row.len()]), whole_cells(row.as_bytes()));
            reader.reset();
            assert_eq!(cells_in_pieces(&mut reader, row.as_bytes(), &[1, 5000]), whole_cells(row.as_bytes()));
            reader.reset();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_are_the_cells_of_the_whole_row(
            parts in prop::collection::vec(prop_oneof![
                Just(&b"\""[..]), Just(&b","[..]), Just(&b"a"[..]), Just(&b"\r"[..]), Just(&b"\n"[..]), Just(&b"\xff"[..]),
                Just(&b"\xf0\x9f"[..]), Just("\u{1f6a3}".as_bytes()), Just("\u{feff}".as_bytes()), Just(&b"\xc3"[..]),
            ], 0..20),
            sizes in prop::collection::vec(1_usize..6, 1..4),
        ) {
            let mut row = parts.concat();
            row.push(b'\n');
            // A row whose quote stays open has no end.
            if split_rows(&row).1.is_empty() {
                prop_assert_eq!(cells_in_pieces(&mut CellPieces::new(), &row, &sizes), whole_cells(&row));
            }
        }
    }
}
