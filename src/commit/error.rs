//! Why an append was not acknowledged, in terms that a client can act on.

use std::time::Duration;

use crate::{
    api::outcome::Outcome,
    csv::schema::InvalidField,
    lock::Lock,
    storage::{self, Refusal},
};

/// An append that was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The rows don't fit the file's header, as found at their turn.
    #[error(transparent)]
    InvalidField(#[from] InvalidField),
    /// The key was used before with other data.
    #[error("this Idempotency-Key was used with other data")]
    KeyReused,
    /// This replica is processing a request with the same key.
    #[error("a request with this Idempotency-Key is still being processed")]
    KeyInFlight,
    /// While it waited, so many newer keys were recorded that its own may be forgotten.
    #[error("while the request waited, so many newer keys were recorded that its own key may be forgotten")]
    KeyMayBeForgotten,
    /// The rows don't fit half of the journal.
    #[error("the rows take more than {0} bytes, the most that one request may write (half of ROWLOCK_JOURNAL_BYTES)")]
    BatchTooLarge(u64),
    /// A row is longer than readers accept.
    #[error("one row takes more than {0} bytes in the file, the most that can be read back")]
    RowTooLarge(u64),
    /// The queue is full.
    #[error("the queue is full")]
    QueueFull,
    /// The turn did not come in time.
    #[error("the lock was not granted within {0:?}")]
    WaitTimeout(Duration),
    /// Redis did not answer in time.
    #[error("Redis could not be reached within {0:?}")]
    LockUnavailable(Duration),
    /// Redis answers, and refuses.
    #[error("Redis rejects this replica; its log and /readyz?verbose say why")]
    LockRejected,
    /// The lease expired before the write.
    #[error("the lock was lost before the row was written")]
    LockLost,
    /// Another process, perhaps a stopped one, keeps the file locked.
    #[error("another process keeps the file locked")]
    FileBusy,
    /// A call to the volume does not return.
    #[error("{}", match .0 {
        Outcome::NotWritten => "the volume does not answer; the rows were not handed to it",
        _ => "the volume does not answer; what it was asked to write may be written once it does",
    })]
    StorageStuck(Outcome),
    /// The CSV or its journal is not the file that this replica opened.
    #[error("the CSV was replaced, renamed, truncated or edited by another program; an operator must act")]
    FileReplaced,
    /// This replica is shutting down.
    #[error("this replica is shutting down")]
    Draining,
    /// The volume is full. A partial write was undone.
    #[error("the volume is full")]
    DiskFull,
    /// A write or sync failed half way.
    #[error("the rows could not be made durable")]
    SyncFailed,
    /// Another failure; the log says which.
    #[error("the append failed")]
    Internal(Outcome),
}

impl From<&storage::AppendError> for AppendError {
    fn from(e: &storage::AppendError) -> Self {
        match e {
            storage::AppendError::Busy => Self::FileBusy,
            storage::AppendError::LeaseLost
            | storage::AppendError::LockLost(_)
            | storage::AppendError::Fenced { .. } => Self::LockLost,
            storage::AppendError::Interrupted(_) | storage::AppendError::Unknown(_) => Self::Internal(Outcome::Unknown),
            storage::AppendError::DiskFull(_) => Self::DiskFull,
            storage::AppendError::Sync(_) => Self::SyncFailed,
            storage::AppendError::Before { .. } | storage::AppendError::SyncFailedElsewhere => {
                Self::Internal(Outcome::NotWritten)
            }
            storage::AppendError::Unfit(e) if e.is_of_journal() => Self::Internal(Outcome::NotWritten),
            storage::AppendError::Replaced | storage::AppendError::Unfit(_) => Self::FileReplaced,
        }
    }
}

impl From<Refusal> for AppendError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::InvalidField(e) => Self::InvalidField(e),
            Refusal::KeyReused => Self::KeyReused,
            Refusal::KeyMayBeForgotten => Self::KeyMayBeForgotten,
            Refusal::TooLarge { bytes_max } => Self::BatchTooLarge(bytes_max),
            Refusal::RowTooLarge { bytes_max } => Self::RowTooLarge(bytes_max),
        }
    }
}

impl AppendError {
    /// Why the lock was of no use for as long as `waited`.
    pub(super) fn of_lock(lock: &Lock, waited: Duration) -> Self {
        match lock.outage() {
            Some(outage) if outage.is_rejection() => Self::LockRejected,
            // The lock's file failed, and the log says how.
            _ if lock.is_embedded() => Self::Internal(Outcome::NotWritten),
            _ => Self::LockUnavailable(waited),
        }
    }

    /// Whether the rows may be in the file: those of this request, and with a key those of an earlier request with the key that this
    /// replica knows of.
    pub fn outcome(&self) -> Outcome {
        match self {
            // The row of the key is written by the other request, or was written by an earlier one, or by none.
            Self::SyncFailed | Self::KeyInFlight | Self::KeyMayBeForgotten => Outcome::Unknown,
            Self::StorageStuck(outcome) | Self::Internal(outcome) => *outcome,
            Self::InvalidField(_)
            | Self::KeyReused
            | Self::BatchTooLarge(_)
            | Self::RowTooLarge(_)
            | Self::QueueFull
            | Self::WaitTimeout(_)
            | Self::LockUnavailable(_)
            | Self::LockRejected
            | Self::LockLost
            | Self::FileBusy
            | Self::FileReplaced
            | Self::Draining
            | Self::DiskFull => Outcome::NotWritten,
        }
    }
}
