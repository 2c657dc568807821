//! `rowlock check --repair`: the storage's repairs, under the lock, so that no replica writes at the same time.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::commit::open::{OpenError, open_lock, storage_options};
use crate::{
    config::Config,
    storage::{self, CheckOptions, Plan, Replaced, Storage},
};

/// How long a repair waits for the lock on the files.
const FILE_LOCK_WAIT: Duration = Duration::from_secs(2);

/// Why nothing was repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Lock or files cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Another process kept the lock.
    #[error("the lock was not granted within {0:?}; nothing was changed. `rowlock lock` shows its holder")]
    Held(Duration),
    /// The repair failed; the next one starts again.
    #[error(transparent)]
    Append(#[from] storage::AppendError),
    /// A bug.
    #[error("the repair panicked")]
    Panicked,
}

/// Carries out `plan` under the lock.
///
/// # Errors
/// If the lock is not granted within `ROWLOCK_WAIT_TIMEOUT`, or the files cannot be repaired.
pub async fn repair(config: &Config, options: CheckOptions, plan: Plan) -> Result<Option<Replaced>, RepairError> {
    let replica = config.replica_name();
    let lock = open_lock(config, &replica)?;
    lock.check().await.map_err(OpenError::from)?;
    let deadline = Instant::now() + config.wait_timeout;
    let held = || RepairError::Held(config.wait_timeout);
    let lease = lock.acquire(|| Instant::now() < deadline).await.ok_or_else(held)?;
    let storage_options = storage::Options { is_repair: true, ..storage_options(config, &replica, &Arc::default()) };
    let journal_bytes = config.journal_bytes as u64;
    let work = move || match plan {
        Plan::Nothing => Ok(None),
        Plan::ReplaceJournal { restores } => {
            let replaced = storage::replace_journal(&options, journal_bytes, restores);
            Ok(Some(replaced.map_err(OpenError::from)?))
        }
        Plan::Recover => {
            let mut storage = Storage::open(storage_options).map_err(OpenError::from)?;
            storage.repair((Instant::now() + FILE_LOCK_WAIT).into_std())?;
            storage.close()?;
            Ok(None)
        }
    };
    let done = tokio::task::spawn_blocking(work).await.unwrap_or(Err(RepairError::Panicked));
    lease.release().await;
    done
}
