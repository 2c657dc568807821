//! Does the file hold what was acknowledged? It is read back by a parser of its own, and every row of the run held against what
//! was sent.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};
use memchr::{memchr, memmem};
use serde::Serialize;

use crate::csv::schema::Schema;
use crate::load::{
    book::{Book, State},
    lines::{Line, Lines},
    rows::Generator,
};

const CHUNK_BYTES: usize = 256 << 10;
const SAMPLES_MAX: usize = 3;
const SAMPLE_BYTES_MAX: usize = 60;

/// What may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Acknowledged, and not there.
    Lost,
    /// There more than once.
    Duplicated,
    /// A row that claims to be of this run, but was not sent, or not like this.
    NeverSent,
    /// Said to be certainly not written, and there.
    NotWrittenPresent,
    /// No CSV: of another width than the first record, with a broken quote or a NUL byte, or without a line end.
    TornLine,
    /// Acknowledged before another row was sent, and behind it.
    OutOfOrder,
    /// Behind a row of a higher token.
    TokenBack,
}

impl Fault {
    /// All that is looked for.
    pub const ALL: [Self; 7] = [
        Self::Lost,
        Self::Duplicated,
        Self::NeverSent,
        Self::NotWrittenPresent,
        Self::TornLine,
        Self::OutOfOrder,
        Self::TokenBack,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::NeverSent => "never sent",
            Self::NotWrittenPresent => "refused, yet present",
            Self::TornLine => "torn lines",
            Self::OutOfOrder => "out of order",
            Self::TokenBack => "tokens going back",
        }
    }
}

/// One kind of fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// How often.
    pub count: u64,
    /// The first of them, in words.
    pub samples: Vec<String>,
}

/// How the file stands to what was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether nothing is wrong.
    #[serde(skip)]
    pub pass: bool,
    /// Rows that were sent, or tried to be.
    pub attempted: u64,
    /// Rows that were acknowledged.
    pub acknowledged: u64,
    /// Rows of this run in the file, each counted once.
    pub present: u64,
    /// Rows that may stand in the file, and do.
    pub unknown_present: u64,
    /// Rows that may stand in the file, and don't.
    pub unknown_absent: u64,
    /// Other records, without the header: nothing is asked of them but to be whole.
    pub others: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Reads a file from its start to its end.
///
/// # Errors
/// What keeps it from being read.
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

/// Takes a file piece by piece.
pub(super) struct Verifier<'a> {
    lines: Lines,
    audit: Audit<'a>,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(generator: &'a Generator, book: &'a Book) -> Self {
        let rows = usize::try_from(book.rows()).expect("they were all sent from here");
        let audit = Audit {
            generator,
            book,
            cells: Cells::default(),
            claim: memmem::Finder::new(generator.prefix()).into_owned(),
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
    /// Finds what every row of the run begins with.
    claim: memmem::Finder<'static>,
    /// Of the first record.
    width: Option<usize>,
    token_column: Option<usize>,
    /// How often each row stands in the file; more than 255 are 255.
    seen: Vec<u8>,
    expected: String,
    /// Of the rows so far, that which was sent last, and when.
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
        self.find(Fault::TornLine, || format!("at byte {at}: {why}: {}", shown(text)));
    }

    fn record(&mut self, at: u64, text: &[u8]) {
        let text = if at == 0 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
        if text.is_empty() {
            return;
        }
        let is_ours = self.claim.find(text).is_some();
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

    /// A record with the mark of this run in it.
    fn row(&mut self, at: u64, text: &[u8]) {
        let claimed = self.cells.iter().find_map(|cell| Some((self.generator.number_of(cell)?, cell)));
        let row = claimed.and_then(|(row, cell)| {
            self.expected.clear();
            self.book.state(row)?;
            self.generator.write(row, &mut self.expected);
            (self.expected.as_bytes() == cell).then_some(row)
        });
        let Some(row) = row else {
            return self.find(Fault::NeverSent, || format!("at byte {at}: {}", shown(text)));
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

    /// One look back is enough: whoever was sent last is the likeliest to have been sent after this one was acknowledged.
    fn follow_order(&mut self, at: u64, row: u64) {
        let acknowledged = self.book.acknowledged_ns(row);
        if let (Some((sent_ns, other)), Some(acknowledged_ns)) = (self.newest_sent, acknowledged)
            && acknowledged_ns < sent_ns
        {
            let earlier_ms = (sent_ns - acknowledged_ns) as f64 / 1e6;
            self.find(Fault::OutOfOrder, || {
                format!("row {row}, at byte {at}: acknowledged {earlier_ms:.3} ms before row {other} was sent, which stands before it")
            });
        }
        let sent_ns = self.book.sent_ns(row).expect("it was found in the book");
        if self.newest_sent.is_none_or(|(newest_ns, _)| newest_ns < sent_ns) {
            self.newest_sent = Some((sent_ns, row));
        }
    }

    fn follow_token(&mut self, at: u64, row: u64) {
        let cell = self.token_column.and_then(|column| self.cells.get(column));
        let token = cell.and_then(|cell| std::str::from_utf8(cell).ok()?.parse().ok());
        match (token, self.newest_token) {
            (Some(token), Some(newest)) if token < newest => {
                self.find(Fault::TokenBack, || format!("row {row}, at byte {at}: token {token} behind {newest}"));
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
            let is_there = self.seen[row as usize] > 0;
            present += u64::from(is_there);
            match self.book.state(row).expect("every row has a state") {
                State::Acknowledged => {
                    acknowledged += 1;
                    if !is_there {
                        self.find(Fault::Lost, || format!("row {row}"));
                    }
                }
                State::Unknown if is_there => unknown_present += 1,
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

/// So much of it as helps to find it.
fn shown(text: &[u8]) -> String {
    let (start, dots) = if text.len() > SAMPLE_BYTES_MAX { (&text[..SAMPLE_BYTES_MAX], "…") } else { (text, "") };
    format!("{}{dots}", String::from_utf8_lossy(start).escape_debug())
}

/// One record's cells, in memory that serves the next record.
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
    /// Reads a whole record; how many cells it has.
    fn read(&mut self, record: &[u8]) -> usize {
        self.reader.reset();
        let (mut rest, mut bytes) = (record, 0);
        self.count = 0;
        loop {
            let (result, read, written, ended) =
                self.reader.read_record(rest, &mut self.text[bytes..], &mut self.ends[self.count..]);
            (rest, bytes, self.count) = (&rest[read..], bytes + written, self.count + ended);
            match result {
                // What follows, nothing, ends it.
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
