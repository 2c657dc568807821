//! The embedded lock: an OS lock on `<csv>.lock`, for processes of one host. The kernel frees it when its holder dies.
//!
//! The file is one JSON object of fixed size: the last holder, its token, and the time until which an abandoned lock stays held.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    api::lock_status::{LockKind, LockState, LockStatus},
    fencing::FencingToken,
    lock::types::{AcquireAttempt, Options},
    progress::Progress,
    time::{ms, unix_ms},
};

/// Size of the file: one write at offset 0 replaces the whole state.
const STATE_BYTES: usize = 256;

pub(super) struct EmbeddedLock {
    path: PathBuf,
    file: Arc<File>,
    options: Options,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    token: FencingToken,
    holder: String,
    /// Unix milliseconds; 0 if the lock was not abandoned. It only decides how long replicas wait, so a wall clock, which processes
    /// share, is enough.
    abandoned_until_ms: u64,
}

impl State {
    /// How long an abandoned lock stays held.
    fn abandoned_for(&self) -> Duration {
        Duration::from_millis(self.abandoned_until_ms.saturating_sub(unix_ms()))
    }
}

impl EmbeddedLock {
    pub(super) fn open(path: &Path, options: Options) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let lock = Self { path: path.to_owned(), file: Arc::new(file), options };
        lock.read_state()?;
        Ok(lock)
    }

    pub(super) fn ttl(&self) -> Duration {
        self.options.ttl
    }

    pub(super) fn try_acquire(&self) -> io::Result<AcquireAttempt<(FencingToken, EmbeddedLease)>> {
        let _running = self.options.progress.enter("lock");
        let Some(mut lease) = self.try_lock_file()? else { return Ok(AcquireAttempt::Held { expires_in: None }) };
        let abandoned_for = lease.state.abandoned_for();
        if !abandoned_for.is_zero() {
            // If the wall clock was set back, wait for one time to live, not longer.
            if abandoned_for > self.options.ttl {
                lease.state.abandoned_until_ms = unix_ms() + ms(self.options.ttl);
                lease.write_state()?;
            }
            return Ok(AcquireAttempt::Held { expires_in: Some(abandoned_for) });
        }
        lease.state.token += 1;
        lease.state.holder.clone_from(&self.options.replica);
        lease.state.abandoned_until_ms = 0;
        lease.write_state()?;
        Ok(AcquireAttempt::Granted((lease.state.token, lease)))
    }

    pub(super) fn status(&self) -> io::Result<LockStatus> {
        let (is_locked, state) = (self.is_file_locked()?, self.read_state()?);
        let abandoned_for = state.abandoned_for();
        let is_held = is_locked || !abandoned_for.is_zero();
        Ok(LockStatus {
            lock: LockKind::Embedded,
            state: if is_held { LockState::Held } else { LockState::Free },
            foreign_type: None,
            holder: is_held.then_some(state.holder),
            token: is_held.then_some(state.token),
            ttl_ms: (!is_locked && is_held).then(|| ms(abandoned_for)),
            waiters: Vec::new(),
        })
    }

    pub(super) fn next_token(&self) -> io::Result<FencingToken> {
        let _running = self.options.progress.enter("lock");
        Ok(self.read_state()?.token + 1)
    }

    /// Frees an abandoned lock; returns whether there was one. A lock that a live process holds cannot be taken from it.
    pub(super) fn force_release(&self) -> io::Result<bool> {
        let _running = self.options.progress.enter("lock");
        let Some(mut lease) = self.try_lock_file()? else { return Ok(false) };
        let was_held = !lease.state.abandoned_for().is_zero();
        lease.state.abandoned_until_ms = 0;
        lease.write_state()?;
        Ok(was_held)
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

    /// Whether a process holds the OS lock, tried on a handle of its own: locks on `self.file` do not exclude this process.
    fn is_file_locked(&self) -> io::Result<bool> {
        let handle = File::open(&self.path)?;
        match handle.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Takes the OS lock, whether or not the lock was abandoned. Returns `None` if another process holds it.
    fn try_lock_file(&self) -> io::Result<Option<EmbeddedLease>> {
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        // Made before the state is read, because its drop unlocks the file if that fails.
        let (file, ttl, progress) = (Arc::clone(&self.file), self.options.ttl, self.options.progress.clone());
        let mut lease = EmbeddedLease { file, ttl, progress, state: State::default() };
        lease.state = self.read_state()?;
        Ok(Some(lease))
    }
}

/// Holds the OS lock until it is dropped.
pub(super) struct EmbeddedLease {
    file: Arc<File>,
    ttl: Duration,
    progress: Progress,
    state: State,
}

impl EmbeddedLease {
    pub(super) fn release(self) {}

    pub(super) fn release_and_raise_token(mut self, highest_token: FencingToken) {
        self.state.token = self.state.token.max(highest_token);
        if let Err(e) = self.write_state() {
            tracing::warn!(error = %e, "cannot raise the token; the next grant tries again");
        }
    }

    pub(super) fn abandon(mut self) {
        self.state.abandoned_until_ms = unix_ms() + ms(self.ttl);
        if let Err(e) = self.write_state() {
            tracing::warn!(error = %e, "the abandoned lock is free at once");
        }
    }

    fn write_state(&self) -> io::Result<()> {
        let _running = self.progress.enter("lock");
        let mut text = serde_json::to_vec(&self.state)?;
        assert!(text.len() < STATE_BYTES, "a replica's name is bounded");
        text.resize(STATE_BYTES - 1, b' ');
        text.push(b'\n');
        self.file.write_all_at(&text, 0)
    }
}

impl Drop for EmbeddedLease {
    fn drop(&mut self) {
        let _running = self.progress.enter("lock");
        if let Err(e) = self.file.unlock() {
            tracing::error!(error = %e, "cannot unlock the lock file");
        }
    }
}
