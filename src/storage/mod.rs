//! The CSV on disk and the journal beside it: what is recorded in the journal is committed, and the CSV is made true to it.
//!
//! Synchronous, and the only user of `std::fs` together with the embedded lock. ARCHITECTURE.md says in
//! which order, and names each guard and the test that fails without it.

mod check;
mod disk;
mod error;
mod files;
mod format;
mod journal;
mod keys;
mod ledger;
mod peer_file;
mod reader;
mod side_files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod testing;

use std::{
    fs::{OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use crate::storage::check::audit::{Fault, Finding, Sample};
pub use crate::storage::check::repair::{Replaced, replace_journal};
pub use crate::storage::check::{CheckOptions, JournalReport, JournalState, Plan, Report, check};
pub use crate::storage::error::{AppendError, OpenError, Refusal};
pub use crate::storage::peer_file::Bulletin;
pub use crate::storage::reader::{News, Page, ReadError, Reader, Row, Snapshot};
pub use crate::storage::side_files::resolve;

use crate::storage::{
    check::audit::scan_tokens,
    disk::{Disk, Place, Stretch},
    files::{Files, OsLock, beside},
    format::{BYTE_ORDER_MARK, Format},
    journal::{Header, Layout},
    ledger::{
        Ledger, LedgerOptions, Repair, Seen,
        append::TORN_BYTES_MAX,
        checkpoint::{Pending, print_of, sync_for_checkpoint},
    },
};
use crate::{
    api::acknowledgement::Ack,
    csv::{idempotency_key::Key, rows::Rows, schema::Schema},
    fencing::{FencingToken, LeaseId},
    metrics::Meter,
};

/// How long a start waits for another process that has the files in hand.
const START_WAIT: Duration = Duration::from_secs(2);
/// A checkpoint begins when this part of the journal's space is in use: one in so many.
const CHECKPOINT_AT: u64 = 2;

/// What storage needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The CSV; made where it is missing.
    pub path: PathBuf,
    /// A new file's header as a CSV record, or `none`.
    pub header: String,
    /// The replica's name, as it stands in rows.
    pub replica: String,
    /// The journal's size in bytes.
    pub journal_bytes: u64,
    /// How many idempotency keys are remembered.
    pub keys: usize,
    /// Whether a volume without file locks will do.
    pub accept_unlocked: bool,
    /// Where checkpoints and recoveries are counted.
    pub meter: Arc<Meter>,
}

/// One turn at the file, as the lock grants it.
pub struct Turn<'a> {
    /// The lease's token: the fence, and a cell of rows that have such a column.
    pub token: FencingToken,
    /// The lease itself, should its token have been granted twice.
    pub lease: LeaseId,
    /// When it was granted.
    pub granted: Instant,
    /// RFC 3339, for rows that have such a column.
    pub timestamp: &'a str,
    /// Until when to try for the OS lock.
    pub deadline: Instant,
    /// Asked after the OS lock is taken and before the first byte is written.
    pub still_held: &'a dyn Fn() -> bool,
}

/// The rows of one request.
pub struct Entry<'a> {
    /// All of them are written, or none.
    pub rows: &'a Rows,
    /// The client's name for the request.
    pub key: Option<&'a Key>,
    /// How many keys had been recorded when the request arrived.
    pub keys_seen: u64,
    /// For the answer that is remembered.
    pub waited_ms: u64,
    /// For the answer that is remembered.
    pub released: bool,
}

/// What became of the rows of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// They were written, durably.
    Written {
        /// Byte offset of the first row.
        offset: u64,
        /// Bytes, line endings included.
        bytes: u64,
        /// How long the lock was held by then, if that is remembered with a key.
        held_ms: Option<u64>,
    },
    /// The key was known: its first answer.
    Replayed(Ack),
}

/// What an idle look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Nothing to do.
    Clean,
    /// A checkpoint is under way: look again soon.
    Checkpointing,
    /// Somebody left work behind that only the lock's holder may do.
    NeedsRepair,
}

/// One CSV, open for appending.
#[derive(Debug)]
pub struct Storage {
    files: Arc<Files>,
    ledger: Ledger<Arc<Files>>,
    /// A checkpoint whose sync is under way on a thread of its own.
    pending: Option<(Pending, JoinHandle<io::Result<()>>)>,
    /// The last checkpoint could not begin; that is logged once.
    checkpoint_hindered: bool,
    /// The last record at the last idle look.
    idle_since: u64,
    keys_recorded: Arc<AtomicU64>,
}

impl Storage {
    /// Opens or makes the CSV and what lies beside it. A CSV without a journal is read through once.
    ///
    /// # Errors
    /// Whatever keeps rows from being appended there, in one line that names the file.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let path = side_files::resolve(&options.path)?;
        let new_schema = Arc::new(side_files::parse_header_option(&options.header)?);
        side_files::ensure_exists(&path, &new_schema)?;
        write_header_if_empty(&path, &new_schema)?;
        let make = |e| OpenError::io(&path, "make what lies beside", e);
        side_files::ensure_keys(&beside(&path, ".keys"), &path, options.keys as u64).map_err(make)?;
        if !beside(&path, ".journal").exists() {
            adopt(&path, &new_schema, options.journal_bytes)?;
        }
        let mut files = Files::open(&path).map_err(|e| OpenError::io(&path, "open", e))?;
        if !files.locks_work().map_err(|e| OpenError::io(&path, "lock", e))? {
            if !options.accept_unlocked {
                return Err(OpenError::Unlocked(path));
            }
            tracing::warn!(csv = %path.display(), "no file locks on this volume: a stopped replica that goes on may damage rows");
            files.accept_unlocked();
        }
        let files = Arc::new(files);
        let format = Format::read(&files, &path, &new_schema)?;
        if *format.schema != *new_schema {
            tracing::info!(csv = %path.display(), "the file has a header of its own, and keeps it");
        }
        let (layout, replica, keys, meter) = (Layout::REAL, options.replica, options.keys, options.meter);
        let ledger = Ledger::open(Arc::clone(&files), LedgerOptions { path, layout, format, replica, keys, meter })?;
        let mut storage = Self {
            files,
            ledger,
            pending: None,
            checkpoint_hindered: false,
            idle_since: 0,
            keys_recorded: Arc::default(),
        };
        storage.first_look(options.journal_bytes)?;
        Ok(storage)
    }

    /// Only looks: repairs are for who holds the lock. A process that keeps the files is waited for, but not for ever.
    fn first_look(&mut self, journal_bytes: u64) -> Result<(), OpenError> {
        let path = self.ledger.path.clone();
        let refuse = |e| match e {
            AppendError::Unfit(e) => e,
            AppendError::Before { doing, source } => OpenError::io(&path, doing, source),
            other => OpenError::io(&path, "look at", io::Error::other(other)),
        };
        let lock = match self.files.lock(Instant::now() + START_WAIT) {
            Ok(lock) => lock,
            Err(AppendError::Busy) => {
                tracing::warn!(csv = %path.display(), "another process keeps the files; rows will wait for it");
                return Ok(());
            }
            Err(e) => return Err(refuse(e)),
        };
        let wanted = self.ledger.keys.capacity();
        side_files::grow_keys(&self.files, &path, self.ledger.head.keys, wanted)
            .map_err(|e| OpenError::io(&path, "make room for more keys beside", e))?;
        let seen = self.ledger.look(Repair::Forbidden).map_err(refuse)?;
        if seen != Seen::NeedsRepair && self.ledger.head.bytes != journal_bytes {
            match self.ledger.resize(journal_bytes) {
                Err(AppendError::DiskFull(e)) => {
                    tracing::warn!(error = %e, "no room to resize the journal; it stays as it is");
                }
                other => other.map_err(refuse)?,
            }
        }
        drop(lock);
        self.note_keys();
        Ok(())
    }

    /// The columns, as the file has them.
    pub fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.ledger.format.schema)
    }

    /// The file's path, symbolic links resolved.
    pub fn path(&self) -> &Path {
        &self.ledger.path
    }

    /// The most that the encoded rows of one request may come to, in bytes.
    pub fn batch_bytes_max(&self) -> u64 {
        ledger::append::batch_bytes_max(self.ledger.head.bytes)
    }

    /// How long the last sync of the journal took.
    pub fn last_sync(&self) -> Duration {
        self.ledger.last_sync
    }

    /// How many keys have been recorded, as of the last look.
    pub fn keys_recorded(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.keys_recorded)
    }

    fn note_keys(&self) {
        self.keys_recorded.store(self.ledger.keys.next(), Ordering::Relaxed);
    }

    /// Appends the rows of several requests as one record and one sync, and answers for each in order. What does not fit one
    /// record is left for another call: the answer may be shorter than what was given, but never empty.
    ///
    /// # Errors
    /// For all of them. After `AppendError::Sync` the rows may stand in the file; after every other error they don't.
    pub fn append(
        &mut self,
        entries: &[Entry<'_>],
        turn: &Turn<'_>,
    ) -> Result<Vec<Result<Placed, Refusal>>, AppendError> {
        let _lock = self.files.lock(turn.deadline)?;
        let placed = self.ledger.append(entries, turn)?;
        self.note_keys();
        if self.pending.is_none() && self.ledger.live_bytes() > self.ledger.head.bytes / CHECKPOINT_AT {
            // The rows are safe already: what keeps the checkpoint from beginning keeps nobody waiting.
            match self.begin_checkpoint() {
                Err(e) if !std::mem::replace(&mut self.checkpoint_hindered, true) => {
                    tracing::error!(error = %e, "cannot begin a checkpoint; trying again with each batch");
                }
                Err(_) => {}
                Ok(()) => self.checkpoint_hindered = false,
            }
        }
        Ok(placed)
    }

    /// Records the turn's token before a sleep, so that older holders are fenced out from then on. Where `key` is known, its
    /// answer comes at once, and nothing is recorded.
    ///
    /// # Errors
    /// As `append`.
    pub fn fence(&mut self, key: Option<&Key>, turn: &Turn<'_>) -> Result<Option<Result<Ack, Refusal>>, AppendError> {
        let _lock = self.files.lock(turn.deadline)?;
        self.ledger.fence(key, turn)
    }

    /// Repairs what a killed process or host left behind: for who holds the lock.
    ///
    /// # Errors
    /// As `append`.
    pub fn recover(&mut self, deadline: Instant) -> Result<(), AppendError> {
        let _lock = self.files.lock(deadline)?;
        self.ledger.recover()?;
        Ok(())
    }

    /// As `recover`; and what the next append would do to a torn last line is done now.
    ///
    /// # Errors
    /// As `append`.
    pub fn repair(&mut self, deadline: Instant) -> Result<(), AppendError> {
        let _lock = self.files.lock(deadline)?;
        if let Some(open) = self.ledger.recover()? {
            self.ledger.mend(open)?;
        }
        Ok(())
    }

    fn begin_checkpoint(&mut self) -> Result<(), AppendError> {
        let pending = self.ledger.begin_checkpoint()?;
        let files = Arc::clone(&self.files);
        let sync = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || sync_for_checkpoint(&files, Layout::REAL))
            .map_err(AppendError::before("start a thread for"))?;
        self.pending = Some((pending, sync));
        Ok(())
    }

    /// Ends a checkpoint whose sync is done by now.
    ///
    /// # Errors
    /// `AppendError::Sync` if that has failed: then this process must end.
    pub fn maintain(&mut self) -> Result<(), AppendError> {
        match self.pending.take_if(|(_, sync)| sync.is_finished()) {
            Some(done) => {
                let lock = self.files.lock(Instant::now() + Duration::from_millis(100));
                self.end_checkpoint(done, lock)
            }
            None => Ok(()),
        }
    }

    fn end_checkpoint(
        &mut self,
        (pending, sync): (Pending, JoinHandle<io::Result<()>>),
        lock: Result<OsLock, AppendError>,
    ) -> Result<(), AppendError> {
        if let Err(e) = sync.join().unwrap_or_else(|_| Err(io::Error::other("the syncing thread panicked"))) {
            return Err(self.ledger.fail(e));
        }
        match lock {
            Ok(_lock) => self.ledger.finish_checkpoint(&pending),
            // Somebody has the files in hand: the next checkpoint will do.
            Err(AppendError::Busy) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// A look while nobody asks for anything: learns what others did, and makes a checkpoint after a while of quiet.
    ///
    /// # Errors
    /// As `maintain`, or what keeps the files from being read.
    pub fn look_idly(&mut self) -> Result<Idle, AppendError> {
        self.maintain()?;
        if self.pending.is_some() {
            return Ok(Idle::Checkpointing);
        }
        let _lock = match self.files.lock(Instant::now()) {
            Ok(lock) => lock,
            Err(AppendError::Busy) => return Ok(Idle::Clean),
            Err(e) => return Err(e),
        };
        let seen = self.ledger.look(Repair::Forbidden)?;
        self.note_keys();
        let sequence = self.ledger.known.sequence;
        let quiet = std::mem::replace(&mut self.idle_since, sequence) == sequence;
        if seen == Seen::NeedsRepair {
            return Ok(Idle::NeedsRepair);
        }
        if !quiet || !self.ledger.is_dirty() {
            return Ok(Idle::Clean);
        }
        self.begin_checkpoint()?;
        Ok(Idle::Checkpointing)
    }

    /// A last checkpoint: whatever becomes of the journal then, the CSV is durable and owes nothing to it.
    ///
    /// # Errors
    /// As `maintain`, or what keeps the files from being read.
    pub fn close(mut self) -> Result<(), AppendError> {
        if let Some(done) = self.pending.take() {
            let lock = self.files.lock(Instant::now() + Duration::from_secs(1));
            self.end_checkpoint(done, lock)?;
        }
        let _lock = match self.files.lock(Instant::now() + Duration::from_secs(1)) {
            Ok(lock) => lock,
            Err(AppendError::Busy) => return Ok(()),
            Err(e) => return Err(e),
        };
        if self.ledger.look(Repair::Forbidden)? != Seen::NeedsRepair && self.ledger.is_dirty() {
            self.ledger.checkpoint_now()?;
        }
        Ok(())
    }
}

/// Before there is a journal, the CSV itself is what is locked.
fn write_header_if_empty(path: &Path, schema: &Schema) -> Result<(), OpenError> {
    let file = OpenOptions::new().read(true).append(true).open(path).map_err(|e| OpenError::io(path, "open", e))?;
    side_files::refuse_unfit(path, &file)?;
    let Some(header) = schema.header() else { return Ok(()) };
    let lacks_header = || -> io::Result<bool> {
        let len = file.metadata()?.len();
        Ok(len == 0 || len == BYTE_ORDER_MARK.len() as u64 && std::fs::read(path)? == BYTE_ORDER_MARK)
    };
    let write = || -> io::Result<()> {
        (&file).write_all(&[&header[..], b"\n"].concat())?;
        file.sync_all()
    };
    let fail = |e| OpenError::io(path, "write the header of", e);
    if !lacks_header().map_err(fail)? {
        return Ok(());
    }
    let deadline = Instant::now() + START_WAIT;
    // Where locks don't work, the probe of the journal will say so.
    while let Err(TryLockError::WouldBlock) = file.try_lock() {
        if Instant::now() >= deadline {
            return Err(OpenError::Busy(path.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Another replica may have written it meanwhile. The lock ends with the handle.
    if lacks_header().map_err(fail)? { write().map_err(fail) } else { Ok(()) }
}

/// Makes a journal for a CSV that has none, once the CSV has been read through.
fn adopt(path: &Path, new_schema: &Arc<Schema>, journal_bytes: u64) -> Result<(), OpenError> {
    let csv = Arc::new(Files::open_to_read(path).map_err(|e| OpenError::io(path, "open", e))?);
    let format = Format::read(&csv, path, new_schema)?;
    let head = adopted_header(path, &csv, &format, journal_bytes)?;
    side_files::ensure_journal(&beside(path, ".journal"), path, &head, Layout::REAL)
        .map_err(|e| OpenError::io(path, "make the journal of", e))
}

/// Reads the CSV through and syncs it: the header of a journal that takes it as it is.
fn adopted_header(path: &Path, csv: &Arc<Files>, format: &Format, journal_bytes: u64) -> Result<Header, OpenError> {
    let fail = |e| OpenError::io(path, "read", e);
    let (rows, mark) = scan_tokens(Stretch::new(csv, Place::Csv, format.start, u64::MAX), format).map_err(fail)?;
    let whole = format.start + rows.whole_bytes;
    if rows.open.is_some_and(|open| open.in_quotes && open.bytes > TORN_BYTES_MAX) {
        return Err(OpenError::StrayQuote(path.to_owned(), whole));
    }
    csv.sync(Place::Csv).map_err(|e| OpenError::io(path, "sync", e))?;
    Ok(Header {
        journal: uuid::Uuid::new_v4().as_u128(),
        number: 0,
        bytes: journal_bytes,
        base: 0,
        next: Layout::REAL.space(),
        csv_bytes: whole,
        csv_print: print_of(csv, whole).map_err(fail)?,
        mark,
        lease: 0,
        keys: 0,
        rebuild: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csv::schema::Data;

    #[test]
    fn a_lease_that_ran_out_before_the_write_writes_nothing_and_a_kept_os_lock_is_waited_for_in_vain() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.csv");
        let mut storage = open(&path);
        let mut rows = storage.schema().rows();
        storage.schema().push(&Data::Text("x".into()), &mut rows).expect("fits");
        let mut append = |held: bool| {
            let now = Instant::now();
            let turn = Turn { token: 1, lease: 1, granted: now, timestamp: "", deadline: now, still_held: &|| held };
            storage.append(&[Entry { rows: &rows, key: None, keys_seen: 0, waited_ms: 0, released: true }], &turn)
        };
        assert!(matches!(append(false), Err(AppendError::LeaseLost)));
        let stopped = std::fs::File::open(beside(&path, ".journal")).expect("opens");
        stopped.lock().expect("locks");
        assert!(matches!(append(true), Err(AppendError::Busy)));
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "token,data\n");
        stopped.unlock().expect("unlocks");
        assert!(append(true).is_ok());
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "token,data\n1,x\n");
    }

    #[test]
    fn a_key_that_waited_while_its_first_try_may_have_been_forgotten_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.csv");
        let mut storage = open(&path);
        let mut rows = storage.schema().rows();
        storage.schema().push(&Data::Text("x".into()), &mut rows).expect("fits");
        let mut append = |name: String, keys_seen| {
            let (now, key) = (Instant::now(), Key::new(&name, &rows).expect("a key"));
            let turn = Turn { token: 1, lease: 1, granted: now, timestamp: "", deadline: now, still_held: &|| true };
            let entry = Entry { rows: &rows, key: Some(&key), keys_seen, waited_ms: 0, released: true };
            storage.append(&[entry], &turn).expect("written").remove(0)
        };
        for n in 0..100 {
            assert!(matches!(append(format!("k{n}"), n), Ok(Placed::Written { .. })));
        }
        assert_eq!(append("late".to_owned(), 0), Err(Refusal::Outrun));
        assert!(matches!(append("k0".to_owned(), 0), Ok(Placed::Replayed(_))), "what is remembered is answered");
        assert!(matches!(append("late".to_owned(), 1), Ok(Placed::Written { .. })));
    }

    fn open(path: &Path) -> Storage {
        Storage::open(Options {
            path: path.to_owned(),
            header: "token,data".to_owned(),
            replica: "r".to_owned(),
            journal_bytes: 1 << 20,
            keys: 100,
            accept_unlocked: false,
            meter: Arc::default(),
        })
        .expect("opens")
    }
}
