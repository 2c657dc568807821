//! Is the CSV whole, and true to its journal? A look that changes nothing, beside replicas that go on writing.

pub(crate) mod audit;
pub(crate) mod repair;

use std::{
    fs,
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use serde::Serialize;

use crate::fencing::FencingToken;
use crate::{
    csv::scanner::split_rows,
    storage::{
        AppendError, OpenError, START_WAIT,
        check::audit::{Audit, Fault, Finding},
        disk::{Disk, Place, Stretch},
        files::{Files, beside},
        format::Format,
        journal::{Header, HeaderFault, JournalRecord, Layout, read_after},
        ledger::checkpoint::print_of,
        side_files,
    },
};

/// So much is read under the OS lock, where replicas wait for it; what stands before it is read without.
const GUARDED_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// What is to be looked at.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// The CSV.
    pub path: PathBuf,
    /// `none`: its first record is no header.
    pub header: String,
    /// Among how many of the newest keys none may stand twice.
    pub keys: usize,
}

/// How the journal stands to the CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalState {
    /// All that it holds stands in the CSV.
    Sound,
    /// It holds rows that the CSV lacks: the next grant of the lock brings them in.
    OwesRows,
    /// What follows the checkpoint is being made anew, or was when a process died: the next grant goes on with it.
    Rebuilding,
    /// A sync has failed: the next grant writes anew what is in doubt.
    InDoubt,
    /// There is none: a start reads the CSV through once, and makes one.
    Missing,
    /// It knows another CSV, or this one before it was cut short, and owes no rows: a start reads the CSV through once.
    OtherFile,
    /// It owes rows to another CSV, or to this one before it was cut short: a start refuses.
    Foreign,
    /// Neither header is whole: a start refuses.
    Damaged,
    /// A newer version wrote it: a start refuses.
    Newer,
}

/// What the journal holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JournalReport {
    /// How it stands to the CSV.
    pub state: JournalState,
    /// Its size in bytes.
    pub bytes: u64,
    /// How much of the CSV was durable and whole at the last checkpoint, in bytes.
    pub checkpoint_bytes: u64,
    /// Records since then.
    pub records: u64,
    /// The newest token; older ones write nothing any more.
    pub newest_token: FencingToken,
    /// Idempotency keys recorded in its life.
    pub keys: u64,
    /// Rows that wait to be brought into the CSV.
    pub rows_to_recover: u64,
    /// What of them is not there yet, in bytes.
    pub bytes_to_recover: u64,
}

/// What a look at the CSV and all that lies beside it has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The CSV, symbolic links resolved.
    pub file: PathBuf,
    /// Whether it is whole, and true to its journal.
    pub whole: bool,
    /// Its length.
    pub bytes: u64,
    /// Rows, without the header.
    pub rows: u64,
    /// The highest token in it, if it has such a column.
    pub newest_token: Option<FencingToken>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
    /// What lies in `<csv>.journal`.
    pub journal: JournalReport,
    /// Bytes in `<csv>.torn`.
    pub set_aside_bytes: u64,
}

/// What a repair would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Nothing is to be done, or nothing can be.
    Nothing,
    /// What each grant of the lock does: bring in what the journal owes, cut what is torn.
    Recover,
    /// What no grant does: set the journal aside and begin a new one.
    ReplaceJournal,
}

impl Report {
    /// What a repair would do about it.
    pub fn plan(&self) -> Plan {
        let has = |fault| self.findings.iter().any(|finding| finding.fault == fault);
        match self.journal.state {
            JournalState::Damaged | JournalState::Foreign => Plan::ReplaceJournal,
            JournalState::Newer => Plan::Nothing,
            JournalState::OwesRows
            | JournalState::Rebuilding
            | JournalState::InDoubt
            | JournalState::Missing
            | JournalState::OtherFile => Plan::Recover,
            JournalState::Sound if has(Fault::OpenLine) || self.has_hole_behind_checkpoint() => Plan::Recover,
            JournalState::Sound => Plan::Nothing,
        }
    }

    fn has_hole_behind_checkpoint(&self) -> bool {
        let is_behind = |offset: u64| offset >= self.journal.checkpoint_bytes;
        let holes = self.findings.iter().filter(|finding| finding.fault == Fault::Nul);
        holes.flat_map(|finding| &finding.samples).any(|sample| is_behind(sample.offset))
    }
}

/// Reads the CSV in full and holds it against its journal. `progress` is told bytes done and bytes in all.
///
/// # Errors
/// What keeps the files from being read, or a process that keeps them locked.
pub fn check(options: &CheckOptions, progress: &dyn Fn(u64, u64)) -> Result<Report, OpenError> {
    let path = side_files::resolve(&options.path)?;
    let schema = Arc::new(side_files::parse_header_option(&options.header)?);
    let files = Arc::new(Files::open_to_read(&path).map_err(|e| OpenError::io(&path, "open", e))?);
    let format = Format::read(&files, &path, &schema)?;
    let audit = Audit::new(&format.schema, format.start, options.keys);
    Check { path: &path, files, audit, read: format.start, progress }.run()
}

/// Whether the CSV begins as it did at the checkpoint.
pub(crate) fn knows_csv(files: &Arc<Files>, head: &Header) -> io::Result<bool> {
    let is_long_enough = files.len(Place::Csv)? >= head.csv_bytes;
    Ok(is_long_enough && print_of(files, head.csv_bytes)? == head.csv_print)
}

struct Check<'a> {
    path: &'a Path,
    files: Arc<Files>,
    audit: Audit,
    /// How far the CSV was read.
    read: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl Check<'_> {
    fn run(mut self) -> Result<Report, OpenError> {
        let path = self.path.to_owned();
        let fail = |e| OpenError::io(&path, "read", e);
        self.read_settled().map_err(fail)?;
        let lock = self.files.lock(Instant::now() + START_WAIT).map_err(|e| match e {
            AppendError::Busy => OpenError::Busy(path.clone()),
            AppendError::Before { source, .. } => fail(source),
            other => fail(io::Error::other(other)),
        })?;
        let len = self.files.len(Place::Csv).map_err(fail)?;
        self.read_up_to(len).map_err(fail)?;
        self.audit.end();
        let journal = self.journal().map_err(fail)?;
        drop(lock);
        let set_aside = match fs::metadata(beside(&path, ".torn")) {
            Err(e) if e.kind() == ErrorKind::NotFound => 0,
            other => other.map_err(fail)?.len(),
        };
        let (rows, newest_token) = (self.audit.rows, self.audit.newest_token);
        let findings = self.audit.into_findings();
        let whole = findings.is_empty() && matches!(journal.state, JournalState::Sound | JournalState::Missing);
        Ok(Report { file: path, whole, bytes: len, rows, newest_token, findings, journal, set_aside_bytes: set_aside })
    }

    /// What stands before the checkpoint does not change any more, and need not keep anybody waiting.
    fn read_settled(&mut self) -> io::Result<()> {
        loop {
            let settled = match self.header()? {
                Ok((head, _)) => head.csv_bytes,
                Err(_) => self.files.len(Place::Csv)?,
            };
            if settled < self.read + GUARDED_BYTES_MAX {
                return Ok(());
            }
            self.read_up_to(settled)?;
        }
    }

    fn read_up_to(&mut self, end: u64) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut input = Stretch::new(&self.files, Place::Csv, self.read, end);
        loop {
            let read = input.read(&mut chunk)?;
            if read == 0 {
                return Ok(());
            }
            self.audit.feed(&chunk[..read]);
            self.read += read as u64;
            (self.progress)(self.read, end.max(self.read));
        }
    }

    fn header(&self) -> io::Result<Result<(Header, Vec<u8>), HeaderFault>> {
        let pages = self.files.read(Place::Journal, 0, Layout::REAL.space())?;
        Ok(Header::newest(&pages, Layout::REAL).map(|(head, _)| (head, pages)))
    }

    fn journal(&mut self) -> io::Result<JournalReport> {
        let mut report = JournalReport {
            state: JournalState::Missing,
            bytes: 0,
            checkpoint_bytes: 0,
            records: 0,
            newest_token: 0,
            keys: 0,
            rows_to_recover: 0,
            bytes_to_recover: 0,
        };
        if !beside(self.path, ".journal").exists() {
            return Ok(report);
        }
        report.bytes = self.files.len(Place::Journal)?;
        let (head, pages) = match self.header()? {
            Ok(header) => header,
            Err(HeaderFault::Damaged) => return Ok(JournalReport { state: JournalState::Damaged, ..report }),
            Err(HeaderFault::Newer(_)) => return Ok(JournalReport { state: JournalState::Newer, ..report }),
        };
        (report.checkpoint_bytes, report.newest_token, report.keys) = (head.csv_bytes, head.mark, head.keys);
        let knows_this_file = knows_csv(&self.files, &head)?;
        let mut current = read_after(&self.files, Layout::REAL, &head, head.cursor())?;
        while let Some((record, cursor)) = current {
            let following = read_after(&self.files, Layout::REAL, &head, cursor)?;
            report.records += 1;
            report.newest_token = report.newest_token.max(record.token);
            report.keys = report.keys.max(record.first_key + record.keys.len() as u64);
            if knows_this_file {
                self.hold_against(&record, following.is_none(), &mut report)?;
            }
            current = following;
        }
        let owes = report.records > 0 || head.rebuild.is_some();
        report.state = match (knows_this_file, owes) {
            (false, true) => JournalState::Foreign,
            (false, false) => JournalState::OtherFile,
            (true, _) if Layout::REAL.is_in_doubt(&pages) => JournalState::InDoubt,
            (true, _) if head.rebuild.is_some() => JournalState::Rebuilding,
            (true, _) if report.bytes_to_recover > 0 => JournalState::OwesRows,
            (true, _) => JournalState::Sound,
        };
        Ok(report)
    }

    /// What of a record's rows is not in its place. The last one's end may be missing after a kill, which is no fault.
    fn hold_against(&mut self, record: &JournalRecord, is_last: bool, report: &mut JournalReport) -> io::Result<()> {
        let present = self.files.read(Place::Csv, record.offset, record.payload.len() as u64)?;
        let same = present.iter().zip(&record.payload).take_while(|(is, should)| is == should).count();
        if same == record.payload.len() {
            return Ok(());
        }
        if !is_last || same < present.len() {
            let detail = format!("{} bytes under token {}", record.payload.len(), record.token);
            self.audit.note(Fault::NotAsJournaled, record.offset, detail);
        }
        let rows = |text: &[u8]| split_rows(text).0.len() as u64;
        report.rows_to_recover += rows(&record.payload) - rows(&record.payload[..same]);
        report.bytes_to_recover += (record.payload.len() - same) as u64;
        Ok(())
    }
}
