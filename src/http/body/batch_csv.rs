//! Parses CSV as it arrives, record by record. Quotes are checked more strictly than `csv_core` does.

use csv_core::{ReadRecordResult, Reader};

use crate::csv::{
    bom::keep_bom,
    rows::Rows,
    schema::{Columns, InvalidField, Schema, checked},
    strict_quotes::{QuoteCheck, QuoteFault},
};
use crate::http::{
    body::text::{line_ends, not_utf8},
    error::ApiError,
};

/// The most cells of one record. It bounds the memory for cell ends, which may otherwise exceed the size of the body.
const CELLS_MAX: usize = 1 << 20;

pub(super) struct CsvParser {
    reader: Reader,
    quotes: QuoteCheck,
    record: RawRecord,
    /// The line where that record begins; `None` between records.
    line: Option<u64>,
    has_header: bool,
    /// Set by the first record.
    layout: Option<Layout>,
}

/// The columns of all records.
struct Layout {
    names: Option<Vec<String>>,
    cells: usize,
    columns: Columns,
}

/// The buffers that the reader fills with the current record.
struct RawRecord {
    /// The cells without quotes, concatenated.
    text: Vec<u8>,
    bytes: usize,
    /// Where each cell ends in `text`.
    ends: Vec<usize>,
    cells: usize,
}

impl CsvParser {
    pub(crate) fn new(has_header: bool) -> Self {
        let mut reader = Reader::new();
        keep_bom(&mut reader);
        let record = RawRecord { text: vec![0; 1024], bytes: 0, ends: vec![0; 32], cells: 0 };
        Self { reader, quotes: QuoteCheck::default(), record, line: None, has_header, layout: None }
    }

    pub(crate) fn push(&mut self, mut piece: &[u8], schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        while !piece.is_empty() {
            if self.line.is_none() {
                // Blank lines are not records.
                let blank = piece.iter().take_while(|byte| b"\r\n".contains(byte)).count();
                self.quotes.feed(&piece[..blank]).map_err(quote_fault)?;
                piece = &piece[blank..];
                self.line = (!piece.is_empty()).then_some(self.quotes.line());
                continue;
            }
            let read = self.read(piece, schema, rows)?;
            piece = &piece[read..];
        }
        Ok(())
    }

    /// Text after the last line end is a record, too.
    pub(crate) fn finish(&mut self, schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        self.quotes.end().map_err(quote_fault)?;
        while self.line.is_some() {
            self.read(b"", schema, rows)?;
        }
        Ok(())
    }

    /// Reads to the end of the record or of the piece, and returns the number of bytes read. An empty piece ends the body.
    fn read(&mut self, piece: &[u8], schema: &Schema, rows: &mut Rows) -> Result<usize, ApiError> {
        let RawRecord { text, bytes, ends, cells } = &mut self.record;
        let (result, read, written, ended) = self.reader.read_record(piece, &mut text[*bytes..], &mut ends[*cells..]);
        (*bytes, *cells) = (*bytes + written, *cells + ended);
        self.quotes.feed(&piece[..read]).map_err(quote_fault)?;
        match result {
            ReadRecordResult::InputEmpty => {}
            ReadRecordResult::OutputFull => text.resize(2 * text.len(), 0),
            ReadRecordResult::OutputEndsFull if ends.len() >= CELLS_MAX => {
                let line = self.line.unwrap_or_default();
                return Err(InvalidField::new("body", format!("line {line}: more than {CELLS_MAX} cells")).into());
            }
            ReadRecordResult::OutputEndsFull => ends.resize(2 * ends.len(), 0),
            ReadRecordResult::Record | ReadRecordResult::End => {
                if let Some(line) = self.line.take() {
                    self.end_record(line, schema, rows)?;
                }
                (self.record.bytes, self.record.cells) = (0, 0);
            }
        }
        Ok(read)
    }

    fn end_record(&mut self, line: u64, schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        let in_line = |e: InvalidField| InvalidField::new(e.field, format!("line {line}: {}", e.detail));
        let text = self.record.as_text(line)?;
        let cells = self.record.cells;
        let cell = |at: usize| &text[self.record.range(at)];
        let layout = match &mut self.layout {
            Some(layout) => layout,
            None if self.has_header => {
                let names: Vec<_> = (0..cells).map(|at| cell(at).to_owned()).collect();
                let columns = schema.columns(&names).map_err(in_line)?;
                self.layout = Some(Layout { names: Some(names), cells, columns });
                return Ok(());
            }
            none => {
                let columns = schema.columns_from_left(cells).map_err(in_line)?;
                none.insert(Layout { names: None, cells, columns })
            }
        };
        if cells != layout.cells {
            let detail = format!("{cells} cells, but the lines before have {}", layout.cells);
            return Err(in_line(InvalidField::new("body", detail)).into());
        }
        if let Some(nul) = memchr::memchr(0, text.as_bytes()) {
            let at = (0..cells).find(|&at| self.record.ends[at] > nul).unwrap_or_default();
            let place = layout.names.as_ref().map_or_else(|| format!("[{at}]"), |names| format!(".{}", names[at]));
            checked(format_args!("data{place}"), cell(at)).map_err(in_line)?;
        }
        schema.push_columns(&layout.columns, cell, rows);
        Ok(())
    }
}

impl RawRecord {
    fn range(&self, at: usize) -> std::ops::Range<usize> {
        at.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[at]
    }

    /// All cells as one text. Each cell must be UTF-8 by itself.
    fn as_text(&self, line: u64) -> Result<&str, ApiError> {
        let bytes = &self.text[..self.bytes];
        if let Ok(text) = std::str::from_utf8(bytes)
            && self.ends[..self.cells].iter().all(|&end| text.is_char_boundary(end))
        {
            return Ok(text);
        }
        let fault = (0..self.cells).find_map(|at| {
            let range = self.range(at);
            let fault = std::str::from_utf8(&bytes[range.clone()]).err()?;
            Some(range.start + fault.valid_up_to())
        });
        Err(not_utf8(line + line_ends(&bytes[..fault.unwrap_or_default()])))
    }
}

fn quote_fault(fault: QuoteFault) -> ApiError {
    ApiError::BrokenBody(match fault {
        QuoteFault::TextBehindQuote(line) => format!("line {line}: text after a closing quote"),
        QuoteFault::NotClosed(line) => format!("line {line}: a quote that is not closed"),
    })
}
