//! The CSV on disk and the journal beside it: a row is committed once it is recorded in the journal, and the CSV is made to
//! match the journal.
//!
//! Synchronous. Besides the embedded lock, the only module that writes files. docs/design/storage.md describes the order of
//! writes and syncs, docs/development/guards.md the guards and the tests that fail without them.

mod adopt;
mod check;
mod disk;
mod edited;
mod error;
mod file_parts;
mod files;
mod format;
mod hold;
mod journal;
mod keys;
mod ledger;
mod lock_file;
mod open;
mod open_line;
mod peer_file;
mod probe;
mod reader;
mod row_index;
mod safe_open;
mod side_files;
mod slow_call;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
mod types;
mod unsafe_side_file;
mod volume;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub use crate::storage::{
    check::{
        audit::{Fault, Finding, Sample},
        check,
        repair::{Replaced, create_missing, replace_journal},
        report::{CheckOptions, JournalReport, JournalState, Plan, RepairChoice, Report},
    },
    error::{AppendError, OpenError, Refusal},
    file_parts::{FileParts, Snapshot},
    lock_file::open_lock_file,
    peer_file::PeerFile,
    probe::probe,
    reader::{ReadError, Reader},
    side_files::resolve,
    types::{AppendEntry, EntryOutcome, IdleOutcome, KnownKey, NewRows, Options, Page, Position, Row, Turn},
    unsafe_side_file::UnsafeSideFile,
    volume::{VolumeInfo, VolumeKind, VolumeRefusal},
};

use rustix::fs::OFlags;

use crate::{
    csv::{idempotency_key::Key, schema::Schema},
    storage::{
        disk::Disk,
        files::{Files, OsLock},
        journal::Layout,
        ledger::{
            Ledger, RefreshOutcome, RepairMode,
            checkpoint::{PendingCheckpoint, sync_for_checkpoint},
        },
        safe_open::{Access, open_csv, open_side_file},
    },
};

/// A checkpoint begins once one half of the journal's space is in use.
const CHECKPOINT_DIVISOR: u64 = 2;
/// How long the end of a checkpoint waits for the OS lock.
const CHECKPOINT_LOCK_WAIT: Duration = Duration::from_millis(100);
/// How long `close` waits for the OS lock.
const CLOSE_LOCK_WAIT: Duration = Duration::from_secs(1);

/// One CSV, open for appending.
#[derive(Debug)]
pub struct Storage {
    volume: VolumeInfo,
    files: Arc<Files>,
    ledger: Ledger<Arc<Files>>,
    /// On a network volume, the OS lock is kept from one batch to the next, until `end_hold`.
    hold: Option<OsLock>,
    /// Holds in a row that a failed call of a network volume has ended.
    failed_holds: u32,
    /// Until when lease and OS lock may be kept while other replicas wait.
    keep_until: Instant,
    /// The last record when the last hold ended.
    own_until: u64,
    /// No other process wrote between the last two holds.
    is_alone: bool,
    checkpoint: Option<RunningCheckpoint>,
    /// The last checkpoint could not begin, which is logged once.
    checkpoint_failed: bool,
    /// The last record at the last idle refresh.
    idle_since: u64,
    keys_recorded: Arc<AtomicU64>,
    /// Whether the keys file has a slot for each key that this replica remembers.
    is_keys_file_large_enough: bool,
    /// The journal's size in bytes that this replica was started with, until a refresh has seen to it.
    journal_bytes_wanted: Option<u64>,
}

/// A checkpoint whose sync runs on a thread of its own.
#[derive(Debug)]
struct RunningCheckpoint {
    pending: PendingCheckpoint,
    sync: JoinHandle<io::Result<()>>,
}

impl Storage {
    /// The columns of the file.
    pub fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.ledger.format().schema)
    }

    /// The volume that holds the file.
    pub fn volume(&self) -> &VolumeInfo {
        &self.volume
    }

    /// The file's path, symbolic links resolved.
    pub fn path(&self) -> &Path {
        self.ledger.path()
    }

    /// The most that the encoded rows of one request may come to, in bytes.
    pub fn batch_bytes_max(&self) -> u64 {
        self.ledger.batch_bytes_max()
    }

    /// How long the last sync of the journal took.
    pub fn last_sync(&self) -> Duration {
        self.ledger.last_sync()
    }

    /// Whether the CSV and its journal may be opened for writing. Writes nothing.
    pub fn is_writable(&mut self) -> bool {
        let (csv, none) = (self.path(), OFlags::empty());
        let journal = side_files::side_path(csv, ".journal");
        open_csv(csv, Access::Append, none).is_ok() && open_side_file(&journal, csv, Access::Append, none).is_ok()
    }

    /// How many keys were ever recorded, as of the last refresh.
    pub fn keys_recorded(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.keys_recorded)
    }

    fn publish_keys_recorded(&self) {
        self.keys_recorded.store(self.ledger.keys_recorded(), Ordering::Relaxed);
    }

    /// Appends the rows of several requests with one record and one sync, and returns their outcomes in order. There are
    /// fewer outcomes than requests if one record can't hold them all, but at least one.
    ///
    /// # Errors
    /// For all requests. After `AppendError::Sync` and `AppendError::Unknown` the rows may be in the file; after every other
    /// error they are not.
    pub fn append(&mut self, entries: &[AppendEntry<'_>], turn: &Turn<'_>) -> Result<Vec<EntryOutcome>, AppendError> {
        let began = self.hold.is_none().then(Instant::now);
        let _lock = self.begin_hold(turn.deadline)?;
        let appended = self.ledger.append(entries, turn);
        let outcomes = match self.check_lock(appended) {
            Err(AppendError::Interrupted(e)) if self.ledger.is_in_doubt() => self.resolve(e)?,
            Err(AppendError::Interrupted(e)) => return Err(self.not_written(e)),
            other => other?,
        };
        self.failed_holds = 0;
        if let Some(began) = began {
            self.note_hold(began.elapsed());
        }
        self.publish_keys_recorded();
        let is_due = self.ledger.live_bytes() > self.ledger.journal_bytes() / CHECKPOINT_DIVISOR;
        if self.checkpoint.is_none() && is_due {
            // The rows are durable already, so a checkpoint that can't begin does not fail the append.
            match self.begin_checkpoint() {
                Err(e) if !std::mem::replace(&mut self.checkpoint_failed, true) => {
                    tracing::error!(error = %e, "cannot begin a checkpoint; retrying with each batch");
                }
                Err(_) => {}
                Ok(()) => self.checkpoint_failed = false,
            }
        }
        Ok(outcomes)
    }

    /// Records the turn's token before a sleep, so that older holders are fenced out from then on. If `key` is known, nothing
    /// is recorded, and what is known of it is returned.
    ///
    /// # Errors
    /// As `append`.
    pub fn fence(&mut self, key: Option<&Key>, turn: &Turn<'_>) -> Result<Option<KnownKey>, AppendError> {
        let _lock = self.begin_hold(turn.deadline)?;
        let fenced = self.ledger.fence(key, turn);
        self.without_rows(fenced)
    }

    /// Repairs what a killed process or host left behind. The caller holds the lock.
    ///
    /// # Errors
    /// As `append`.
    pub fn recover(&mut self, deadline: Instant) -> Result<(), AppendError> {
        let _lock = self.begin_hold(deadline)?;
        let recovered = self.ledger.recover();
        self.without_rows(recovered)?;
        self.end_hold();
        Ok(())
    }

    /// Like `recover`, and also quarantines an incomplete last line, which otherwise the next append does.
    ///
    /// # Errors
    /// As `append`.
    pub fn repair(&mut self, deadline: Instant) -> Result<(), AppendError> {
        let _lock = self.begin_hold(deadline)?;
        let recovered = self.ledger.recover();
        if let Some(open_line) = self.without_rows(recovered)? {
            let repaired = self.ledger.repair_open_line(open_line);
            self.without_rows(repaired)?;
        }
        self.end_hold();
        Ok(())
    }

    fn begin_checkpoint(&mut self) -> Result<(), AppendError> {
        if self.files.is_direct() {
            // Everything is durable already: there is nothing to wait for.
            let finished = self.ledger.checkpoint_now();
            return self.without_rows(finished);
        }
        let pending = self.ledger.begin_checkpoint()?;
        let files = Arc::clone(&self.files);
        let sync = thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || sync_for_checkpoint(&files, Layout::REAL))
            .map_err(AppendError::before("start a checkpoint thread for"))?;
        self.checkpoint = Some(RunningCheckpoint { pending, sync });
        Ok(())
    }

    /// Ends a checkpoint whose sync is done.
    ///
    /// # Errors
    /// `AppendError::Sync` if the sync failed: then this process must end.
    pub fn maintain(&mut self) -> Result<(), AppendError> {
        match self.checkpoint.take_if(|checkpoint| checkpoint.sync.is_finished()) {
            Some(checkpoint) => {
                let lock = self.files.lock(Instant::now() + CHECKPOINT_LOCK_WAIT);
                self.end_checkpoint(checkpoint, lock)
            }
            None => Ok(()),
        }
    }

    fn end_checkpoint(
        &mut self,
        RunningCheckpoint { pending, sync }: RunningCheckpoint,
        lock: Result<OsLock, AppendError>,
    ) -> Result<(), AppendError> {
        if let Err(e) = sync.join().unwrap_or_else(|_| Err(io::Error::other("the syncing thread panicked"))) {
            return Err(self.ledger.fail(e));
        }
        match lock {
            Ok(_lock) => self.ledger.finish_checkpoint(&pending),
            // The next checkpoint covers these records too.
            Err(AppendError::Busy) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Refreshes while no rows are queued, and begins a checkpoint if nothing was recorded since the previous call.
    ///
    /// # Errors
    /// As `maintain`, or that the files can't be read.
    pub fn idle_refresh(&mut self) -> Result<IdleOutcome, AppendError> {
        self.maintain()?;
        if self.checkpoint.is_some() {
            return Ok(IdleOutcome::Checkpointing);
        }
        let _lock = match self.begin_hold(Instant::now()) {
            Ok(lock) => lock,
            Err(AppendError::Busy) => return Ok(IdleOutcome::Clean),
            Err(e) => return Err(e),
        };
        let outcome = self.refresh_and_checkpoint();
        self.end_hold();
        outcome
    }

    fn refresh_and_checkpoint(&mut self) -> Result<IdleOutcome, AppendError> {
        let refreshed = self.ledger.refresh(RepairMode::Forbidden);
        let outcome = self.without_rows(refreshed)?;
        self.failed_holds = 0;
        self.publish_keys_recorded();
        let sequence = self.ledger.last_sequence();
        let is_quiet = std::mem::replace(&mut self.idle_since, sequence) == sequence;
        match outcome {
            RefreshOutcome::NeedsRepair => return Ok(IdleOutcome::NeedsRepair),
            RefreshOutcome::Consistent(Some(open_line)) => self.ledger.find_several_lines(open_line)?,
            RefreshOutcome::Consistent(None) => {}
        }
        let resized = self.resize_journal();
        self.without_rows(resized)?;
        if !is_quiet || !self.ledger.is_dirty() {
            return Ok(IdleOutcome::Clean);
        }
        self.begin_checkpoint()?;
        Ok(if self.checkpoint.is_some() { IdleOutcome::Checkpointing } else { IdleOutcome::Clean })
    }

    /// Makes a last checkpoint: afterwards the CSV is complete and durable without its journal.
    ///
    /// # Errors
    /// As `maintain`, or that the files can't be read.
    pub fn close(mut self) -> Result<(), AppendError> {
        if let Some(checkpoint) = self.checkpoint.take() {
            let lock = self.files.lock(Instant::now() + CLOSE_LOCK_WAIT);
            self.end_checkpoint(checkpoint, lock)?;
        }
        let _lock = match self.begin_hold(Instant::now() + CLOSE_LOCK_WAIT) {
            Ok(lock) => lock,
            Err(AppendError::Busy) => return Ok(()),
            Err(e) => return Err(e),
        };
        let outcome = self.ledger.refresh(RepairMode::Forbidden)?;
        if outcome != RefreshOutcome::NeedsRepair && self.ledger.is_dirty() {
            self.ledger.checkpoint_now()?;
        }
        Ok(())
    }
}
