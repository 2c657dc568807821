//! Holds: the OS lock is taken for one batch, or on a network volume for several, and a failed call there ends the hold.

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use crate::storage::{
    Storage, disk::Disk, error::AppendError, files::OsLock, ledger::direct::Resolution, types::EntryOutcome,
};

/// How long an interrupted append tries for a new OS lock, to find out whether its rows were written.
const RESOLVE_WAIT: Duration = Duration::from_secs(5);
/// How often it tries.
const RESOLVE_TRIES: u32 = 3;
/// How many holds in a row may end in a failed call before the volume counts as failing.
const LOST_LOCKS_MAX: u32 = 2;
/// A hold on a network volume lasts this many times as long as it takes to begin one, within these bounds.
const KEEP_FACTOR: u32 = 8;
const KEEP_MIN: Duration = Duration::from_millis(10);
const KEEP_MAX: Duration = Duration::from_millis(50);

impl Storage {
    /// Takes the OS lock. On a network volume it is kept until `end_hold`.
    pub(super) fn begin_hold(&mut self, deadline: Instant) -> Result<Option<OsLock>, AppendError> {
        if !self.files.is_direct() {
            let lock = self.files.lock(deadline)?;
            // guard: room_for_keys: keys are not stored in a file that has fewer slots than this replica remembers
            self.make_room_for_keys()?;
            return Ok(Some(lock));
        }
        if self.hold.is_none() {
            self.ledger.end_hold();
            let locked = self.files.lock(deadline);
            self.hold = Some(self.without_rows(locked)?);
            let made = self.make_room_for_keys();
            self.without_rows(made)?;
        }
        Ok(None)
    }

    /// Releases what is kept of the OS lock. Another replica that gets the lease waits for that.
    pub fn end_hold(&mut self) {
        self.own_until = self.ledger.last_sequence();
        self.ledger.end_hold();
        self.hold = None;
    }

    /// Whether the OS lock is kept from the last batch.
    pub fn is_holding(&self) -> bool {
        self.hold.is_some()
    }

    /// Whether no other process wrote between the last two holds.
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Until when lease and OS lock may be kept while other replicas wait. `None` where the OS lock is not kept.
    pub fn keep_until(&self) -> Option<Instant> {
        self.files.is_direct().then_some(self.keep_until)
    }

    /// Notes how long a hold took to begin, with its first batch.
    pub(super) fn note_hold(&mut self, took: Duration) {
        self.is_alone = self.ledger.last_sequence() == self.own_until + 1;
        // Without the two writes of the batch itself.
        let cost = took.saturating_sub(self.ledger.last_sync() * 2);
        self.keep_until = Instant::now() + (cost * KEEP_FACTOR).clamp(KEEP_MIN, KEEP_MAX);
    }

    /// Ends the hold after a failed call of a network volume, since the OS lock may be lost.
    pub(super) fn check_lock<T>(&mut self, result: Result<T, AppendError>) -> Result<T, AppendError> {
        let error = match result {
            Err(e @ (AppendError::Before { .. } | AppendError::Interrupted(_))) if self.files.is_direct() => e,
            other => return other,
        };
        self.ledger.forget();
        self.end_hold();
        self.failed_holds += 1;
        Err(match error {
            AppendError::Before { source, .. } if is_lost_lock(&source) => self.not_written(source),
            other => other,
        })
    }

    /// The failure of a call after which no row of the batch is written. The lock is not to blame if it repeats under new locks.
    pub(super) fn not_written(&self, source: io::Error) -> AppendError {
        if self.failed_holds <= LOST_LOCKS_MAX {
            AppendError::LockLost(source)
        } else {
            AppendError::Before { doing: "read or write", source }
        }
    }

    /// As `check_lock`, for a call that writes no rows.
    pub(super) fn without_rows<T>(&mut self, result: Result<T, AppendError>) -> Result<T, AppendError> {
        self.check_lock(result).map_err(|e| match e {
            AppendError::Interrupted(e) => self.not_written(e),
            other => other,
        })
    }

    /// Finds out, under a new OS lock, what became of an interrupted append.
    pub(super) fn resolve(&mut self, cause: io::Error) -> Result<Vec<EntryOutcome>, AppendError> {
        tracing::warn!(error = %cause, "a write was interrupted; reading the journal again to find out whether the rows were written");
        for _ in 0..RESOLVE_TRIES {
            let found = self.begin_hold(Instant::now() + RESOLVE_WAIT).and_then(|_| self.ledger.resolve());
            match self.check_lock(found) {
                Ok(Resolution::Written(outcomes)) => return Ok(outcomes),
                Ok(Resolution::NotWritten) => return Err(self.not_written(cause)),
                Ok(Resolution::Unknown) => break,
                Err(e) => tracing::debug!(error = %e, "the journal cannot be read again yet"),
            }
        }
        Err(AppendError::Unknown(cause))
    }
}

/// Whether the error is what a server answers under a lock, or for a handle, that it has given up.
fn is_lost_lock(e: &io::Error) -> bool {
    let found = e.raw_os_error().map(Errno::from_raw_os_error);
    found.is_some_and(|it| [Errno::IO, Errno::STALE, Errno::BADF, Errno::NOLCK, Errno::REMOTEIO].contains(&it))
}
