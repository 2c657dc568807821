//! `rowlock check --repair`: storage's repairs, under the lock, so that no replica writes meanwhile.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::commit::{OpenError, open_lock, storage_options};
use crate::{
    config::Config,
    storage::{self, CheckOptions, Plan, Replaced, Storage},
};

/// How long a repair tries for the files in one go.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why nothing was repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Lock or files can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Somebody else kept the lock.
    #[error("the lock could not be had within {0:?}; nothing was changed. A replica holds it, see `rowlock lock`")]
    Held(Duration),
    /// The repair failed half way; the next one begins again.
    #[error(transparent)]
    Append(#[from] storage::AppendError),
    /// A thread ended before its time.
    #[error("the repair ended without a word")]
    Gone,
}

/// Does what `plan` says, under the lock.
///
/// # Errors
/// If the lock can't be had within `ROWLOCK_WAIT_TIMEOUT`, or the files can't be repaired.
pub async fn repair(config: &Config, options: CheckOptions, plan: Plan) -> Result<Option<Replaced>, RepairError> {
    let replica = config.replica_name();
    let lock = open_lock(config, &replica)?;
    let deadline = Instant::now() + config.wait_timeout;
    let held = || RepairError::Held(config.wait_timeout);
    let lease = lock.acquire(|| Instant::now() < deadline).await.ok_or_else(held)?;
    let (storage_options, journal_bytes) =
        (storage_options(config, &replica, &Arc::default()), config.journal_bytes as u64);
    let work = move || match plan {
        Plan::Nothing => Ok(None),
        Plan::ReplaceJournal => Ok(Some(storage::replace_journal(&options, journal_bytes).map_err(OpenError::from)?)),
        Plan::Recover => {
            let mut storage = Storage::open(storage_options).map_err(OpenError::from)?;
            storage.repair((Instant::now() + PATIENCE).into_std())?;
            storage.close()?;
            Ok(None)
        }
    };
    let done = tokio::task::spawn_blocking(work).await.unwrap_or(Err(RepairError::Gone));
    lease.release().await;
    done
}
