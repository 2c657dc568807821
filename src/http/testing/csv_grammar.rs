//! The grammar of CSV batches, written a second time and by its words alone, to compare the parser with.
//!
//! A record ends with LF, CRLF or the end of the body. A cell that begins with a quote ends with one, and a quote within it is written
//! twice. Outside quotes, a carriage return stands before a line feed only. A blank line between two records of one cell is a record
//! with an empty cell; other blank lines are skipped.

/// The records of a well-formed body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) records: Vec<Vec<String>>,
    pub(super) skipped_lines: u64,
}

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Its quotes or line ends.
    Grammar,
    /// Text that is not UTF-8, a NUL, or records of different length.
    Content,
}

/// What stands behind a cell.
enum Behind {
    Comma,
    LineEnd,
    End,
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, start: &[u8]) -> bool {
        let rest = self.0.strip_prefix(start);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn take_line_end(&mut self) -> bool {
        self.take(b"\n") || self.take(b"\r\n")
    }

    fn behind_cell(&mut self) -> Option<Behind> {
        if self.0.is_empty() {
            Some(Behind::End)
        } else if self.take(b",") {
            Some(Behind::Comma)
        } else {
            self.take_line_end().then_some(Behind::LineEnd)
        }
    }

    fn cell(&mut self) -> Result<(Vec<u8>, Behind), Fault> {
        let (is_quoted, mut cell) = (self.take(b"\""), Vec::new());
        loop {
            if is_quoted && self.take(b"\"\"") {
                cell.push(b'"');
                continue;
            }
            if is_quoted && self.take(b"\"") {
                return Ok((cell, self.behind_cell().ok_or(Fault::Grammar)?));
            }
            if !is_quoted && let Some(behind) = self.behind_cell() {
                return Ok((cell, behind));
            }
            match self.0.split_first() {
                Some((&byte, rest)) if is_quoted || byte != b'\r' => {
                    cell.push(byte);
                    self.0 = rest;
                }
                _ => return Err(Fault::Grammar),
            }
        }
    }

    fn record(&mut self) -> Result<Vec<Vec<u8>>, Fault> {
        let mut cells = Vec::new();
        loop {
            let (cell, behind) = self.cell()?;
            cells.push(cell);
            if !matches!(behind, Behind::Comma) {
                return Ok(cells);
            }
        }
    }
}

/// Parses a body, given without a byte order mark at its start.
pub(super) fn parse(body: &[u8]) -> Result<Parsed, Fault> {
    let mut cursor = Cursor(body);
    let mut lines = Vec::new();
    while !cursor.0.is_empty() {
        lines.push(if cursor.take_line_end() { None } else { Some(cursor.record()?) });
    }
    let width = lines.iter().flatten().next().map_or(0, Vec::len);
    let is_record = |line: &Option<Vec<_>>| line.is_some();
    let (first, last) = (lines.iter().position(is_record).unwrap_or(0), lines.iter().rposition(is_record).unwrap_or(0));
    let (mut records, mut skipped_lines) = (Vec::new(), 0);
    for (at, line) in lines.into_iter().enumerate() {
        match line {
            Some(cells) => records.push(checked(cells, width)?),
            None if width == 1 && (first..last).contains(&at) => records.push(vec![String::new()]),
            None => skipped_lines += 1,
        }
    }
    Ok(Parsed { records, skipped_lines })
}

fn checked(cells: Vec<Vec<u8>>, width: usize) -> Result<Vec<String>, Fault> {
    let text = |cell| String::from_utf8(cell).ok().filter(|cell| !cell.contains('\0')).ok_or(Fault::Content);
    if cells.len() == width { cells.into_iter().map(text).collect() } else { Err(Fault::Content) }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;
    use crate::{
        commit::FileRoom,
        csv::{
            schema::{RowLayout, Schema, ServiceCells},
            strict_quotes::QuoteCheck,
        },
        http::body::{batch::BatchParser, batch_rows::BatchLimits, media_type::BatchType},
    };

    const TOKENS: &[&[u8]] = &[
        b"a",
        b",",
        b"\"",
        b"\r",
        b"\n",
        b"\r\n",
        b"\xef\xbb\xbf",
        b"\0",
        b"\xc3\xa9",
        b"\xc3",
        b"\"a\"",
        b"\"\"",
        b"b\n",
        b"\"c\"\n",
    ];

    /// What the parser makes of a body in pieces, for a file without a header.
    fn parsed(pieces: &[&[u8]]) -> Result<Parsed, String> {
        let schema = Schema::headerless();
        let limits = BatchLimits::new(1 << 20, FileRoom::new(1 << 20, &schema, "one", None));
        let mut parser = BatchParser::new(BatchType::CsvWithoutHeader, &schema, limits);
        let pushed = pieces.iter().try_for_each(|piece| parser.push(piece));
        let batch = pushed.and_then(|()| parser.finish()).map_err(|e| e.to_string())?;
        let (mut lines, width) = (Vec::new(), batch.rows.iter().next().map_or(0, |row| row.cells));
        let service = ServiceCells { timestamp: "", replica: b"", token: 1, key: b"" };
        schema.write_rows(&mut lines, &batch.rows, &service, RowLayout { headerless_width: width, line_end: b"\n" });
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&*lines);
        let text = |record: csv::StringRecord| record.iter().map(str::to_owned).collect();
        let records = reader.records().map(|record| text(record.expect("sound CSV"))).collect();
        Ok(Parsed { records, skipped_lines: batch.skipped_lines })
    }

    fn check_pieces(body: &[u8], pieces: &[&[u8]]) {
        let text = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
        let (mut quotes, expected) = (QuoteCheck::refusing_lone_cr(), parse(text));
        let fed = text.chunks(1).try_for_each(|byte| quotes.feed(byte)).and_then(|()| quotes.end());
        assert_eq!(fed.is_err(), expected == Err(Fault::Grammar), "{fed:?} but {expected:?}");
        match (parsed(pieces), expected) {
            (Ok(found), expected) => assert_eq!(Ok(found), expected),
            (Err(e), Ok(expected)) => assert!(expected.records.is_empty() && e.contains("no rows"), "{e}"),
            (Err(_), Err(_)) => {}
        }
    }

    fn check(body: &[u8], cuts: [usize; 2]) {
        let mut cuts = cuts.map(|cut| cut.min(body.len()));
        cuts.sort_unstable();
        check_pieces(body, &[&body[..cuts[0]], &body[cuts[0]..cuts[1]], &body[cuts[1]..]]);
    }

    #[test]
    fn line_ends_and_blank_lines_are_as_documented() {
        let rows = |body: &str| parse(body.as_bytes()).map(|parsed| (parsed.records.concat(), parsed.skipped_lines));
        let found = |cells: &[&str], skipped| Ok((cells.iter().map(|&cell| cell.to_owned()).collect(), skipped));
        for (body, expected) in [
            ("a\r\nb\n", found(&["a", "b"], 0)),
            ("\n\r\na\n\n\r\nb\r\n\r\n\n", found(&["a", "", "", "b"], 4)),
            ("a,b\n\nc,d\n\n", found(&["a", "b", "c", "d"], 2)),
            ("\"a\rb\"\n", found(&["a\rb"], 0)),
            ("\"\"\n\n\"\"\n", found(&["", "", ""], 0)),
            ("a\r\"Os\"lo\r", Err(Fault::Grammar)),
            ("a\r\"b\rc\r", Err(Fault::Grammar)),
            ("x\ry\n", Err(Fault::Grammar)),
            ("x\r\r\n", Err(Fault::Grammar)),
            ("x\r", Err(Fault::Grammar)),
            ("\r", Err(Fault::Grammar)),
            ("\"x\"\r", Err(Fault::Grammar)),
            ("a\n\r\nb\0\n", Err(Fault::Content)),
        ] {
            assert_eq!(rows(body), expected, "{body:?}");
            for cut in 0..=body.len() {
                check(body.as_bytes(), [cut, cut + 1]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parser_and_quote_check_hold_to_one_grammar(
            tokens in vec(select(TOKENS), 0..16),
            cuts in proptest::array::uniform2(0_usize..40),
        ) {
            check(&tokens.concat(), cuts);
        }
    }
}
