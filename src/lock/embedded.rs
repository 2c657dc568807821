//! The embedded lock: an OS lock on `<csv>.lock`, for processes of one host. The kernel frees it when its holder dies.
//!
//! The file holds, as one JSON object of fixed size, the last holder, its token, and until when an abandoned lock binds.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    api::lock_status::{LockKind, LockState, LockStatus},
    lock::{Options, Try},
};
use crate::{fencing::FencingToken, time::ms};

/// One write of this size at offset 0 replaces the state as a whole.
const STATE_BYTES: usize = 256;

pub(crate) struct EmbeddedLock {
    path: PathBuf,
    file: Arc<File>,
    options: Options,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    token: FencingToken,
    holder: String,
    /// Unix milliseconds; 0 where the lock was not abandoned. A wall clock, since processes must share it: it decides
    /// about waiting only.
    abandoned_until_ms: u64,
}

impl EmbeddedLock {
    pub(crate) fn open(path: &Path, options: Options) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let lock = Self { path: path.to_owned(), file: Arc::new(file), options };
        lock.read_state()?;
        Ok(lock)
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.options.ttl
    }

    fn read_state(&self) -> io::Result<State> {
        let mut text = [0; STATE_BYTES];
        let read = self.file.read_at(&mut text, 0)?;
        if read == 0 {
            return Ok(State::default());
        }
        serde_json::from_slice(&text[..read])
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("not a lock file: {e}")))
    }

    /// Whether a process keeps it, as the system tells a handle of our own.
    fn is_kept(&self) -> io::Result<bool> {
        let handle = File::open(&self.path)?;
        match handle.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    pub(crate) fn status(&self) -> io::Result<LockStatus> {
        let (kept, state) = (self.is_kept()?, self.read_state()?);
        let left = state.abandoned_until_ms.saturating_sub(unix_ms());
        let held = kept || left > 0;
        Ok(LockStatus {
            lock: LockKind::Embedded,
            state: if held { LockState::Held } else { LockState::Free },
            holder: held.then_some(state.holder),
            token: held.then_some(state.token),
            ttl_ms: (!kept && held).then_some(left),
            waiters: Vec::new(),
        })
    }

    pub(crate) fn next_token(&self) -> io::Result<FencingToken> {
        Ok(self.read_state()?.token + 1)
    }

    /// Ends the time for which an abandoned lock binds. One that a process keeps is its own until that ends.
    pub(crate) fn force(&self) -> io::Result<bool> {
        let Some(mut lease) = self.try_lock()? else { return Ok(false) };
        let bound = lease.state.abandoned_until_ms > unix_ms();
        lease.state.abandoned_until_ms = 0;
        lease.write_state()?;
        Ok(bound)
    }

    /// Gets hold of the file, and says nothing of who may have the lock.
    fn try_lock(&self) -> io::Result<Option<EmbeddedLease>> {
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        // Unlocks when dropped, also if the state can't be read.
        let mut lease = EmbeddedLease { file: Arc::clone(&self.file), ttl: self.options.ttl, state: State::default() };
        lease.state = self.read_state()?;
        Ok(Some(lease))
    }

    pub(crate) fn try_acquire(&self) -> io::Result<Try<(FencingToken, EmbeddedLease)>> {
        let Some(mut lease) = self.try_lock()? else { return Ok(Try::Held(None)) };
        let left = Duration::from_millis(lease.state.abandoned_until_ms.saturating_sub(unix_ms()));
        if !left.is_zero() {
            // A wall clock that was set back must not bind anyone for longer than a whole time to live.
            if left > self.options.ttl {
                lease.state.abandoned_until_ms = unix_ms() + ms(self.options.ttl);
                lease.write_state()?;
            }
            return Ok(Try::Held(Some(left)));
        }
        lease.state.token += 1;
        lease.state.holder.clone_from(&self.options.replica);
        lease.state.abandoned_until_ms = 0;
        lease.write_state()?;
        Ok(Try::Granted((lease.state.token, lease)))
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, ms)
}

/// Holds the OS lock until dropped.
pub(crate) struct EmbeddedLease {
    file: Arc<File>,
    ttl: Duration,
    state: State,
}

impl EmbeddedLease {
    fn write_state(&self) -> io::Result<()> {
        let mut text = serde_json::to_vec(&self.state)?;
        assert!(text.len() < STATE_BYTES, "a replica's name is bounded");
        text.resize(STATE_BYTES - 1, b' ');
        text.push(b'\n');
        self.file.write_all_at(&text, 0)
    }

    pub(crate) fn release(self) {}

    pub(crate) fn release_and_raise(mut self, mark: FencingToken) {
        self.state.token = self.state.token.max(mark);
        if let Err(e) = self.write_state() {
            tracing::warn!(error = %e, "cannot raise the token; trying again at the next grant");
        }
    }

    pub(crate) fn abandon(mut self) {
        self.state.abandoned_until_ms = unix_ms() + ms(self.ttl);
        if let Err(e) = self.write_state() {
            tracing::warn!(error = %e, "an abandoned lock is free at once");
        }
    }
}

impl Drop for EmbeddedLease {
    fn drop(&mut self) {
        if let Err(e) = self.file.unlock() {
            tracing::error!(error = %e, "cannot unlock the lock file");
        }
    }
}
