//! Why an append was not acknowledged, in terms that a client can act on.

use std::time::Duration;

use crate::{schema::InvalidField, storage};

/// Whether the rows of a refused append may stand in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Certainly not.
    NotWritten,
    /// It truly cannot be known.
    Unknown,
}

/// An append that was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The rows don't fit the file, which was only known at their turn.
    #[error(transparent)]
    InvalidField(#[from] InvalidField),
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
            storage::AppendError::LeaseLost => Self::LockLost,
            storage::AppendError::DiskFull(_) => Self::DiskFull,
            storage::AppendError::Sync(_) => Self::SyncFailed,
            storage::AppendError::Replaced | storage::AppendError::Unfit(_) | storage::AppendError::Before { .. } => {
                Self::Internal(Outcome::NotWritten)
            }
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
