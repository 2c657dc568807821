//! Parses CSV as it arrives, record by record. Quotes and line ends are checked more strictly than `csv_core` does.

use csv_core::{ReadRecordResult, Reader};

use crate::csv::{
    bom::keep_bom,
    schema::{Columns, InvalidField, checked},
    strict_quotes::{QuoteCheck, QuoteFault},
};
use crate::http::{
    body::{
        batch_rows::BatchRows,
        text::{CELLS_MAX, line_ends, not_utf8},
    },
    error::ApiError,
};

pub(super) struct CsvParser {
    reader: Reader,
    quotes: QuoteCheck,
    record: RawRecord,
    /// The line where that record begins; `None` between records.
    line: Option<u64>,
    has_header: bool,
    /// Set by the first record.
    layout: Option<Layout>,
    /// The reader ended the last record at a carriage return, whose line feed comes next.
    line_end_is_open: bool,
    /// Blank lines since the last record.
    blank_lines: u64,
    /// Blank lines that are not rows.
    skipped_lines: u64,
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
        Self {
            reader,
            quotes: QuoteCheck::refusing_lone_cr(),
            record,
            line: None,
            has_header,
            layout: None,
            line_end_is_open: false,
            blank_lines: 0,
            skipped_lines: 0,
        }
    }

    /// Memory of the record that is being read.
    pub(crate) fn held_bytes(&self) -> usize {
        self.record.text.len() + size_of_val(&*self.record.ends)
    }

    pub(crate) fn push(&mut self, mut piece: &[u8], rows: &mut BatchRows<'_>) -> Result<(), ApiError> {
        while !piece.is_empty() {
            if self.line.is_none() {
                let blank = piece.iter().take_while(|byte| b"\r\n".contains(byte)).count();
                self.quotes.feed(&piece[..blank]).map_err(text_fault)?;
                let of_record = blank > 0 && std::mem::take(&mut self.line_end_is_open);
                self.blank_lines += line_ends(&piece[..blank]) - u64::from(of_record);
                piece = &piece[blank..];
                if !piece.is_empty() {
                    self.begin_record(rows)?;
                }
                continue;
            }
            let read = self.read(piece, rows)?;
            piece = &piece[read..];
        }
        Ok(())
    }

    /// A record begins with the next byte. In a file of one column, the blank lines since the last record are rows with an empty cell.
    fn begin_record(&mut self, rows: &mut BatchRows<'_>) -> Result<(), ApiError> {
        self.line = Some(self.quotes.line());
        let blank_lines = std::mem::take(&mut self.blank_lines);
        match &self.layout {
            Some(Layout { cells: 1, columns, .. }) => {
                (0..blank_lines).try_for_each(|_| rows.push_columns(columns, 0, |_| ""))
            }
            Some(_) | None => {
                self.skipped_lines += blank_lines;
                Ok(())
            }
        }
    }

    /// Text after the last line end is a record, too. Returns the number of blank lines that are not rows.
    pub(crate) fn finish(mut self, rows: &mut BatchRows<'_>) -> Result<u64, ApiError> {
        self.quotes.end().map_err(text_fault)?;
        while self.line.is_some() {
            self.read(b"", rows)?;
        }
        Ok(self.skipped_lines + self.blank_lines)
    }

    /// Reads to the end of the record or of the piece, and returns the number of bytes read. An empty piece ends the body.
    fn read(&mut self, piece: &[u8], rows: &mut BatchRows<'_>) -> Result<usize, ApiError> {
        let RawRecord { text, bytes, ends, cells } = &mut self.record;
        let (result, read, written, ended) = self.reader.read_record(piece, &mut text[*bytes..], &mut ends[*cells..]);
        (*bytes, *cells) = (*bytes + written, *cells + ended);
        self.quotes.feed(&piece[..read]).map_err(text_fault)?;
        let line = self.line.unwrap_or_default();
        rows.limits.check_row(*bytes, || format!("line {line}"))?;
        match result {
            ReadRecordResult::InputEmpty => {}
            // One byte more than a row may have shows that it is too long, wherever the body is cut.
            ReadRecordResult::OutputFull => text.resize((2 * text.len()).min(rows.limits.row_bytes_max + 1), 0),
            ReadRecordResult::OutputEndsFull if ends.len() >= CELLS_MAX => {
                return Err(InvalidField::new("body", format!("line {line}: more than {CELLS_MAX} cells")).into());
            }
            ReadRecordResult::OutputEndsFull => ends.resize(2 * ends.len(), 0),
            ReadRecordResult::Record | ReadRecordResult::End => {
                if let Some(line) = self.line.take() {
                    self.end_record(line, rows)?;
                }
                (self.record.bytes, self.record.cells) = (0, 0);
                self.line_end_is_open = piece[..read].ends_with(b"\r");
            }
        }
        Ok(read)
    }

    fn end_record(&mut self, line: u64, rows: &mut BatchRows<'_>) -> Result<(), ApiError> {
        let in_line = |e: InvalidField| InvalidField::new(e.field, format!("line {line}: {}", e.detail));
        let text = self.record.as_text(line)?;
        let cells = self.record.cells;
        let cell = |at: usize| &text[self.record.range(at)];
        let layout = match &mut self.layout {
            Some(layout) => layout,
            None if self.has_header => {
                let names: Vec<_> = (0..cells).map(|at| cell(at).to_owned()).collect();
                let columns = rows.schema.columns(&names).map_err(in_line)?;
                self.layout = Some(Layout { names: Some(names), cells, columns });
                return Ok(());
            }
            none => {
                let columns = rows.schema.columns_from_left(cells).map_err(in_line)?;
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
        rows.push_columns(&layout.columns, text.len(), cell)
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

fn text_fault(fault: QuoteFault) -> ApiError {
    ApiError::BrokenBody(match fault {
        QuoteFault::TextBehindQuote(line) => format!("line {line}: text after a closing quote"),
        QuoteFault::NotClosed(line) => format!("line {line}: a quote that is not closed"),
        QuoteFault::LoneCarriageReturn(line) => {
            format!("line {line}: a carriage return without a line feed outside quotes; accepted line ends: LF, CRLF")
        }
    })
}
