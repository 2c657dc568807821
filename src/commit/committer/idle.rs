//! What the committer does without rows: it follows the other replicas' writes, repairs, and makes checkpoints.

use std::time::Duration;

use tokio::time::Instant;

use crate::commit::{
    committer::{Committer, FILE_LOCK_WAIT, Fatal, sync_failed},
    file_fault::FileFault,
};
use crate::storage::{self, IdleOutcome, Storage};

/// The interval between idle refreshes.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// The interval while the lock is unreachable: how soon its return is noticed without rows.
const UNREACHABLE_INTERVAL: Duration = Duration::from_millis(250);
/// The interval while a checkpoint is synced in the background.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(20);

impl Committer {
    /// Reads what other replicas wrote, and repairs the file if it needs that. Returns how soon to do so again.
    pub(super) async fn idle_refresh(&mut self) -> Result<Duration, Fatal> {
        self.lock.return_connection();
        self.lock.probe().await;
        let mut outcome = self.storage.call("idle_refresh", Storage::idle_refresh);
        if let Ok(IdleOutcome::NeedsRepair) = outcome {
            let deadline = Instant::now() + IDLE_INTERVAL;
            if let Some(lease) = self.lock.acquire(|| self.queue.is_empty() && Instant::now() < deadline).await {
                let deadline = (Instant::now() + FILE_LOCK_WAIT).into_std();
                let recovered = self.storage.call("recover", |storage| storage.recover(deadline));
                outcome = recovered.map(|()| IdleOutcome::Clean);
                lease.release().await;
            }
        }
        match outcome {
            Ok(idle) => {
                self.last_idle_error = None;
                self.forget_repaired_fault();
                Ok(match idle {
                    IdleOutcome::Checkpointing => CHECKPOINT_INTERVAL,
                    _ if self.lock.is_failing() => UNREACHABLE_INTERVAL,
                    _ => IDLE_INTERVAL,
                })
            }
            Err(e @ storage::AppendError::Sync(_)) => Err(sync_failed(&e)),
            Err(e) => {
                self.observers.note_file_fault(&e);
                let error = e.to_string();
                if self.last_idle_error.as_ref() != Some(&error) {
                    tracing::warn!(error = %e, "cannot read the files");
                }
                self.last_idle_error = Some(error);
                Ok(IDLE_INTERVAL)
            }
        }
    }

    /// A file that can be read again was put back; one that could not be written must be open for writing again.
    fn forget_repaired_fault(&mut self) {
        let is_repaired = match self.observers.file_fault() {
            None => return,
            Some(FileFault::Replaced | FileFault::Journal) => true,
            Some(FileFault::ReadOnly | FileFault::NoPermission | FileFault::LockFile) => {
                self.storage.call("open", Storage::is_writable)
            }
        };
        if is_repaired {
            self.observers.set_file_fault(None);
        }
    }
}
