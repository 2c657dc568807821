//! Why an append was not acknowledged, in terms that a client can act on.

use std::time::Duration;

use crate::{
    csv::schema::InvalidField,
    storage::{self, Refusal},
};

/// Whether the rows of a refused append may stand in the file: certainly not, or it truly cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Certainly not.
    NotWritten,
    /// It truly cannot be known.
    Unknown,
}

impl Outcome {
    /// As JSON has it, without the quotes.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotWritten => "not_written",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An append that was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The rows don't fit the file, which was only known at their turn.
    #[error(transparent)]
    InvalidField(#[from] InvalidField),
    /// The key came with other data before.
    #[error("this Idempotency-Key was used with other data")]
    KeyReused,
    /// A request with the same key is under way in this replica.
    #[error("a request with this Idempotency-Key is under way")]
    KeyInFlight,
    /// More newer keys than are remembered were recorded while this one waited.
    #[error("so many newer keys were recorded while this one waited that its own may be forgotten")]
    KeyOutrun,
    /// The rows don't fit half of the journal.
    #[error(
        "the rows come to more than {0} bytes, the most that one request may write (half of ROWLOCK_JOURNAL_BYTES)"
    )]
    BatchTooLarge(u64),
    /// Too many rows or bytes wait already.
    #[error("too much waits already")]
    QueueFull,
    /// The turn did not come in time.
    #[error("the turn did not come within {0:?}")]
    WaitTimeout(Duration),
    /// The turn did not come in time, for want of Redis.
    #[error("Redis could not be reached within {0:?}")]
    LockUnavailable(Duration),
    /// The lease ran out before the write.
    #[error("the lock was lost before the row was written")]
    LockLost,
    /// Another process, stopped perhaps, keeps the file.
    #[error("another process keeps the file")]
    FileBusy,
    /// This replica is about to end.
    #[error("this replica is shutting down")]
    Draining,
    /// No room for the rows; what was begun was taken back.
    #[error("no room on the volume")]
    DiskFull,
    /// A write or sync failed half way.
    #[error("the rows could not be made durable")]
    SyncFailed,
    /// Something else; the log says what.
    #[error("the append failed")]
    Internal(Outcome),
}

impl From<&storage::AppendError> for AppendError {
    fn from(e: &storage::AppendError) -> Self {
        match e {
            storage::AppendError::Busy => Self::FileBusy,
            storage::AppendError::LeaseLost | storage::AppendError::Fenced { .. } => Self::LockLost,
            storage::AppendError::DiskFull(_) => Self::DiskFull,
            storage::AppendError::Sync(_) => Self::SyncFailed,
            storage::AppendError::Replaced | storage::AppendError::Unfit(_) | storage::AppendError::Before { .. } => {
                Self::Internal(Outcome::NotWritten)
            }
        }
    }
}

impl From<Refusal> for AppendError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::InvalidField(e) => Self::InvalidField(e),
            Refusal::KeyReused => Self::KeyReused,
            Refusal::KeyMayBeForgotten => Self::KeyOutrun,
            Refusal::TooLarge { bytes_max } => Self::BatchTooLarge(bytes_max),
        }
    }
}

impl AppendError {
    /// Whether the rows may stand in the file all the same.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::SyncFailed => Outcome::Unknown,
            Self::Internal(outcome) => *outcome,
            Self::InvalidField(_)
            | Self::KeyReused
            | Self::KeyInFlight
            | Self::KeyOutrun
            | Self::BatchTooLarge(_)
            | Self::QueueFull
            | Self::WaitTimeout(_)
            | Self::LockUnavailable(_)
            | Self::LockLost
            | Self::FileBusy
            | Self::Draining
            | Self::DiskFull => Outcome::NotWritten,
        }
    }
}
