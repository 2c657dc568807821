//! Errors of opening a CSV and of appending to it.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    csv::{header_error::HeaderError, schema::InvalidField},
    fencing::FencingToken,
    storage::{
        journal::{FORMAT, HeaderFault},
        unsafe_side_file::UnsafeSideFile,
        volume::{VolumeRefusal, mounted_folder},
    },
};

/// Why the CSV can't be used. Each prints as one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A directory, a device, or a pipe.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Each name of the file would have a lock and a journal of its own.
    #[error("{} has several hard links; remove all but one", .0.display())]
    HardLinks(PathBuf),
    /// The file is mounted by itself. Through another path it would have another lock and another journal.
    #[error("{path} is a mount point, and so has a second path; nothing was changed. Mount the folder {folder} instead of the file", path = .path.display())]
    MountPoint {
        /// The file.
        path: PathBuf,
        /// The folder that holds the file, and its file system.
        folder: String,
    },
    /// A side file that another user may have put there.
    #[error("{0}; nothing was changed. Find out who made it, and remove it or correct its owner")]
    SideFile(UnsafeSideFile),
    /// The file's header is not valid.
    #[error("{}: {}", .0.display(), .1)]
    Header(PathBuf, HeaderError),
    /// The header is longer than this many bytes.
    #[error("{}: the header does not end within {} bytes", .0.display(), .1)]
    HeaderTooLong(PathBuf, u64),
    /// The file is not what this process, or the journal, left: somebody edited or truncated it, or put another in its place.
    #[error("{path} was edited or truncated by another program since its last row was written; nothing was changed. Put the file back as it was, or run `rowlock check {path}`, which shows the difference and the choices", path = .0.display())]
    Edited(PathBuf),
    /// There is no file, but its journal holds rows for it.
    #[error("{path} is missing, but {path}.journal holds rows for it; nothing was changed. Put the file back, or run `rowlock check {path} --repair`, which begins a new file", path = .0.display())]
    Missing(PathBuf),
    /// `ROWLOCK_CSV_HEADER` is not a valid header.
    #[error("ROWLOCK_CSV_HEADER (--csv-header): {0}; accepted: column names with commas between them, or none")]
    HeaderOption(HeaderError),
    /// The last row does not end, and a quote in it spans line ends.
    #[error("{path}: line {line}: a quote in this row spans the lines behind it, and the row does not end: {text}. Nothing was changed: close the quote by hand, or `rowlock check {path} --repair` moves the text from there on to {path}.torn", path = .path.display())]
    OpenQuote {
        /// The file.
        path: PathBuf,
        /// The line where the row begins, counted from 1.
        line: u64,
        /// The beginning of that line.
        text: String,
    },
    /// A last line without a line end that is too long to be one.
    #[error("{}: the last line, which starts at byte {}, is incomplete and longer than 1 MiB; complete it or remove it by hand", .0.display(), .1)]
    LongOpenLine(PathBuf, u64),
    /// Neither header of the journal is valid.
    #[error("{}.journal is damaged; nothing was changed. It may hold rows that are not in the CSV yet: `rowlock check {} --repair` saves what can be saved and creates a new journal", .0.display(), .0.display())]
    DamagedJournal(PathBuf),
    /// The journal has a newer format.
    #[error("{}.journal has format {}, and this version supports format {}: a newer version is in use; upgrade this one", .0.display(), .1, FORMAT)]
    NewerJournal(PathBuf, u32),
    /// The journal holds rows of another CSV.
    #[error("{path}.journal holds rows of another {path}, which was replaced or truncated since; nothing was changed. Put that file back, or run `rowlock check {path} --repair=keep-file`, which moves those rows to {path}.torn, or `--repair=restore`, which adds them to the current file", path = .0.display())]
    ForeignJournal(PathBuf),
    /// The journal does not need to be replaced.
    #[error("{}.journal is valid; nothing was changed", .0.display())]
    SoundJournal(PathBuf),
    /// File locks do not work on the volume.
    #[error("{}: this volume has no working file locks, so two replicas could write at once; ROWLOCK_UNLOCKED_VOLUME=accept serves anyway, but then a stopped replica that continues may damage rows", .0.display())]
    Unlocked(PathBuf),
    /// Rows would be lost on the volume.
    #[error("{}: {}; ROWLOCK_UNLOCKED_VOLUME=accept serves anyway, but then rows may be lost", .0.display(), .1)]
    UnsafeVolume(PathBuf, VolumeRefusal),
    /// Another process holds the OS lock.
    #[error("{} is locked by another process", .0.display())]
    Busy(PathBuf),
}

impl OpenError {
    pub(crate) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), doing, source }
    }

    /// The refusal of a file that is mounted by itself.
    pub(crate) fn mount_point(path: &Path) -> Self {
        Self::MountPoint { path: path.to_owned(), folder: mounted_folder(path) }
    }

    /// Whether the journal cannot be read: it is damaged, or of a newer version.
    pub fn is_of_journal(&self) -> bool {
        matches!(self, Self::DamagedJournal(_) | Self::NewerJournal(..))
    }

    pub(crate) fn header(path: &Path, fault: HeaderFault) -> Self {
        match fault {
            HeaderFault::Damaged => Self::DamagedJournal(path.to_owned()),
            HeaderFault::Newer(format) => Self::NewerJournal(path.to_owned(), format),
        }
    }
}

/// Why a batch was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another process held the OS lock until the deadline; nothing was written.
    #[error("the CSV is locked by another process")]
    Busy,
    /// A newer token is recorded; nothing was written.
    #[error("the token is stale: token {highest_token} is recorded")]
    Fenced {
        /// The highest recorded token.
        highest_token: FencingToken,
    },
    /// The lease was lost before the first byte; nothing was written.
    #[error("the lease was lost before the write")]
    LeaseLost,
    /// The disk is full; a partial write was undone.
    #[error("the disk is full: {0}")]
    DiskFull(#[source] io::Error),
    /// The path names another file than the open one; nothing was written.
    #[error("the CSV or its journal was replaced or renamed; restart to use the current file")]
    Replaced,
    /// The file can't be appended to any more; nothing was written.
    #[error(transparent)]
    Unfit(OpenError),
    /// A system call failed before the first byte of a row.
    #[error("cannot {doing} the CSV: {source}")]
    Before {
        /// What was tried.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The server gave the OS lock away, so another host may write; nothing was written.
    #[error("the file lock was lost: {0}")]
    LockLost(#[source] io::Error),
    /// A call failed while the rows were written, perhaps because the OS lock was lost: `Storage` finds out what became of
    /// them.
    #[error("a write was interrupted: {0}")]
    Interrupted(#[source] io::Error),
    /// The rows may be in the file: the volume did not tell in time.
    #[error("it is unknown whether the rows were written: {0}")]
    Unknown(#[source] io::Error),
    /// Another process recorded a failed sync after this one's refresh, so there was no checkpoint to make space; nothing was
    /// written. The next refresh writes the files again.
    #[error("another process recorded a failed sync; the files are written again first")]
    SyncFailedElsewhere,
    /// A write or sync failed: the page cache can't be trusted any more, and the process must end.
    #[error("the CSV could not be made durable: {0}")]
    Sync(#[source] io::Error),
}

/// Why one request of a batch was refused while the others were written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its rows don't fit the file's columns.
    #[error(transparent)]
    InvalidField(#[from] InvalidField),
    /// Its key was used before with other data.
    #[error("the key was used with other data")]
    KeyReused,
    /// Its rows don't fit half of the journal.
    #[error("more than {bytes_max} bytes when encoded")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// One of its rows is longer than readers accept.
    #[error("one row is longer than {bytes_max} bytes when encoded")]
    RowTooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// So many newer keys were recorded while it waited that its own, if it was among the newest when it arrived, may be forgotten.
    #[error("too many newer keys were recorded while the request waited")]
    KeyMayBeForgotten,
}

/// Whether the volume, or the user's quota, is full.
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
