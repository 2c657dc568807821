//! What can keep the CSV from being opened or appended to.

use std::{io, path::PathBuf};

use crate::csv::schema::HeaderError;

/// Why the CSV can't be used; each prints as one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system said no.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Two names for one file: they would be locked under different keys.
    #[error("{} has several hard links; give it one name", .0.display())]
    HardLinks(PathBuf),
    /// The header can't be one.
    #[error("{}: {}", .0.display(), .1)]
    Header(PathBuf, HeaderError),
    /// The header does not end.
    #[error("{}: no end of the header within {} bytes", .0.display(), .1)]
    HeaderTooLong(PathBuf, u64),
    /// Somebody gave the file another header while it was open.
    #[error("{}: the header changed; restart to use the one that is there now", .0.display())]
    HeaderChanged(PathBuf),
    /// `ROWLOCK_CSV_HEADER` can't be a header.
    #[error("ROWLOCK_CSV_HEADER (--csv-header): {0}; accepted: column names with commas between them, or none")]
    HeaderOption(HeaderError),
    /// A quote that is never closed.
    #[error("{}: the row that starts at byte {} does not end; close its quote by hand", .0.display(), .1)]
    StrayQuote(PathBuf, u64),
    /// Neither header of the journal is whole.
    #[error("{}.journal is damaged; nothing was changed. It may hold rows that are not in the CSV yet: `rowlock check {} --repair` says what can be saved, and begins a new one", .0.display(), .0.display())]
    DamagedJournal(PathBuf),
    /// A newer version of this program wrote it.
    #[error("{}.journal has format {}, and this version knows {}: a newer version is in use; upgrade this one", .0.display(), .1, super::journal::FORMAT)]
    NewerJournal(PathBuf, u32),
    /// The journal owes rows to a CSV that is not this one.
    #[error("{path}.journal holds rows of another {path} (replaced, or cut short, since they were written); nothing was changed. Put that file back; or `rowlock check {path} --repair` puts those rows in {path}.torn, and takes this file as it is", path = .0.display())]
    ForeignJournal(PathBuf),
    /// Nothing about it needs to be replaced.
    #[error("{}.journal is one that a start accepts; nothing was changed", .0.display())]
    SoundJournal(PathBuf),
    /// The volume's file locks lock nothing.
    #[error("{}: this volume has no working file locks, so nothing would keep two replicas from writing at once; ROWLOCK_UNLOCKED_VOLUME=accept serves all the same, and then a stopped replica that goes on may damage rows", .0.display())]
    Unlocked(PathBuf),
    /// Somebody keeps the OS lock.
    #[error("{} is kept locked by another process", .0.display())]
    Busy(PathBuf),
}

impl OpenError {
    pub(crate) fn io(path: &std::path::Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), doing, source }
    }
}

/// Why a batch was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another process kept the OS lock until the deadline; nothing was written.
    #[error("the CSV is kept locked by another process")]
    Busy,
    /// A newer token is recorded; nothing was written.
    #[error("the token is stale: {mark} is recorded")]
    Fenced {
        /// The newest token recorded.
        mark: crate::fencing::FencingToken,
    },
    /// The lease ran out before the first byte; nothing was written.
    #[error("the lease was lost before the write")]
    LeaseLost,
    /// No room; what was written was taken back.
    #[error("the disk is full: {0}")]
    DiskFull(#[source] io::Error),
    /// The path names another file than the one that is open; nothing was written.
    #[error("the CSV was replaced or renamed; restart to use the file that is there now")]
    Replaced,
    /// The file is no longer one that can be appended to; nothing was written.
    #[error(transparent)]
    Unfit(OpenError),
    /// The system said no before the first byte of a row.
    #[error("cannot {doing} the CSV: {source}")]
    Before {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A write or sync failed half way: the page cache can't be believed any more, and the process must end.
    #[error("the CSV could not be made durable: {0}")]
    Sync(#[source] io::Error),
}

/// Why one request of a batch was refused, while the others were written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its rows don't fit the file.
    #[error(transparent)]
    InvalidField(#[from] crate::csv::schema::InvalidField),
    /// Its key came with other data before.
    #[error("the key was used with other data")]
    KeyReused,
    /// Its rows don't fit half of the journal.
    #[error("more than {bytes_max} bytes once encoded")]
    TooLarge {
        /// What would fit.
        bytes_max: u64,
    },
    /// As many newer keys as are remembered were recorded while it waited: whether its own was among them is forgotten.
    #[error("too many newer keys were recorded meanwhile")]
    Outrun,
}

/// No room on the volume, or none left for this user.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl AppendError {
    pub(crate) fn before(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| {
            if is_full(&source) { Self::DiskFull(source) } else { Self::Before { doing, source } }
        }
    }
}
