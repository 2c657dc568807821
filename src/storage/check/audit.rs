//! Reads a CSV row by row and finds faults: incomplete or merged rows, tokens out of order, repeated keys.

use std::{
    collections::{HashMap, VecDeque},
    io,
    rc::Rc,
    sync::Arc,
};

use serde::Serialize;

use crate::{
    csv::{
        bom::record_reader,
        excerpt::excerpt,
        row_splitter::{Piece, RowSplitter, without_line_end},
        scanner::Scanner,
        schema::Schema,
        strict_quotes::check_quotes,
    },
    fencing::FencingToken,
};

/// How many samples of each fault are reported.
const SAMPLES_MAX: usize = 5;

/// Redis scripts count in doubles, so no lock grants a higher token. A higher number in the column is foreign.
const TOKEN_MAX: FencingToken = 1 << 53;

/// What can be wrong with a CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Fewer cells than the header has.
    TornLine,
    /// More cells than the header has.
    MergedLine,
    /// Text behind a closing quote.
    BrokenQuote,
    /// A quote that is not closed within 64 MiB.
    EndlessQuote,
    /// A NUL byte: a hole that a power cut left.
    Nul,
    /// The last line has no line end and is not a whole row.
    OpenLine,
    /// A quote in the last row spans line ends, and the row does not end.
    OpenQuote,
    /// A token lower than one before it.
    TokenBack,
    /// A key that is repeated among the newest keys.
    RepeatedKey,
    /// Rows that differ from the journal.
    NotAsJournaled,
}

/// All faults of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind.
    pub fault: Fault,
    /// How many there are.
    pub count: u64,
    /// The first few of them.
    pub samples: Vec<Sample>,
}

/// Where a fault was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Byte offset in the CSV.
    pub offset: u64,
    /// A description for people.
    pub detail: String,
}

/// Follows the rows from the start of the file to its end.
pub(crate) struct Audit {
    /// Cells in a row; without a header those of the first row.
    width: Option<usize>,
    token_at: Option<usize>,
    header_is_due: bool,
    splitter: Option<RowSplitter>,
    pub(crate) rows: u64,
    pub(crate) newest_token: Option<FencingToken>,
    keys: NewestKeys,
    findings: Vec<Finding>,
}

impl Audit {
    /// `start` is the offset of the first record. A key that is repeated within the newest `keys` is a fault.
    pub(crate) fn new(schema: &Arc<Schema>, start: u64, keys: usize) -> Self {
        Self {
            width: schema.width(),
            token_at: schema.token_column(),
            header_is_due: schema.width().is_some(),
            splitter: Some(RowSplitter::new(start)),
            rows: 0,
            newest_token: None,
            keys: NewestKeys {
                column: schema.key_column().filter(|_| keys > 0),
                capacity: keys,
                ..NewestKeys::default()
            },
            findings: Vec::new(),
        }
    }

    pub(crate) fn feed(&mut self, text: &[u8]) {
        let Some(mut splitter) = self.splitter.take() else { return };
        splitter.feed(text, &mut |piece| match piece {
            Piece::Row(start, row) => self.row(start, row),
            Piece::EndlessQuote(start, text) => self.note(Fault::EndlessQuote, start, excerpt(text)),
        });
        self.splitter = Some(splitter);
    }

    /// Judges a last line that has no line end. `line_of` returns the number of the line at an offset.
    ///
    /// # Errors
    /// As `line_of`.
    pub(crate) fn end(&mut self, line_of: impl Fn(u64) -> io::Result<u64>) -> io::Result<()> {
        let Some((start, text)) = self.splitter.take().map(RowSplitter::into_rest) else { return Ok(()) };
        if Scanner::new().is_closable(&text, self.width) {
            self.row(start, &text);
        } else if let Some(line_end) = memchr::memchr(b'\n', &text) {
            let line = line_of(start)?;
            self.note(Fault::OpenQuote, start, format!("line {line}: {}", excerpt(&text[..line_end])));
        } else if !text.is_empty() {
            self.note(Fault::OpenLine, start, format!("{} bytes: {}", text.len(), excerpt(&text)));
        }
        Ok(())
    }

    fn row(&mut self, start: u64, row: &[u8]) {
        let text = without_line_end(row);
        if std::mem::take(&mut self.header_is_due) || text.is_empty() {
            return;
        }
        self.rows += 1;
        if let Some(at) = memchr::memchr(0, text) {
            return self.note(Fault::Nul, start + at as u64, excerpt(text));
        }
        if memchr::memchr(b'"', text).is_none() {
            let cells: Vec<_> = text.split(|&byte| byte == b',').collect();
            return self.cells(start, text, &cells);
        }
        // CSV readers disagree about such text, and Rowlock never writes it.
        if check_quotes(text).is_err() {
            return self.note(Fault::BrokenQuote, start, excerpt(text));
        }
        let record = record_reader(row).byte_records().next().and_then(Result::ok).unwrap_or_default();
        self.cells(start, text, &record.iter().collect::<Vec<_>>());
    }

    fn cells(&mut self, start: u64, row: &[u8], cells: &[&[u8]]) {
        let width = *self.width.get_or_insert(cells.len());
        if cells.len() != width {
            let fault = if cells.len() < width { Fault::TornLine } else { Fault::MergedLine };
            return self.note(fault, start, format!("{} cells, not {width}: {}", cells.len(), excerpt(row)));
        }
        let number = |cell: &&[u8]| std::str::from_utf8(cell).ok()?.parse().ok().filter(|token| *token <= TOKEN_MAX);
        let token = self.token_at.and_then(|at| cells.get(at)).and_then(number);
        if let Some(token) = token {
            let newest = *self.newest_token.get_or_insert(token);
            if token < newest {
                self.note(Fault::TokenBack, start, format!("{token} after {newest}: {}", excerpt(row)));
            }
            self.newest_token = Some(newest.max(token));
        }
        if let Some(first) = self.keys.repeats(start, token, cells) {
            self.note(Fault::RepeatedKey, start, format!("as at {first}: {}", excerpt(row)));
        }
    }

    pub(crate) fn note(&mut self, fault: Fault, offset: u64, detail: String) {
        let at = self.findings.iter().position(|finding| finding.fault == fault).unwrap_or_else(|| {
            self.findings.push(Finding { fault, count: 0, samples: Vec::new() });
            self.findings.len() - 1
        });
        let finding = &mut self.findings[at];
        finding.count += 1;
        if finding.samples.len() < SAMPLES_MAX {
            finding.samples.push(Sample { offset, detail });
        }
    }

    pub(crate) fn into_findings(mut self) -> Vec<Finding> {
        self.findings.sort_by_key(|finding| finding.fault);
        self.findings
    }
}

/// The newest keys of a file that has a column for them.
#[derive(Default)]
struct NewestKeys {
    column: Option<usize>,
    capacity: usize,
    newest: VecDeque<Rc<[u8]>>,
    first_at: HashMap<Rc<[u8]>, u64>,
    /// Key and token of the previous row: the rows of one batch share their key.
    last: Option<(Rc<[u8]>, Option<FencingToken>)>,
}

impl NewestKeys {
    /// The offset of an earlier row with the same key, if there is one.
    fn repeats(&mut self, at: u64, token: Option<FencingToken>, cells: &[&[u8]]) -> Option<u64> {
        let key = cells.get(self.column?).filter(|key| !key.is_empty())?;
        if self.last.as_ref().is_some_and(|(last, of)| **last == **key && *of == token) {
            return None;
        }
        let key: Rc<[u8]> = Rc::from(*key);
        self.last = Some((Rc::clone(&key), token));
        if let Some(first) = self.first_at.get(&key) {
            return Some(*first);
        }
        if self.newest.len() == self.capacity
            && let Some(oldest) = self.newest.pop_front()
        {
            self.first_at.remove(&oldest);
        }
        self.newest.push_back(Rc::clone(&key));
        self.first_at.insert(key, at);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csv::row_splitter::ROW_BYTES_MAX;

    fn audit(text: &str, chunk: usize) -> (u64, Vec<(Fault, u64, Vec<u64>)>) {
        let schema = Arc::new(Schema::from_header(b"token,key,data").expect("a header"));
        let mut audit = Audit::new(&schema, 0, 2);
        text.as_bytes().chunks(chunk).for_each(|chunk| audit.feed(chunk));
        audit.end(|_| Ok(1)).expect("no reading");
        let rows = audit.rows;
        let places = |finding: Finding| finding.samples.iter().map(|sample| sample.offset).collect();
        (rows, audit.into_findings().into_iter().map(|found| (found.fault, found.count, places(found))).collect())
    }

    #[test]
    fn each_fault_is_found_at_its_offset() {
        let head = "token,key,data\n";
        for (rows, count, fault) in [
            ("1,a,x\n2,b,\"y\r\n,\"\"z\"\n", 2, None),
            ("1,a,x\r\n2,,5\" pipe", 2, None),
            ("\u{feff}\"1,a,\"x\"\n", 1, None),
            ("1,a,x\n2,b\n", 2, Some((Fault::TornLine, 6))),
            ("1,a,x\n2,b2,b,y\n", 2, Some((Fault::MergedLine, 6))),
            ("1,a,x\n2,b,\"y\"z\n", 2, Some((Fault::BrokenQuote, 6))),
            ("1,a,x\n2,b,\0y\n", 2, Some((Fault::Nul, 10))),
            ("1,a,x\n2,b", 1, Some((Fault::OpenLine, 6))),
            ("1,a,x\n2,b,\"y\n3,c,z\n", 1, Some((Fault::OpenQuote, 6))),
            ("2,a,x\n,,foreign\n1,b,y\n", 3, Some((Fault::TokenBack, 16))),
            ("1,a,x\n1,a,x\n2,a,x\n", 3, Some((Fault::RepeatedKey, 12))),
            ("1,a,x\n2,b,x\n3,c,x\n4,a,x\n", 4, None),
        ] {
            for chunk in [1, 3, 1000] {
                let expected = fault.map(|(fault, at)| (fault, 1, vec![head.len() as u64 + at]));
                assert_eq!(audit(&format!("{head}{rows}"), chunk), (count, Vec::from_iter(expected)), "{rows:?}");
            }
        }
    }

    #[test]
    fn rows_after_endless_quote_are_audited() {
        let row = "2,b,yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\n";
        let text = format!("token,key,data\n1,a,\"x\n{}", row.repeat(ROW_BYTES_MAX / row.len() + 2));
        let (rows, findings) = audit(&text, 1 << 16);
        assert_eq!(rows, (ROW_BYTES_MAX / row.len() + 2) as u64);
        assert_eq!(findings, [(Fault::EndlessQuote, 1, vec![15])]);
    }
}
