//! The real files, in one of two ways that is chosen when they are opened: through the page cache on a volume of one host, or
//! directly on a volume that several hosts share.

pub(crate) mod handles;
mod local;
mod network;
mod read_ahead;

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{fs::fstatvfs, io::retry_on_intr};

use crate::storage::{
    disk::{AppendedRange, Disk, FileKind},
    error::AppendError,
    files::{
        local::{LocalFiles, LocalLock},
        network::{NetworkFiles, NetworkLock},
    },
    volume::{VolumeInfo, VolumeKind},
};

/// How long a start waits for another process that holds the OS lock.
pub(crate) const START_WAIT: Duration = Duration::from_secs(2);

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

    /// As `open`, as if the volume were shared by several hosts.
    #[cfg(test)]
    pub(crate) fn open_as_network(path: &Path) -> io::Result<Self> {
        Ok(Self::Network(Arc::new(NetworkFiles::open(path)?)))
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
        match self {
            Self::Local(files) => files.accept_unlocked(),
            Self::Network(files) => {
                Arc::get_mut(files).expect("the files were just opened").accept_unlocked();
            }
        }
    }

    /// Bytes available to unprivileged users on the volume, and the volume's size.
    pub(crate) fn volume_bytes(&self) -> io::Result<(u64, u64)> {
        let volume = match self {
            Self::Local(files) => retry_on_intr(|| fstatvfs(files.csv()))?,
            Self::Network(files) => retry_on_intr(|| fstatvfs(files.csv()))?,
        };
        Ok((volume.f_bavail * volume.f_frsize, volume.f_blocks * volume.f_frsize))
    }

    /// Refuses a path of a local volume that leads to another file. On a network volume that costs calls of the server, and the next
    /// append finds it.
    pub(crate) fn refuse_replaced(&self) -> Result<(), AppendError> {
        match self {
            Self::Local(files) => files.refuse_replaced(),
            Self::Network(_) => Ok(()),
        }
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

    fn csv_inode(&self) -> u64 {
        self.disk().csv_inode()
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
