//! The CSV on disk: opened once, looked at again at every turn, appended to under an OS lock, synced, acknowledged.
//!
//! Synchronous, and the only user of `std::fs` together with the embedded lock. Every append takes `flock` on the CSV
//! itself for as long as it looks and writes: whatever the lock room believes, two processes never write at once, and a
//! torn last line is only ever cut away by one that nobody can have written behind.

mod create;
mod error;
mod scan;

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

pub use error::{AppendError, OpenError};
use scan::{OpenLine, scan_rows};

use crate::{
    record::{FencingToken, Record},
    schema::{InvalidField, Schema, ServiceCells, quote},
};

/// A torn line longer than this is not cut away: more likely a stray quote swallows good rows.
const TORN_BYTES_MAX: u64 = 1 << 20;
/// The longest header record that is read.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// How long a start waits for another process that is making the same file.
const CREATE_WAIT: Duration = Duration::from_secs(10);
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What storage needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The CSV; made where it is missing.
    pub path: PathBuf,
    /// A new file's header as a CSV record, or `none`.
    pub header: String,
    /// The replica's name, as it stands in rows.
    pub replica: String,
}

/// One turn at the file, as the lock grants it.
pub struct Turn<'a> {
    /// The lease's token, for rows that have such a column.
    pub token: FencingToken,
    /// RFC 3339, for rows that have such a column.
    pub timestamp: &'a str,
    /// Until when to try for the OS lock.
    pub deadline: Instant,
    /// Asked after the OS lock is taken and before the first byte is written.
    pub still_held: &'a dyn Fn() -> bool,
}

/// Where the rows of one request landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Byte offset of the first row.
    pub offset: u64,
    /// Bytes, line endings included.
    pub bytes: u64,
}

/// One CSV, open for appending.
#[derive(Debug)]
pub struct Storage {
    path: PathBuf,
    file: Arc<File>,
    schema: Arc<Schema>,
    replica_cell: Box<[u8]>,
    line_end: &'static [u8],
    /// Columns of a headerless file, once its first row is known.
    headerless_width: Option<usize>,
    /// Everything before this offset is known to be whole rows.
    whole_until: u64,
}

impl Storage {
    /// Opens or makes the CSV, reads its header, and reads it through once.
    ///
    /// # Errors
    /// Whatever keeps rows from being appended there, in one line that names the file.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let path = create::resolve(&options.path)?;
        let new_schema = create::parse_header_option(&options.header)?;
        create::ensure_exists(&path, &new_schema)?;
        let file =
            OpenOptions::new().read(true).append(true).open(&path).map_err(|e| OpenError::io(&path, "open", e))?;
        create::refuse_unfit(&path, &file)?;
        let mut storage = Self {
            replica_cell: quote(&options.replica),
            schema: Arc::new(new_schema),
            line_end: b"\n",
            headerless_width: None,
            whole_until: 0,
            path,
            file: Arc::new(file),
        };
        storage.write_header_if_empty()?;
        storage.adopt()?;
        Ok(storage)
    }

    /// The columns, as the file has them.
    pub fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.schema)
    }

    /// The file's path, symbolic links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write_header_if_empty(&mut self) -> Result<(), OpenError> {
        let Some(header) = self.schema.header() else { return Ok(()) };
        let fail = |e| OpenError::io(&self.path, "write the header of", e);
        let _guard = OsLock::take(Arc::clone(&self.file), Instant::now() + CREATE_WAIT)
            .map_err(fail)?
            .ok_or_else(|| OpenError::Busy(self.path.clone()))?;
        let len = self.file.metadata().map_err(fail)?.len();
        let mark_only = len == BYTE_ORDER_MARK.len() as u64 && self.starts_with_mark().map_err(fail)?;
        if len == 0 || mark_only {
            let line = [&header, self.line_end].concat();
            (&*self.file).write_all(&line).and_then(|()| self.file.sync_all()).map_err(fail)?;
        }
        Ok(())
    }

    fn starts_with_mark(&self) -> std::io::Result<bool> {
        let mut start = Vec::with_capacity(BYTE_ORDER_MARK.len());
        self.reader(0).take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start)?;
        Ok(start == BYTE_ORDER_MARK)
    }

    /// Learns header, width and line ending from the file itself, then where its last whole row ends.
    fn adopt(&mut self) -> Result<(), OpenError> {
        let path = self.path.clone();
        let fail = |e| OpenError::io(&path, "read", e);
        let start = if self.starts_with_mark().map_err(fail)? { BYTE_ORDER_MARK.len() as u64 } else { 0 };
        let (first, width) = scan::first_record(self.reader(start).take(HEADER_BYTES_MAX)).map_err(fail)?;
        if first.len() as u64 >= HEADER_BYTES_MAX {
            return Err(OpenError::HeaderTooLong(self.path.clone(), HEADER_BYTES_MAX));
        }
        self.line_end = if first.ends_with(b"\r\n") { b"\r\n" } else { b"\n" };
        if self.schema.width().is_some() {
            let bare = first.strip_suffix(b"\n").unwrap_or(&first);
            let found = Schema::from_header(bare.strip_suffix(b"\r").unwrap_or(bare))
                .map_err(|e| OpenError::Header(self.path.clone(), e))?;
            if found != *self.schema {
                tracing::info!(csv = %self.path.display(), "the file has a header of its own, and keeps it");
            }
            self.schema = Arc::new(found);
        } else if !first.is_empty() {
            self.headerless_width = Some(width);
        }
        self.whole_until = start;
        let len = self.file.metadata().map_err(fail)?.len();
        let open = self.look(len).map_err(fail)?;
        if open.is_some_and(|open| open.in_quotes && open.bytes > TORN_BYTES_MAX) {
            return Err(OpenError::StrayQuote(self.path.clone(), self.whole_until));
        }
        Ok(())
    }

    fn reader(&self, offset: u64) -> ReaderAt<'_> {
        ReaderAt { file: &self.file, offset }
    }

    /// Reads what was appended since the last look, and tells of a last line that was left open.
    fn look(&mut self, len: u64) -> std::io::Result<Option<OpenLine>> {
        if len == self.whole_until {
            return Ok(None);
        }
        let (whole, open) = scan_rows(self.reader(self.whole_until).take(len - self.whole_until))?;
        self.whole_until += whole;
        Ok(open)
    }

    /// Appends the rows of several requests as one write and one sync, and says where each request's rows stand.
    ///
    /// A request whose rows don't fit the file is refused alone; the others are written.
    ///
    /// # Errors
    /// For the batch as a whole. After `AppendError::Sync` the rows may stand in the file; after every other error they don't.
    pub fn append(
        &mut self,
        batch: &[&[Record]],
        turn: &Turn<'_>,
    ) -> Result<Vec<Result<Written, InvalidField>>, AppendError> {
        let guard = OsLock::take(Arc::clone(&self.file), turn.deadline).map_err(AppendError::before("lock"))?;
        let _guard = guard.ok_or(AppendError::Busy)?;
        self.refuse_replaced()?;
        let len = self.file.metadata().map_err(AppendError::before("stat"))?.len();
        if len < self.whole_until {
            tracing::error!(csv = %self.path.display(), was = self.whole_until, is = len, "the CSV was cut short by somebody; reading it anew");
            self.adopt_again().map_err(AppendError::Unfit)?;
        }
        let open = self.look(len).map_err(AppendError::before("read"))?;
        if !(turn.still_held)() {
            return Err(AppendError::LeaseLost);
        }
        if let Some(open) = open {
            self.mend(open)?;
        }
        let (text, places) = self.encode(batch, turn);
        let start = self.write_durably(&text)?;
        Ok(places
            .into_iter()
            .map(|place| place.map(|place| Written { offset: start + place.offset, ..place }))
            .collect())
    }

    /// Rows that wait are laid out by the header that was there at start: another one would misplace their cells.
    fn adopt_again(&mut self) -> Result<(), OpenError> {
        let schema = Arc::clone(&self.schema);
        let adopted = self.adopt();
        let unchanged = *schema == *self.schema;
        self.schema = schema;
        if adopted.is_ok() && unchanged {
            return Ok(());
        }
        // The next turn must not take this file for the one it knows.
        self.whole_until = u64::MAX;
        adopted.and(Err(OpenError::HeaderChanged(self.path.clone())))
    }

    /// A file that was renamed away or replaced would take rows that nobody finds.
    fn refuse_replaced(&self) -> Result<(), AppendError> {
        let named = std::fs::metadata(&self.path).map_err(AppendError::before("find"))?;
        let ours = self.file.metadata().map_err(AppendError::before("stat"))?;
        if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) { Ok(()) } else { Err(AppendError::Replaced) }
    }

    /// Closes a last line that is a whole row; sets aside and cuts one that was torn.
    fn mend(&mut self, open: OpenLine) -> Result<(), AppendError> {
        let expected = self.schema.width().or(self.headerless_width).unwrap_or(open.cells);
        if open.cells == expected && !open.in_quotes {
            let rest = if self.line_end == b"\r\n" && open.last_byte == b'\r' { b"\n" } else { self.line_end };
            tracing::warn!(csv = %self.path.display(), at = self.whole_until, "closing a last line that was left open");
            self.write_durably(rest)?;
            return Ok(());
        }
        if open.bytes > TORN_BYTES_MAX {
            return Err(AppendError::Unfit(OpenError::StrayQuote(self.path.clone(), self.whole_until)));
        }
        let mut torn = Vec::new();
        self.reader(self.whole_until).take(open.bytes).read_to_end(&mut torn).map_err(AppendError::before("read"))?;
        create::set_aside(&self.path, &torn).map_err(AppendError::before("set aside the torn end of"))?;
        tracing::warn!(csv = %self.path.display(), at = self.whole_until, bytes = open.bytes, "set a torn last line aside in .torn");
        self.file.set_len(self.whole_until).map_err(AppendError::before("cut the torn end of"))
    }

    fn encode(&mut self, batch: &[&[Record]], turn: &Turn<'_>) -> (Vec<u8>, Vec<Result<Written, InvalidField>>) {
        let replica = self.replica_cell.clone();
        let cells = ServiceCells { timestamp: turn.timestamp, replica: &replica, token: turn.token };
        let weight: usize = batch.iter().flat_map(|rows| rows.iter()).map(Record::weight_bytes).sum();
        let mut text = Vec::with_capacity(weight + weight / 4);
        let mut places = Vec::with_capacity(batch.len());
        for rows in batch {
            let offset = text.len();
            let width = self.headerless_width_for(rows);
            places.push(width.map(|width| {
                for record in *rows {
                    self.schema.write_row(&mut text, record, &cells, width, self.line_end);
                }
                Written { offset: offset as u64, bytes: (text.len() - offset) as u64 }
            }));
        }
        (text, places)
    }

    /// The width that a headerless file's rows are filled up to: that of the first row ever.
    fn headerless_width_for(&mut self, rows: &[Record]) -> Result<usize, InvalidField> {
        if self.schema.width().is_some() {
            return Ok(0);
        }
        let Some(first) = rows.first() else { return Ok(0) };
        // Another replica may have written the first row since this one started.
        if self.headerless_width.is_none() && self.whole_until > 0 {
            self.headerless_width = self.width_of_first_row();
        }
        let width = self.headerless_width.unwrap_or(first.cells);
        if let Some(wide) = rows.iter().find(|row| row.cells > width) {
            return Err(InvalidField::new("data", format!("{} cells, but the file's rows have {width}", wide.cells)));
        }
        self.headerless_width = Some(width);
        Ok(width)
    }

    fn width_of_first_row(&self) -> Option<usize> {
        scan::first_record(self.reader(0).take(HEADER_BYTES_MAX)).ok().map(|(_, width)| width)
    }

    /// One `O_APPEND` write and one `fdatasync`; returns where the text landed.
    fn write_durably(&mut self, text: &[u8]) -> Result<u64, AppendError> {
        let expected = self.file.metadata().map_err(AppendError::before("stat"))?.len();
        if text.is_empty() {
            return Ok(expected);
        }
        if let Err(e) = (&*self.file).write_all(text) {
            return Err(self.take_back(expected, e));
        }
        self.file.sync_data().map_err(AppendError::Sync)?;
        let end = (&*self.file).stream_position().map_err(AppendError::Sync)?;
        let start = end - text.len() as u64;
        if start == expected {
            self.whole_until = end;
        }
        Ok(start)
    }

    /// A disk that ran full in mid-write: what we wrote, and nothing else, is cut off again.
    fn take_back(&self, start: u64, e: std::io::Error) -> AppendError {
        if !matches!(
            e.kind(),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge
        ) {
            return AppendError::Sync(e);
        }
        match self.file.set_len(start).and_then(|()| self.file.sync_data()) {
            Ok(()) => AppendError::DiskFull(e),
            Err(e) => AppendError::Sync(e),
        }
    }
}

/// The OS lock on the CSV, freed when dropped. A process that is stopped keeps it, one that is killed loses it.
struct OsLock(Arc<File>);

impl OsLock {
    /// Tries until `deadline`, backing off from 1 to 50 ms; `None` if somebody kept it.
    fn take(file: Arc<File>, deadline: Instant) -> std::io::Result<Option<Self>> {
        let mut pause = Duration::from_millis(1);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Self(file))),
                Err(TryLockError::Error(e)) => return Err(e),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(None),
                Err(TryLockError::WouldBlock) => thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for OsLock {
    fn drop(&mut self) {
        if let Err(e) = self.0.unlock() {
            tracing::error!(error = %e, "cannot unlock the CSV");
        }
    }
}

/// Reads from an offset without moving the file's own position, which `O_APPEND` writes tell their place by.
struct ReaderAt<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for ReaderAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Data;

    #[test]
    fn a_lease_that_ran_out_before_the_write_writes_nothing_and_a_kept_os_lock_is_waited_for_in_vain() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.csv");
        let options = Options { path: path.clone(), header: "token,data".to_owned(), replica: "r".to_owned() };
        let mut storage = Storage::open(options).expect("opens");
        let record = storage.schema().record(&Data::Text("x".into())).expect("fits");
        let mut append = |held: bool| {
            let now = Instant::now();
            let turn = Turn { token: 1, timestamp: "", deadline: now, still_held: &|| held };
            storage.append(&[std::slice::from_ref(&record)], &turn)
        };
        assert!(matches!(append(false), Err(AppendError::LeaseLost)));
        let stopped = File::open(&path).expect("opens");
        stopped.lock().expect("locks");
        assert!(matches!(append(true), Err(AppendError::Busy)));
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "token,data\n");
        stopped.unlock().expect("unlocks");
        assert!(append(true).is_ok());
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "token,data\n1,x\n");
    }
}
