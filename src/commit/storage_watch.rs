//! Notices that the volume does not answer, for the log, for readiness and for requests that wait.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    progress::{Progress, StuckCall},
    storage::{self, Storage},
};

/// The interval between two looks at the calls that run.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// The interval between two probes of the volume, so that a replica without rows notices, too.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The name of the call at the start, which may take long for other reasons as well.
pub(super) const OPEN: &str = "open";
/// The name of the call that writes rows.
pub(super) const APPEND: &str = "append";

/// Whether the volume answers. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct StorageWatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The calls of the committer: while one is stuck, the lease is not renewed.
    committer: Progress,
    /// The probe, which holds nothing.
    probe: Progress,
    is_stuck: watch::Sender<bool>,
}

impl StorageWatch {
    /// Starts to watch, on the current runtime, until the last clone is dropped.
    pub(super) fn start() -> Self {
        let shared =
            Shared { committer: Progress::default(), probe: Progress::default(), is_stuck: watch::Sender::new(false) };
        let watch = Self(Arc::new(shared));
        tokio::spawn(log_changes(Arc::downgrade(&watch.0)));
        watch
    }

    /// Starts to probe the volume of this file.
    pub(super) fn start_probe(&self, path: PathBuf) -> std::io::Result<()> {
        let (progress, shared) = (self.0.probe.clone(), Arc::downgrade(&self.0));
        let probe = move || {
            while shared.strong_count() > 0 {
                let call = progress.enter("statvfs");
                // An error is an answer; those who read and write report it.
                let _ = storage::probe(&path);
                drop(call);
                thread::sleep(PROBE_INTERVAL);
            }
        };
        thread::Builder::new().name("probe".to_owned()).spawn(probe).map(drop)
    }

    /// The calls of the committer.
    pub(super) fn committer(&self) -> &Progress {
        &self.0.committer
    }

    /// The stuck call, if there is one.
    pub(super) fn stuck(&self) -> Option<StuckCall> {
        self.0.stuck()
    }

    /// Returns once a call is stuck.
    pub(super) async fn until_stuck(&self) {
        // An error would mean that the sender was dropped, but its caller holds it.
        let _ = self.0.is_stuck.subscribe().wait_for(|stuck| *stuck).await;
    }
}

impl Shared {
    fn stuck(&self) -> Option<StuckCall> {
        let calls = [self.committer.stuck(), self.probe.stuck()];
        calls.into_iter().flatten().max_by_key(|call| call.running_for)
    }
}

/// Logs when a call gets stuck and when all calls return again.
async fn log_changes(shared: Weak<Shared>) {
    let mut interval = tokio::time::interval(CHECK_INTERVAL);
    let mut last: Option<StuckCall> = None;
    loop {
        interval.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let now = shared.stuck();
        match (now, last) {
            (Some(StuckCall { name: OPEN, .. }), None) => tracing::warn!(
                "opening the CSV takes more than a second: the file is large, another process has it locked, or the volume does not answer"
            ),
            (Some(StuckCall { name, running_for }), None) => tracing::warn!(
                call = name,
                ?running_for,
                "a storage call does not return: the volume does not answer. This replica is not ready and does not renew its lease, so that others go on"
            ),
            (None, Some(StuckCall { name: OPEN, running_for })) => {
                tracing::info!(took = ?running_for, "the CSV is open")
            }
            (None, Some(StuckCall { name, running_for })) => {
                tracing::info!(call = name, stuck_for = ?running_for, "the storage call has returned: the volume answers again");
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        last = now;
        shared.is_stuck.send_if_modified(|is_stuck| std::mem::replace(is_stuck, now.is_some()) != now.is_some());
    }
}

/// The storage of the committer; each call to it is watched.
pub(super) struct WatchedStorage {
    storage: Storage,
    progress: Progress,
}

impl WatchedStorage {
    pub(super) fn new(storage: Storage, watch: &StorageWatch) -> Self {
        Self { storage, progress: watch.committer().clone() }
    }

    /// Calls the storage, which may block.
    pub(super) fn call<T>(&mut self, name: &'static str, act: impl FnOnce(&mut Storage) -> T) -> T {
        let _running = self.progress.enter(name);
        act(&mut self.storage)
    }

    /// Releases what is kept of the OS lock, if anything is.
    pub(super) fn end_hold(&mut self) {
        if self.storage.is_holding() {
            self.call("unlock", Storage::end_hold);
        }
    }

    /// Whether the OS lock is kept from the last batch.
    pub(super) fn is_holding(&self) -> bool {
        self.storage.is_holding()
    }

    /// Whether no other process wrote between the last two holds.
    pub(super) fn is_alone(&self) -> bool {
        self.storage.is_alone()
    }

    /// Until when lease and OS lock may be kept while other replicas wait. `None` where the OS lock is not kept.
    pub(super) fn keep_until(&self) -> Option<Instant> {
        self.storage.keep_until().map(Instant::from_std)
    }

    /// How long the last sync of the journal took.
    pub(super) fn last_sync(&self) -> Duration {
        self.storage.last_sync()
    }

    /// Makes a last checkpoint.
    pub(super) fn close(self) -> Result<(), storage::AppendError> {
        let _running = self.progress.enter("close");
        self.storage.close()
    }
}
