//! Checks whether a CSV has only whole rows and matches its journal. Changes nothing, and may run while replicas write.

pub(crate) mod audit;
pub(crate) mod repair;
pub(crate) mod report;

use std::{
    fs,
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use crate::{
    csv::scanner::split_rows,
    storage::{
        adopt::refuse_missing,
        check::{
            audit::{Audit, Fault},
            report::{CheckOptions, JournalReport, JournalState, Report},
        },
        disk::{Disk, FileKind, FileRange},
        edited::is_edited,
        error::{AppendError, OpenError},
        files::{Files, START_WAIT},
        format::Format,
        journal::{Header, HeaderFault, JournalRecord, Layout, records_since},
        open_line::line_of,
        safe_open::refuse_unsafe_side_files,
        side_files::{self, side_path},
        slow_call::watched,
        volume::VolumeInfo,
    },
};

/// The most that is read under the OS lock, for which replicas wait. What comes before it is read without the lock.
const LOCKED_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// Reads the CSV in full and compares it with its journal. `progress` gets the bytes read so far and in total.
///
/// # Errors
/// That the files can't be read, or that another process holds the OS lock.
pub fn check(options: &CheckOptions, progress: &dyn Fn(u64, u64)) -> Result<Report, OpenError> {
    let path = side_files::resolve(&options.path)?;
    let schema = Arc::new(side_files::parse_header_option(&options.header)?);
    let volume = watched(&path, "find the volume of", || VolumeInfo::of(&path));
    volume.map_err(|e| OpenError::io(&path, "find the volume of", e))?.log(&path);
    refuse_unsafe_side_files(&path)?;
    refuse_missing(&path)?;
    let open = || fs::metadata(&path).and_then(|_| Files::open_to_read(&path));
    let files = watched(&path, "open", open).map_err(|e| OpenError::io(&path, "open", e))?;
    let files = Arc::new(files);
    let format = Format::read(&files, &path, &schema)?;
    let audit = Audit::new(&format.schema, format.start, options.keys);
    Check { path, files, audit, read: format.start, progress }.run()
}

struct Check<'a> {
    path: PathBuf,
    files: Arc<Files>,
    audit: Audit,
    /// How far the CSV was read.
    read: u64,
    progress: &'a dyn Fn(u64, u64),
}

impl Check<'_> {
    fn run(mut self) -> Result<Report, OpenError> {
        let path = self.path.clone();
        let fail = |e| OpenError::io(&path, "read", e);
        self.read_up_to_checkpoint().map_err(fail)?;
        let lock = watched(&path, "lock", || self.files.lock(Instant::now() + START_WAIT));
        let lock = lock.map_err(|e| lock_failed(&path, e))?;
        let len = self.files.len(FileKind::Csv).map_err(fail)?;
        self.read_up_to(len).map_err(fail)?;
        self.audit.end(|offset| line_of(&self.files, offset)).map_err(fail)?;
        let journal = self.journal().map_err(fail)?;
        drop(lock);
        let quarantined_bytes = match fs::metadata(side_path(&path, ".torn")) {
            Err(e) if e.kind() == ErrorKind::NotFound => 0,
            other => other.map_err(fail)?.len(),
        };
        let (rows, newest_token) = (self.audit.rows, self.audit.newest_token);
        let findings = self.audit.into_findings();
        let whole = findings.is_empty() && matches!(journal.state, JournalState::Sound | JournalState::Missing);
        Ok(Report { file: path, whole, bytes: len, rows, newest_token, findings, journal, quarantined_bytes })
    }

    /// Reads what comes before the checkpoint without a lock, since it does not change any more.
    fn read_up_to_checkpoint(&mut self) -> io::Result<()> {
        loop {
            let checkpoint_end = match Header::newest(&self.read_headers()?, Layout::REAL) {
                Ok((head, _)) => head.csv_bytes,
                Err(_) => self.files.len(FileKind::Csv)?,
            };
            if checkpoint_end < self.read + LOCKED_BYTES_MAX {
                return Ok(());
            }
            self.read_up_to(checkpoint_end)?;
        }
    }

    fn read_up_to(&mut self, end: u64) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut input = FileRange::new(&self.files, FileKind::Csv, self.read, end);
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

    /// The journal's first pages, up to the records.
    fn read_headers(&self) -> io::Result<Vec<u8>> {
        self.files.read(FileKind::Journal, 0, Layout::REAL.space())
    }

    fn journal(&mut self) -> io::Result<JournalReport> {
        let mut report = JournalReport::missing();
        if !side_path(&self.path, ".journal").exists() {
            return Ok(report);
        }
        report.bytes = self.files.len(FileKind::Journal)?;
        let pages = self.read_headers()?;
        let head = match Header::newest(&pages, Layout::REAL) {
            Ok((head, _)) => head,
            Err(HeaderFault::Damaged) => return Ok(JournalReport { state: JournalState::Damaged, ..report }),
            Err(HeaderFault::Newer(_)) => return Ok(JournalReport { state: JournalState::Newer, ..report }),
        };
        (report.checkpoint_bytes, report.newest_token, report.keys) = (head.csv_bytes, head.highest_token, head.keys);
        let matches_csv = head.matches_csv(&self.files)?;
        let records = records_since(&self.files, Layout::REAL, &head)?;
        for (nth, record) in records.iter().enumerate() {
            report.records += 1;
            report.newest_token = report.newest_token.max(record.token);
            report.keys = report.keys.max(record.first_key + record.keys.len() as u64);
            if matches_csv {
                self.compare(record, nth + 1 == records.len(), &mut report)?;
            }
        }
        let holds_rows = report.records > 0 || head.rebuild.is_some();
        report.state = match (matches_csv, holds_rows) {
            (false, true) => JournalState::Foreign,
            (false, false) => JournalState::OtherFile,
            (true, _) if Layout::REAL.sync_failed_flag_is_set(&pages) => JournalState::InDoubt,
            (true, _) if head.rebuild.is_some() => JournalState::Rebuilding,
            (true, _) if is_edited(&self.files, &head, &records)? => JournalState::Edited,
            (true, _) if report.bytes_to_recover > 0 => JournalState::OwesRows,
            (true, _) => JournalState::Sound,
        };
        Ok(report)
    }

    /// Compares a record's payload with the CSV. The end of the last one may be missing after a kill, which is not a fault.
    fn compare(&mut self, record: &JournalRecord, is_last: bool, report: &mut JournalReport) -> io::Result<()> {
        let present = self.files.read(FileKind::Csv, record.offset, record.payload.len() as u64)?;
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

fn lock_failed(path: &Path, e: AppendError) -> OpenError {
    match e {
        AppendError::Busy => OpenError::Busy(path.to_owned()),
        AppendError::Before { source, .. } => OpenError::io(path, "read", source),
        AppendError::Unfit(e) => e,
        other => OpenError::io(path, "read", io::Error::other(other)),
    }
}
