//! Parses a body of `/append/batch` as it arrives. Memory holds the complete rows and the incomplete last one, not the body. The first
//! wrong line ends parsing, and the error names it.

use crate::csv::{
    bom::BOM,
    rows::Rows,
    schema::{InvalidField, Schema},
};
use crate::http::{
    body::{
        batch_csv::CsvParser,
        batch_json::{ArrayParser, LineParser},
        batch_rows::{BatchLimits, BatchRows},
        media_type::BatchType,
    },
    error::ApiError,
};

/// Accepts a body in pieces that may be cut anywhere, even within a character.
pub(crate) struct BatchParser<'a> {
    rows: BatchRows<'a>,
    format: Format,
    /// How many bytes of a byte order mark have arrived; `None` once the beginning of the body is known.
    bom: Option<usize>,
}

enum Format {
    Csv(Box<CsvParser>),
    Lines(LineParser),
    Array(ArrayParser),
}

impl<'a> BatchParser<'a> {
    pub(crate) fn new(batch_type: BatchType, schema: &'a Schema, limits: BatchLimits) -> Self {
        let format = match batch_type {
            BatchType::CsvWithHeader => Format::Csv(Box::new(CsvParser::new(true))),
            BatchType::CsvWithoutHeader => Format::Csv(Box::new(CsvParser::new(false))),
            BatchType::JsonLines => Format::Lines(LineParser::default()),
            BatchType::JsonArray => Format::Array(ArrayParser::default()),
        };
        Self { rows: BatchRows::new(schema, limits), format, bom: Some(0) }
    }

    /// Memory that the parser and its rows take.
    pub(crate) fn held_bytes(&self) -> usize {
        let of_parser = match &self.format {
            Format::Csv(parser) => parser.held_bytes(),
            Format::Lines(parser) => parser.held_bytes(),
            Format::Array(parser) => parser.held_bytes(),
        };
        self.rows.held_bytes() + of_parser
    }

    /// Parses the next piece.
    ///
    /// # Errors
    /// Names the first line that is malformed or does not fit the columns of the file.
    pub(crate) fn push(&mut self, mut piece: &[u8]) -> Result<(), ApiError> {
        if let Some(seen) = self.bom {
            let more = BOM[seen..].iter().zip(piece).take_while(|(bom, byte)| bom == byte).count();
            let seen = seen + more;
            piece = &piece[more..];
            self.bom = (piece.is_empty() && seen < BOM.len()).then_some(seen);
            if self.bom.is_none() && seen < BOM.len() {
                self.parse(&BOM[..seen])?;
            }
        }
        self.parse(piece)
    }

    fn parse(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        let Self { rows, format, .. } = self;
        match format {
            Format::Csv(parser) => parser.push(piece, rows),
            Format::Lines(parser) => parser.push(piece, rows),
            Format::Array(parser) => parser.push(piece, rows),
        }
    }

    /// The rows, after the last piece.
    ///
    /// # Errors
    /// If the body is incomplete or has no rows.
    pub(crate) fn finish(mut self) -> Result<ParsedBatch, ApiError> {
        if let Some(seen) = self.bom {
            self.parse(&BOM[..seen])?;
        }
        let Self { mut rows, format, .. } = self;
        let skipped_lines = match format {
            Format::Csv(parser) => parser.finish(&mut rows),
            Format::Lines(parser) => parser.finish(&mut rows),
            Format::Array(parser) => parser.finish().map(|()| 0),
        }?;
        let rows = rows.into_rows();
        if rows.is_empty() {
            return Err(InvalidField::new("body", "no rows; accepted: at least one").into());
        }
        Ok(ParsedBatch { rows, skipped_lines })
    }
}

/// A whole batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ParsedBatch {
    pub(crate) rows: Rows,
    /// Blank lines that are not rows.
    pub(crate) skipped_lines: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::FileRoom;

    fn limits(schema: &Schema) -> BatchLimits {
        BatchLimits::new(64 << 20, FileRoom::new(64 << 20, schema, "one", None))
    }

    fn parse(batch_type: BatchType, pieces: &[&[u8]]) -> Result<ParsedBatch, String> {
        let schema = Schema::from_header(b"token,city,people").expect("a header");
        let mut parser = BatchParser::new(batch_type, &schema, limits(&schema));
        let pushed = pieces.iter().try_for_each(|piece| parser.push(piece));
        pushed.and_then(|()| parser.finish()).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn rows_do_not_depend_on_where_a_body_is_cut() {
        use BatchType::{CsvWithHeader, CsvWithoutHeader, JsonArray, JsonLines};
        let bodies: [(BatchType, &[u8]); 24] = [
            (CsvWithHeader, "\u{feff}people,city\r\n1,\"\u{e5}\r\n\"\"s\"\"\"\r\n\r\n,\u{1f600}".as_bytes()),
            (CsvWithHeader, b"city\n\n\"a\nb\"\n\nc,d\ne\n\xff\n"),
            (CsvWithHeader, b"city\n\"a\nb\"\n\xc3\nc,d\n"),
            (CsvWithHeader, b"city,people\n\xc3,\xa5\n"),
            (CsvWithHeader, b"city\n\"a\"b\nc,d\n"),
            (CsvWithHeader, b"city\na,b\n\"c\"d\n"),
            (CsvWithHeader, b"city\na\n\n\"b\n"),
            (CsvWithHeader, b"city\na\0\nb,c\n"),
            (CsvWithHeader, b"city\ra\r\"b\nc\"\rd,e"),
            (CsvWithHeader, b"\xef\xbb\n"),
            (CsvWithHeader, b"\xef\xbb"),
            (CsvWithoutHeader, b"\n\r\na,\"\"\n\"b\"\"\",\n"),
            (CsvWithoutHeader, b"a,b,c\n"),
            (JsonLines, "\u{feff}\"a\"\r\n\n  \n[\"\u{e5}\\u00e5\\ud83d\\ude00\", 1.10]\n{\"people\":null}".as_bytes()),
            (JsonLines, b"\"a\"\n\"\\ud800\"\n\"\xff\"\n"),
            (JsonLines, b"\"a\"\n\"\xff\"\n\"b"),
            (JsonLines, b"\"a\"\n\"b"),
            (JsonArray, "\u{feff} \n[ \"a\" ,\n[\"]\\\"\\\\\", 2],{\"city\":\"},{\\\\\"}\n] \n".as_bytes()),
            (JsonArray, b"[\"a\",\n[\"b\",\n\"\xff\"]]"),
            (JsonArray, b"[\"a\",[{}],7"),
            (JsonArray, b"[\"a\",{]}]"),
            (JsonArray, b"[\"a\"]]"),
            (JsonArray, b" [ ]"),
            (JsonArray, b" {\"a\":"),
        ];
        for (batch_type, body) in bodies {
            let whole = parse(batch_type, &[body]);
            for first in 0..=body.len() {
                for second in first..=body.len() {
                    let pieces = [&body[..first], &body[first..second], &body[second..]];
                    assert_eq!(parse(batch_type, &pieces), whole, "{:?}", pieces.map(String::from_utf8_lossy));
                }
            }
            let bytes: Vec<_> = body.chunks(1).collect();
            assert_eq!(parse(batch_type, &bytes), whole, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn first_wrong_line_is_named_and_ends_parsing() {
        let broken = |body: &[u8], said: &str| {
            let e = parse(BatchType::CsvWithHeader, &[body]).expect_err("refused");
            assert!(e.contains(said), "{}: {e}", String::from_utf8_lossy(body));
        };
        broken(b"city\na\nb,c\n\"d\"e\n\xff\n", "line 3: 2 cells");
        broken(b"city\n\n\"a\n\n\"\n\n\xff\n\"b\"c", "line 7: not UTF-8");
        broken(b"city,people\n\"a\nb\",\"c\n\xff\"\n", "line 4: not UTF-8");
        broken(b"city,people\na\xc3,\xa5b\n", "line 2: not UTF-8");
        broken(b"city,people\n,x\0\n", "data.people");
        broken(b"\xef\xbb", "line 1: not UTF-8");
        broken(&[b"city\n", &*vec![b','; 2 << 20]].concat(), "line 2: more than 1048576 cells");
    }
}
