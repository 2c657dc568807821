//! The embedded lock: an OS lock on `<csv>.lock`, for processes of one host. The kernel frees it when its holder dies.
//!
//! The file is one JSON object of fixed size: the last holder, its token, and the time until which an abandoned lock stays held. It is
//! never synced. After a power cut it may hold anything, and then the lock is free: storage refuses its low tokens until the committer
//! has raised them above the journal's.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rustix::fs::OFlags;
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
/// No replica comes near this token, so that the next one can always be counted.
const TOKEN_MAX: FencingToken = i64::MAX as FencingToken;
/// The longest time to live that the settings accept. It bounds what a file claims, and files of versions that did not write theirs.
const TTL_MAX_MS: u64 = 3_600_000;

pub(super) struct EmbeddedLock {
    path: PathBuf,
    file: Arc<File>,
    /// Locked while the OS lock is tried: a status call that tries it for a moment must not look like another holder.
    trying: Mutex<()>,
    options: Options,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    token: FencingToken,
    holder: String,
    /// Unix milliseconds; 0 if the lock was not abandoned. It only decides how long replicas wait, so a wall clock, which processes
    /// share, is enough.
    abandoned_until_ms: u64,
    /// The time to live of the process that abandoned the lock, in milliseconds; 0 in files of versions that did not write it.
    #[serde(default)]
    abandoned_ttl_ms: u64,
}

impl State {
    /// Parses the file; `None` if it is not what one write leaves.
    fn parse(text: &[u8]) -> Option<Self> {
        let is_whole = text.len() == STATE_BYTES && text.ends_with(b"\n");
        let state: Self = is_whole.then(|| serde_json::from_slice(text).ok()).flatten()?;
        (state.token < TOKEN_MAX).then_some(state)
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec(self)?;
        if text.len() >= STATE_BYTES {
            // Another program's name: names of replicas are shorter.
            text = serde_json::to_vec(&Self { holder: String::new(), ..*self })?;
        }
        assert!(text.len() < STATE_BYTES, "numbers are bounded");
        text.resize(STATE_BYTES - 1, b' ');
        text.push(b'\n');
        Ok(text)
    }

    /// How long an abandoned lock stays held.
    fn abandoned_for(&self) -> Duration {
        Duration::from_millis(self.latest_end_ms().saturating_sub(unix_ms()))
    }

    /// The end of an abandoned lock. One that is farther away than the time to live of the process that set it means that the wall clock
    /// was set back since: then it binds for that time from now.
    fn latest_end_ms(&self) -> u64 {
        let ttl_ms = if self.abandoned_ttl_ms == 0 { TTL_MAX_MS } else { self.abandoned_ttl_ms.min(TTL_MAX_MS) };
        self.abandoned_until_ms.min(unix_ms() + ttl_ms)
    }
}

impl EmbeddedLock {
    pub(super) fn new(path: PathBuf, file: File, options: Options) -> Self {
        let lock = Self { path, file: Arc::new(file), trying: Mutex::new(()), options };
        let is_new = lock.file.metadata().is_ok_and(|metadata| metadata.len() == 0);
        if !is_new && matches!(lock.read_state(), Ok(None)) {
            let path = lock.path.display();
            tracing::warn!(%path, "the lock file is not whole, as after a power cut: the lock counts as free");
        }
        lock
    }

    pub(super) fn ttl(&self) -> Duration {
        self.options.ttl
    }

    pub(super) fn try_acquire(&self) -> io::Result<AcquireAttempt<(FencingToken, EmbeddedLease)>> {
        let _running = self.options.progress.enter("lock");
        let Some(mut lease) = self.try_lock_file()? else { return Ok(AcquireAttempt::Held { expires_in: None }) };
        let abandoned_for = lease.state.abandoned_for();
        if !abandoned_for.is_zero() {
            let latest_end_ms = lease.state.latest_end_ms();
            if lease.state.abandoned_until_ms > latest_end_ms {
                lease.state.abandoned_until_ms = latest_end_ms;
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
        let abandoned_for = state.as_ref().map_or(Duration::ZERO, State::abandoned_for);
        let is_held = is_locked || !abandoned_for.is_zero();
        let known = state.filter(|_| is_held);
        Ok(LockStatus {
            lock: LockKind::Embedded,
            state: if is_held { LockState::Held } else { LockState::Free },
            foreign_type: None,
            token: known.as_ref().map(|state| state.token),
            holder: known.map(|state| state.holder),
            ttl_ms: (!is_locked && is_held).then(|| ms(abandoned_for)),
            waiters: Vec::new(),
        })
    }

    pub(super) fn next_token(&self) -> io::Result<FencingToken> {
        let _running = self.options.progress.enter("lock");
        Ok(self.read_state()?.unwrap_or_default().token + 1)
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

    /// The state in the file; `None` if it is not whole.
    fn read_state(&self) -> io::Result<Option<State>> {
        let mut text = [0; STATE_BYTES + 1];
        let read = self.file.read_at(&mut text, 0)?;
        Ok(State::parse(&text[..read]))
    }

    fn trying(&self) -> MutexGuard<'_, ()> {
        self.trying.lock().expect("no code panics while it holds this mutex")
    }

    /// Whether a process holds the OS lock, tried on a handle of its own: locks on `self.file` do not exclude this process.
    fn is_file_locked(&self) -> io::Result<bool> {
        let no_link = OFlags::NOFOLLOW.bits().cast_signed();
        let handle = OpenOptions::new().read(true).custom_flags(no_link).open(&self.path)?;
        let _trying = self.trying();
        match handle.try_lock_shared() {
            Ok(()) => {
                handle.unlock()?;
                Ok(false)
            }
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Takes the OS lock, whether or not the lock was abandoned. Returns `None` if another process holds it.
    fn try_lock_file(&self) -> io::Result<Option<EmbeddedLease>> {
        let trying = self.trying();
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        drop(trying);
        // Made before the state is read, because its drop unlocks the file if that fails.
        let (file, ttl, progress) = (Arc::clone(&self.file), self.options.ttl, self.options.progress.clone());
        let mut lease = EmbeddedLease { file, ttl, progress, state: State::default(), is_whole: false };
        if let Some(state) = self.read_state()? {
            (lease.state, lease.is_whole) = (state, true);
        }
        Ok(Some(lease))
    }
}

/// Holds the OS lock until it is dropped.
pub(super) struct EmbeddedLease {
    file: Arc<File>,
    ttl: Duration,
    progress: Progress,
    state: State,
    /// Whether the file had a state when the OS lock was taken.
    is_whole: bool,
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
        let ttl_ms = ms(self.ttl);
        (self.state.abandoned_until_ms, self.state.abandoned_ttl_ms) = (unix_ms() + ttl_ms, ttl_ms);
        if let Err(e) = self.write_state() {
            tracing::warn!(error = %e, "the abandoned lock is free at once");
        }
    }

    fn write_state(&self) -> io::Result<()> {
        let _running = self.progress.enter("lock");
        self.file.write_all_at(&self.state.encode()?, 0)?;
        // Another program's text may be longer.
        if self.is_whole { Ok(()) } else { self.file.set_len(STATE_BYTES as u64) }
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

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use tempfile::TempDir;

    use super::*;

    const HOUR_MS: u64 = TTL_MAX_MS;

    struct Bench {
        folder: TempDir,
    }

    impl Bench {
        fn with_content(content: &[u8]) -> Self {
            let bench = Self { folder: tempfile::tempdir().expect("a folder") };
            fs::write(bench.path(), content).expect("written");
            bench
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("rows.csv.lock")
        }

        /// A lock of another process: its handle has OS locks of its own.
        fn lock(&self, ttl: Duration) -> EmbeddedLock {
            let file = OpenOptions::new().read(true).write(true).open(self.path()).expect("opens");
            let (replica, meter) = ("r".repeat(64), Arc::default());
            let options = Options { replica, ttl, tls: Default::default(), meter, progress: Progress::default() };
            EmbeddedLock::new(self.path(), file, options)
        }

        fn content(&self) -> Vec<u8> {
            fs::read(self.path()).expect("a file")
        }
    }

    /// A whole file with this JSON in it.
    fn whole(json: &str) -> Vec<u8> {
        format!("{json:<width$}\n", width = STATE_BYTES - 1).into_bytes()
    }

    fn granted(lock: &EmbeddedLock) -> Option<(FencingToken, EmbeddedLease)> {
        match lock.try_acquire().expect("a lock file") {
            AcquireAttempt::Granted(granted) => Some(granted),
            AcquireAttempt::Held { .. } => None,
        }
    }

    #[test]
    fn file_of_any_content_is_a_lock() {
        let state = whole(r#"{"token":7,"holder":"one","abandoned_until_ms":0}"#);
        let at = state.iter().position(|&byte| byte == b'}').expect("JSON");
        let longest = whole(&format!(r#"{{"token":7,"holder":"{}","abandoned_until_ms":0}}"#, "x".repeat(205)));
        let free: [(&str, Vec<u8>); 14] = [
            ("new", Vec::new()),
            ("zeros after a power cut", vec![0; STATE_BYTES]),
            ("fewer zeros", vec![0; 100]),
            ("cut within the JSON", state[..at].to_vec()),
            ("cut behind the JSON", state[..=at].to_vec()),
            ("one byte short", state[..STATE_BYTES - 1].to_vec()),
            ("one byte long", [&*state, b"\n"].concat()),
            ("half of it zeros", [&state[..20], &[0; STATE_BYTES - 20]].concat()),
            ("two states, mixed", [&state[..30], &whole("{}")[30..]].concat()),
            ("other text", b"1234\n".to_vec()),
            ("other text of the same size", vec![b'\n'; STATE_BYTES]),
            ("not UTF-8", vec![0xff; 3 * STATE_BYTES]),
            ("other JSON", whole(r#"{"pid":1}"#)),
            ("a token at the end", whole(&format!(r#"{{"token":{},"holder":"","abandoned_until_ms":0}}"#, u64::MAX))),
        ];
        for (what, content) in free {
            let bench = Bench::with_content(&content);
            let lock = bench.lock(Duration::from_secs(10));
            assert_eq!(lock.status().expect("readable").state, LockState::Free, "{what}");
            assert_eq!(lock.next_token().expect("readable"), 1, "{what}");
            let (token, lease) = granted(&lock).unwrap_or_else(|| panic!("{what} is held"));
            assert_eq!(token, 1, "{what}");
            // As the committer does after a refusal by the journal.
            lease.release_and_raise_token(41);
            let (token, lease) = granted(&lock).unwrap_or_else(|| panic!("{what} is held"));
            assert_eq!((token, bench.content().len()), (42, STATE_BYTES), "{what}");
            lease.abandon();
            assert_eq!(lock.status().expect("readable").token, Some(42), "{what}");
        }
        for (what, content) in [("of an older version", state), ("with the longest name", longest)] {
            let bench = Bench::with_content(&content);
            let lock = bench.lock(Duration::from_secs(10));
            let (token, lease) = granted(&lock).unwrap_or_else(|| panic!("{what} is held"));
            assert_eq!(token, 8, "{what}");
            lease.abandon();
            assert!(State::parse(&bench.content()).is_some(), "{what}");
        }
    }

    #[test]
    fn deadline_in_the_file_binds_processes_of_any_time_to_live() {
        // (deadline from now, time to live in the file, how long the lock stays held)
        for (until_ms, ttl_ms, held_ms) in [
            (HOUR_MS, Some(HOUR_MS), HOUR_MS),
            (60_000, Some(HOUR_MS), 60_000),
            // The clock was set back since: not longer than the abandoned lease would have lasted.
            (HOUR_MS, Some(60_000), 60_000),
            (1000 * HOUR_MS, Some(HOUR_MS), HOUR_MS),
            // Of a version that did not write its time to live.
            (HOUR_MS, None, HOUR_MS),
            (1000 * HOUR_MS, None, HOUR_MS),
            // No setting is that long.
            (u64::MAX / 2, Some(u64::MAX), HOUR_MS),
        ] {
            let until = unix_ms() + until_ms;
            let ttl = ttl_ms.map(|ttl| format!(r#","abandoned_ttl_ms":{ttl}"#)).unwrap_or_default();
            let json = format!(r#"{{"token":7,"holder":"one","abandoned_until_ms":{until}{ttl}}}"#);
            let bench = Bench::with_content(&whole(&json));
            let lock = bench.lock(Duration::from_millis(100));
            let shown = lock.status().expect("readable").ttl_ms.expect("abandoned");
            let AcquireAttempt::Held { expires_in: Some(expires_in) } = lock.try_acquire().expect("readable") else {
                panic!("{json} is free");
            };
            // Other processes share the time that is left, which the test's own time shortens.
            for left in [shown, ms(expires_in), ms(State::parse(&bench.content()).expect("whole").abandoned_for())] {
                assert!(left <= held_ms && left + 30_000 > held_ms, "{json}: {left} ms");
            }
            assert!(lock.force_release().expect("released") && granted(&lock).is_some(), "{json}");
        }
        let bench = Bench::with_content(&whole(r#"{"token":7,"holder":"one","abandoned_until_ms":1}"#));
        assert!(granted(&bench.lock(Duration::from_secs(3600))).is_some(), "the deadline has passed");
    }

    #[test]
    fn abandoned_lock_is_read_by_the_version_before() {
        #[derive(Deserialize)]
        struct Before {
            token: FencingToken,
            holder: String,
            abandoned_until_ms: u64,
        }
        let bench = Bench::with_content(b"");
        let lock = bench.lock(Duration::from_secs(3600));
        granted(&lock).expect("free").1.abandon();
        let Before { token, holder, abandoned_until_ms } = serde_json::from_slice(&bench.content()).expect("JSON");
        assert_eq!((token, holder.len()), (1, 64));
        assert!(abandoned_until_ms > unix_ms());
        // A process whose own time to live is shorter waits, too.
        assert!(granted(&bench.lock(Duration::from_millis(100))).is_none());
    }

    #[test]
    fn status_call_never_looks_like_a_holder() {
        let bench = Bench::with_content(b"");
        let lock = bench.lock(Duration::from_secs(10));
        thread::scope(|scope| {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let lock = &lock;
            scope.spawn(move || {
                while ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    lock.status().expect("readable");
                }
            });
            for turn in 1..=20_000 {
                let (token, lease) = granted(lock).unwrap_or_else(|| panic!("held in turn {turn}"));
                assert_eq!(token, turn);
                lease.release();
            }
            drop(end);
        });
    }
}
