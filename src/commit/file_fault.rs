//! Why appends are refused for a reason that waiting does not fix, for readiness.

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::storage::AppendError;

/// What an operator must repair before rows are accepted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFault {
    /// The CSV or its journal is not the file that this replica opened.
    Replaced,
    /// The journal is damaged, or of a newer version.
    Journal,
    /// The volume is read-only.
    ReadOnly,
    /// The process may not write the files.
    NoPermission,
    /// The file of the embedded lock cannot be used.
    LockFile,
}

impl FileFault {
    const ALL: [Self; 5] = [Self::Replaced, Self::Journal, Self::ReadOnly, Self::NoPermission, Self::LockFile];

    /// The fault behind an error; `None` if waiting may fix it.
    pub(super) fn of(e: &AppendError) -> Option<Self> {
        match e {
            AppendError::Unfit(e) if e.is_of_journal() => Some(Self::Journal),
            AppendError::Replaced | AppendError::Unfit(_) => Some(Self::Replaced),
            AppendError::Before { source, .. } => match source.kind() {
                ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
                ErrorKind::PermissionDenied => Some(Self::NoPermission),
                _ => None,
            },
            AppendError::Busy
            | AppendError::Fenced { .. }
            | AppendError::LeaseLost
            | AppendError::DiskFull(_)
            | AppendError::LockLost(_)
            | AppendError::SyncFailedElsewhere
            | AppendError::Interrupted(_)
            | AppendError::Unknown(_)
            | AppendError::Sync(_) => None,
        }
    }

    /// A description for `/readyz?verbose`.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Replaced => "replaced, renamed, truncated or edited",
            Self::Journal => "its journal is damaged, or of a newer version",
            Self::ReadOnly => "on a read-only volume",
            Self::NoPermission => "may not be written",
            Self::LockFile => "its lock file cannot be used",
        }
    }
}

/// The fault of the last call to the files. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct LastFileFault(Arc<AtomicU8>);

impl LastFileFault {
    pub(super) fn get(&self) -> Option<FileFault> {
        let stored = self.0.load(Ordering::Relaxed);
        FileFault::ALL.into_iter().find(|fault| *fault as u8 + 1 == stored)
    }

    pub(super) fn set(&self, fault: Option<FileFault>) {
        self.0.store(fault.map_or(0, |fault| fault as u8 + 1), Ordering::Relaxed);
    }
}
