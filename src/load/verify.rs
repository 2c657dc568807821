//! Verifies that the CSV holds every acknowledged row, by a parser of its own: each row of the run is compared with what was sent.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};
use memchr::{memchr, memmem};
use serde::Serialize;

use crate::csv::{
    bom::{BOM, keep_bom},
    excerpt::excerpt,
    schema::Schema,
};
use crate::load::{
    book::{Book, State},
    lines::{Line, Lines},
    rows::Generator,
};

const CHUNK_BYTES: usize = 256 << 10;
const SAMPLES_MAX: usize = 3;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Acknowledged, but not in the file.
    Lost,
    /// In the file more than once.
    Duplicated,
    /// A row with this run's prefix that was not sent, or was sent with other data.
    NeverSent,
    /// Refused as `not_written`, but in the file.
    NotWrittenPresent,
    /// No valid record: of another width than the first record, with a broken quote or a NUL byte, or without a line end.
    TornLine,
    /// After a row that was sent only after this one was acknowledged.
    OutOfOrder,
    /// After a row with a higher token.
    TokenBack,
}

impl Fault {
    /// All kinds of faults.
    pub const ALL: [Self; 7] = [
        Self::Lost,
        Self::Duplicated,
        Self::NeverSent,
        Self::NotWrittenPresent,
        Self::TornLine,
        Self::OutOfOrder,
        Self::TokenBack,
    ];

    /// The text for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::NeverSent => "never sent",
            Self::NotWrittenPresent => "refused, yet present",
            Self::TornLine => "torn lines",
            Self::OutOfOrder => "out of order",
            Self::TokenBack => "tokens that decrease",
        }
    }
}

/// The faults of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind.
    pub fault: Fault,
    /// How many.
    pub count: u64,
    /// Descriptions of the first ones.
    pub samples: Vec<String>,
}

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether there is no fault.
    #[serde(skip)]
    pub pass: bool,
    /// Rows that were sent at least once, or could not be sent.
    pub attempted: u64,
    /// Rows that were acknowledged.
    pub acknowledged: u64,
    /// Rows of this run in the file, each counted once.
    pub present: u64,
    /// Rows with an unknown outcome that are in the file.
    pub unknown_present: u64,
    /// Rows with an unknown outcome that are not in the file.
    pub unknown_absent: u64,
    /// Records that are not of this run, without the header. They only need to be valid.
    pub others: u64,
    /// The faults.
    pub findings: Vec<Finding>,
}

/// Verifies a file.
///
/// # Errors
/// If it cannot be read.
pub(super) fn verify_file(path: &Path, generator: &Generator, book: &Book) -> std::io::Result<Verdict> {
    let (mut file, mut verifier) = (File::open(path)?, Verifier::new(generator, book));
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(verifier.finish()),
            read => verifier.feed(&chunk[..read]),
        }
    }
}

/// Verifies a file that is read piece by piece.
pub(super) struct Verifier<'a> {
    lines: Lines,
    audit: Audit<'a>,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(generator: &'a Generator, book: &'a Book) -> Self {
        let rows = usize::try_from(book.rows()).expect("the book is in memory");
        let audit = Audit {
            generator,
            book,
            cells: Cells::default(),
            prefix: memmem::Finder::new(generator.prefix()).into_owned(),
            width: None,
            token_column: None,
            seen: vec![0; rows],
            expected: String::new(),
            newest_sent: None,
            newest_token: None,
            others: 0,
            findings: BTreeMap::new(),
        };
        Self { lines: Lines::default(), audit }
    }

    pub(super) fn feed(&mut self, text: &[u8]) {
        self.lines.feed(text, &mut |at, line| self.audit.line(at, line));
    }

    pub(super) fn finish(mut self) -> Verdict {
        self.lines.finish(&mut |at, line| self.audit.line(at, line));
        self.audit.finish()
    }
}

struct Audit<'a> {
    generator: &'a Generator,
    book: &'a Book,
    cells: Cells,
    /// Finds the prefix of this run's rows.
    prefix: memmem::Finder<'static>,
    /// Cells of the first record.
    width: Option<usize>,
    token_column: Option<usize>,
    /// How often each row is in the file, at most 255.
    seen: Vec<u8>,
    expected: String,
    /// When the last sent of the rows so far was sent, and its number.
    newest_sent: Option<(u64, u64)>,
    newest_token: Option<u64>,
    others: u64,
    findings: BTreeMap<Fault, (u64, Vec<String>)>,
}

impl Audit<'_> {
    fn line(&mut self, at: u64, line: Line<'_>) {
        match line {
            Line::Record(text) => self.record(at, text),
            Line::Torn(text, why) => self.torn(at, text, why),
        }
    }

    fn torn(&mut self, at: u64, text: &[u8], why: &str) {
        self.find(Fault::TornLine, || format!("at byte {at}: {why}: {}", excerpt(text)));
    }

    fn record(&mut self, at: u64, text: &[u8]) {
        let text = if at == 0 { text.strip_prefix(BOM).unwrap_or(text) } else { text };
        if text.is_empty() {
            return;
        }
        let is_ours = self.prefix.find(text).is_some();
        if memchr(0, text).is_some() {
            return self.torn(at, text, "NUL bytes");
        }
        let width = self.cells.read(text);
        if self.width.is_none() {
            self.width = Some(width);
            if !is_ours {
                self.token_column = Schema::from_header(text).ok().and_then(|schema| schema.token_column());
                return;
            }
        }
        if self.width != Some(width) {
            let expected = self.width.unwrap_or_default();
            return self.torn(at, text, &format!("{width} cells instead of {expected}"));
        }
        if is_ours { self.row(at, text) } else { self.others += 1 }
    }

    /// A record with the prefix of this run.
    fn row(&mut self, at: u64, text: &[u8]) {
        let claimed = self.cells.iter().find_map(|cell| Some((self.generator.number_of(cell)?, cell)));
        let row = claimed.and_then(|(row, cell)| {
            self.expected.clear();
            self.book.state(row)?;
            self.generator.write(row, &mut self.expected);
            (self.expected.as_bytes() == cell).then_some(row)
        });
        let Some(row) = row else {
            return self.find(Fault::NeverSent, || format!("at byte {at}: {}", excerpt(text)));
        };
        self.follow_token(at, row);
        let seen = &mut self.seen[row as usize];
        *seen = seen.saturating_add(1);
        if *seen > 1 {
            return self.find(Fault::Duplicated, || format!("row {row}, again at byte {at}"));
        }
        if self.book.state(row) == Some(State::NotWritten) {
            self.find(Fault::NotWrittenPresent, || format!("row {row}, at byte {at}"));
        }
        self.follow_order(at, row);
    }

    /// Compares with the last sent row only: if any earlier row was sent after this one was acknowledged, that one was.
    fn follow_order(&mut self, at: u64, row: u64) {
        let acknowledged = self.book.acknowledged_ns(row);
        if let (Some((sent_ns, other)), Some(acknowledged_ns)) = (self.newest_sent, acknowledged)
            && acknowledged_ns < sent_ns
        {
            let earlier_ms = (sent_ns - acknowledged_ns) as f64 / 1e6;
            self.find(Fault::OutOfOrder, || {
                format!("row {row}, at byte {at}: acknowledged {earlier_ms:.3} ms before row {other} was sent, but after it in the file")
            });
        }
        let sent_ns = self.book.sent_ns(row).expect("the row is in the book");
        if self.newest_sent.is_none_or(|(newest_ns, _)| newest_ns < sent_ns) {
            self.newest_sent = Some((sent_ns, row));
        }
    }

    fn follow_token(&mut self, at: u64, row: u64) {
        let cell = self.token_column.and_then(|column| self.cells.get(column));
        let token = cell.and_then(|cell| std::str::from_utf8(cell).ok()?.parse().ok());
        match (token, self.newest_token) {
            (Some(token), Some(newest)) if token < newest => {
                self.find(Fault::TokenBack, || format!("row {row}, at byte {at}: token {token} after {newest}"));
            }
            (Some(token), _) => self.newest_token = Some(token),
            (None, _) => {}
        }
    }

    fn find(&mut self, fault: Fault, sample: impl FnOnce() -> String) {
        let (count, samples) = self.findings.entry(fault).or_default();
        *count += 1;
        if samples.len() < SAMPLES_MAX {
            samples.push(sample());
        }
    }

    fn finish(mut self) -> Verdict {
        let (mut acknowledged, mut present, mut unknown_present, mut unknown_absent) = (0, 0, 0, 0);
        for row in 0..self.book.rows() {
            let is_present = self.seen[row as usize] > 0;
            present += u64::from(is_present);
            match self.book.state(row).expect("every row has a state") {
                State::Acknowledged => {
                    acknowledged += 1;
                    if !is_present {
                        self.find(Fault::Lost, || format!("row {row}"));
                    }
                }
                State::Unknown if is_present => unknown_present += 1,
                State::Unknown => unknown_absent += 1,
                State::NotWritten => {}
            }
        }
        let findings = self.findings.into_iter().map(|(fault, (count, samples))| Finding { fault, count, samples });
        let findings: Vec<_> = findings.collect();
        Verdict {
            pass: findings.is_empty(),
            attempted: self.book.rows(),
            acknowledged,
            present,
            unknown_present,
            unknown_absent,
            others: self.others,
            findings,
        }
    }
}

/// The cells of one record, in memory that is reused for the next record.
struct Cells {
    reader: Reader,
    text: Vec<u8>,
    ends: Vec<usize>,
    count: usize,
}

impl Default for Cells {
    fn default() -> Self {
        let reader = ReaderBuilder::new().terminator(Terminator::Any(b'\n')).build();
        Self { reader, text: vec![0; 1024], ends: vec![0; 32], count: 0 }
    }
}

impl Cells {
    /// Parses a record, and returns the number of its cells.
    fn read(&mut self, record: &[u8]) -> usize {
        self.reader.reset();
        keep_bom(&mut self.reader);
        let (mut rest, mut bytes) = (record, 0);
        self.count = 0;
        loop {
            let (result, read, written, ended) =
                self.reader.read_record(rest, &mut self.text[bytes..], &mut self.ends[self.count..]);
            (rest, bytes, self.count) = (&rest[read..], bytes + written, self.count + ended);
            match result {
                // The next call, without input, ends the record.
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.text.resize(2 * self.text.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::Record | ReadRecordResult::End => return self.count,
            }
        }
    }

    fn get(&self, at: usize) -> Option<&[u8]> {
        let end = *self.ends[..self.count].get(at)?;
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        Some(&self.text[start..end])
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count).filter_map(|at| self.get(at))
    }
}
