//! The real files, in one of two ways that is chosen when they are opened: through the page cache on a volume of one host, or
//! directly on a volume that several hosts share.

mod local;
mod network;
mod read_ahead;

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, Statx, StatxFlags, fstatvfs, statx};

use crate::storage::{
    disk::{AppendedRange, Disk, FileKind},
    error::AppendError,
    files::{
        local::{LocalFiles, LocalLock},
        network::{NetworkFiles, NetworkLock},
    },
    side_files::stat_on_server,
    volume::{VolumeInfo, VolumeKind},
};

/// How long a start waits for another process that holds the OS lock.
pub(crate) const START_WAIT: Duration = Duration::from_secs(2);
/// The longest pause between two attempts to take an OS lock.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

/// The open files of one CSV.
#[derive(Debug)]
pub(crate) enum Files {
    /// On a volume of one host.
    Local(LocalFiles),
    /// On a volume that several hosts share.
    Network(Arc<NetworkFiles>),
}

/// The OS lock, released when dropped. A stopped process keeps it, a killed process loses it.
#[derive(Debug)]
pub(crate) enum OsLock {
    Local { _lock: LocalLock },
    Network { _lock: NetworkLock },
}

/// Device (major, minor) and inode number.
type Inode = (u32, u32, u64);

/// Requests only these attributes: since Linux 6.13, reading a file's times makes its next write store a new time, and the
/// sync after that write takes 1.5 times as long.
fn stat(file: &File, what: StatxFlags) -> io::Result<Statx> {
    Ok(statx(file, "", AtFlags::EMPTY_PATH, what)?)
}

/// The inode that the path leads to now. A network volume would otherwise answer from its attribute cache for up to a minute.
fn inode_at(path: &Path) -> io::Result<Inode> {
    let found = stat_on_server(path)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

fn inode_of(file: &File) -> io::Result<Inode> {
    let found = stat(file, StatxFlags::INO)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

fn open_to_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Tries to take a file lock every 1 to 50 ms until `deadline`.
pub(crate) fn try_until(deadline: Instant, try_lock: impl Fn() -> Result<(), TryLockError>) -> Result<(), AppendError> {
    let mut pause = Duration::from_millis(1);
    loop {
        match try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(AppendError::before("lock")(e)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(AppendError::Busy),
            Err(TryLockError::WouldBlock) => thread::sleep(pause),
        }
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
    }
}

impl Files {
    /// Opens existing files for appending.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(if is_network(path)? {
            Self::Network(Arc::new(NetworkFiles::open(path)?))
        } else {
            Self::Local(LocalFiles::open(path)?)
        })
    }

    /// Opens existing files for a reader beside the process's own appender. On a network volume it can't append.
    pub(crate) fn open_beside(path: &Path) -> io::Result<Self> {
        Ok(if is_network(path)? {
            Self::Network(Arc::new(NetworkFiles::open_to_read(path)?))
        } else {
            Self::Local(LocalFiles::open(path)?)
        })
    }

    /// Opens the files read-only. Without a journal or keys file, the CSV stands in for it: only the CSV may be read then.
    pub(crate) fn open_to_read(path: &Path) -> io::Result<Self> {
        Ok(if is_network(path)? {
            Self::Network(Arc::new(NetworkFiles::open_to_read(path)?))
        } else {
            Self::Local(LocalFiles::open_to_read(path)?)
        })
    }

    fn disk(&self) -> &dyn Disk {
        match self {
            Self::Local(files) => files,
            Self::Network(files) => &**files,
        }
    }

    /// Whether a lock held through one handle excludes another handle.
    pub(crate) fn locks_work(&self) -> io::Result<bool> {
        match self {
            Self::Local(files) => files.locks_work(),
            Self::Network(files) => files.locks_work(),
        }
    }

    /// Continues without locks.
    pub(crate) fn accept_unlocked(&mut self) {
        if let Self::Local(files) = self {
            files.accept_unlocked();
        }
    }

    /// Bytes available to unprivileged users on the volume, and the volume's size.
    pub(crate) fn volume_bytes(&self) -> io::Result<(u64, u64)> {
        let volume = match self {
            Self::Local(files) => fstatvfs(files.csv())?,
            Self::Network(files) => fstatvfs(files.csv())?,
        };
        Ok((volume.f_bavail * volume.f_frsize, volume.f_blocks * volume.f_frsize))
    }

    /// Takes the OS lock, retrying until `deadline`, and refuses if a path leads to another file by then.
    pub(crate) fn lock(&self, deadline: Instant) -> Result<OsLock, AppendError> {
        Ok(match self {
            Self::Local(files) => OsLock::Local { _lock: files.lock(deadline)? },
            Self::Network(files) => OsLock::Network { _lock: files.lock(deadline)? },
        })
    }
}

impl Disk for Arc<Files> {
    fn is_direct(&self) -> bool {
        self.disk().is_direct()
    }

    fn forget_read_ahead(&self) {
        self.disk().forget_read_ahead();
    }

    fn len(&self, kind: FileKind) -> io::Result<u64> {
        self.disk().len(kind)
    }

    fn read_at(&self, kind: FileKind, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.disk().read_at(kind, offset, buffer)
    }

    fn write_parts_at(&self, kind: FileKind, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.disk().write_parts_at(kind, offset, parts)
    }

    fn append(&self, kind: FileKind, bytes: &[u8]) -> io::Result<AppendedRange> {
        self.disk().append(kind, bytes)
    }

    fn truncate(&self, kind: FileKind, len: u64) -> io::Result<()> {
        self.disk().truncate(kind, len)
    }

    fn reserve(&self, kind: FileKind, offset: u64, bytes: u64) -> io::Result<()> {
        self.disk().reserve(kind, offset, bytes)
    }

    fn sync(&self, kind: FileKind) -> io::Result<()> {
        self.disk().sync(kind)
    }
}

/// Whether several hosts may share the volume, each with a page cache of its own.
pub(crate) fn is_network(path: &Path) -> io::Result<bool> {
    Ok(VolumeInfo::of(path)?.kind() == VolumeKind::Network)
}
