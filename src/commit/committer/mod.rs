//! The committer: one task, on a thread of its own, that owns the lock and the file.
//!
//! `turn` is the protocol of one turn, `lease_policy` decides what happens to the lease after it. Between turns the committer
//! does forced releases (`forced_release`) and keeps up with the file (`idle`).

mod forced_release;
mod idle;
mod lease_policy;
mod observers;
mod turn;

use std::{sync::Arc, time::Duration};

pub(super) use crate::commit::committer::observers::Observers;
use crate::commit::{queue::Queue, storage_watch::WatchedStorage};
use crate::{lock::Lock, storage};

/// The longest that one turn tries for a file that another process has locked, such as a stopped one: then the lock passes to
/// other replicas.
const FILE_LOCK_WAIT: Duration = Duration::from_millis(500);

/// Why the committer could not continue.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// A write or sync failed half way: this process cannot know what the file holds.
    #[error("a write or sync failed; the process ends, because it cannot know what the file holds")]
    SyncFailed,
    /// The grace time of a shutdown has passed while rows were being written to a volume that does not answer.
    #[error(
        "the volume does not answer; the process ends, and rows that it was asked to write may or may not be written"
    )]
    StorageStuck,
    /// A bug.
    #[error("the committer thread panicked")]
    Panicked,
}

/// Owns lock and file, so that a disconnected client cannot leave either of them half used.
pub(super) struct Committer {
    queue: Arc<Queue>,
    lock: Arc<Lock>,
    storage: WatchedStorage,
    observers: Observers,
    /// What the last idle refresh failed with, so that it is logged once.
    last_idle_error: Option<String>,
}

impl Committer {
    pub(super) fn new(queue: Arc<Queue>, lock: Arc<Lock>, storage: WatchedStorage, observers: Observers) -> Self {
        Self { queue, lock, storage, observers, last_idle_error: None }
    }

    /// Serves until the queue is closed and empty.
    pub(super) async fn run(mut self) -> Result<(), Fatal> {
        let served = self.serve().await;
        self.queue.close();
        self.queue.end_grace();
        served?;
        match self.storage.close() {
            Err(e @ storage::AppendError::Sync(_)) => Err(sync_failed(&e)),
            Err(e) => {
                tracing::warn!(error = %e, "no last checkpoint; the next start reads the journal");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn sync_failed(e: &storage::AppendError) -> Fatal {
    tracing::error!(error = %e, "a write or sync failed: this process cannot know what the file holds");
    Fatal::SyncFailed
}
