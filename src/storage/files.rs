//! The real files, and the OS lock on the journal that everything happens under.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, IoSlice, Seek, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, FallocateFlags, Statx, StatxFlags, fallocate, fstatvfs, statx},
    io::{Errno, pwritev},
};

use crate::failpoints;
use crate::storage::{
    AppendError,
    disk::{Disk, Landed, Place},
    journal::Layout,
    side_files,
};

/// Room in the CSV is made in steps of this size.
const RESERVE_BYTES: u64 = 4 << 20;
/// What a file's own bookkeeping may count among its blocks.
const BOOKKEEPING_BYTES: u64 = 64 << 10;

/// The open files of one CSV.
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    journal_path: PathBuf,
    csv: File,
    journal: Arc<File>,
    /// Device and number of these two: names that lead elsewhere are no names of theirs any more.
    inodes: [(u32, u32, u64); 2],
    /// Replaced by a larger one when a replica starts that remembers more.
    keys: Mutex<File>,
    /// False on a volume without file locks that was accepted as it is.
    locks: bool,
}

/// `<csv><suffix>`.
pub(crate) fn beside(csv: &Path, suffix: &str) -> PathBuf {
    let mut path = csv.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Asks for no more than is needed: since Linux 6.13 who asks for a file's times makes its next write note a new one, and the
/// sync after that takes half as long again.
fn ask(file: &File, what: StatxFlags) -> io::Result<Statx> {
    Ok(statx(file, "", AtFlags::EMPTY_PATH, what)?)
}

/// Device and number of what a name leads to.
fn inode_at(path: &Path) -> io::Result<(u32, u32, u64)> {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::INO)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

fn inode_of(file: &File) -> io::Result<(u32, u32, u64)> {
    let found = ask(file, StatxFlags::INO)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// One call for all parts, which are not copied together for it.
fn write_all_parts_at(file: &File, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = &mut *slices;
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match pwritev(file, left, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn open_to_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

impl Files {
    /// Opens what is there already.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let csv = OpenOptions::new().read(true).append(true).open(path)?;
        let journal = Arc::new(open_to_write(&beside(path, ".journal"))?);
        Ok(Self {
            inodes: [inode_of(&csv)?, inode_of(&journal)?],
            keys: Mutex::new(open_to_write(&beside(path, ".keys"))?),
            journal_path: beside(path, ".journal"),
            path: path.to_owned(),
            locks: true,
            csv,
            journal,
        })
    }

    /// For who changes nothing. Where nothing lies beside the CSV yet, only its own bytes may be asked for.
    pub(crate) fn open_to_read(path: &Path) -> io::Result<Self> {
        let csv = File::open(path)?;
        let open = |suffix| match File::open(beside(path, suffix)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        let (journal, keys) = (open(".journal")?, open(".keys")?);
        let journal_path = if journal.is_some() { beside(path, ".journal") } else { path.to_owned() };
        let journal = Arc::new(journal.map_or_else(|| csv.try_clone(), Ok)?);
        let keys = Mutex::new(keys.map_or_else(|| csv.try_clone(), Ok)?);
        let inodes = [inode_of(&csv)?, inode_of(&journal)?];
        Ok(Self { path: path.to_owned(), journal_path, csv, inodes, journal, keys, locks: true })
    }

    /// Whether one handle's lock keeps another handle out, as it must.
    pub(crate) fn locks_work(&self) -> io::Result<bool> {
        let second = open_to_write(&beside(&self.path, ".journal"))?;
        match self.journal.try_lock() {
            // Somebody else's lock was in our way: so they do.
            Err(TryLockError::WouldBlock) => return Ok(true),
            Err(TryLockError::Error(e)) => {
                tracing::debug!(error = %e, "the journal cannot be locked");
                return Ok(false);
            }
            Ok(()) => {}
        }
        let excluded = matches!(second.try_lock(), Err(TryLockError::WouldBlock));
        self.journal.unlock()?;
        Ok(excluded)
    }

    /// Goes on without locks.
    pub(crate) fn accept_unlocked(&mut self) {
        self.locks = false;
    }

    /// Room left on the volume, for who is not root, and the volume's size.
    pub(crate) fn volume_bytes(&self) -> io::Result<(u64, u64)> {
        let volume = fstatvfs(&self.csv)?;
        Ok((volume.f_bavail * volume.f_frsize, volume.f_blocks * volume.f_frsize))
    }

    /// Takes the OS lock, trying until `deadline`, 1 to 50 ms apart; and makes sure that path and open file are still one.
    pub(crate) fn lock(&self, deadline: Instant) -> Result<OsLock, AppendError> {
        let lock = if self.locks { self.take_lock(deadline)? } else { OsLock(None) };
        // guard: same_file
        self.refuse_replaced()?;
        Ok(lock)
    }

    fn take_lock(&self, deadline: Instant) -> Result<OsLock, AppendError> {
        let mut pause = Duration::from_millis(1);
        loop {
            // guard: os_lock
            match self.journal.try_lock() {
                Ok(()) => return Ok(OsLock(Some(Arc::clone(&self.journal)))),
                Err(TryLockError::Error(e)) => return Err(AppendError::before("lock")(e)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(AppendError::Busy),
                Err(TryLockError::WouldBlock) => thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// A file that was renamed away or replaced would take rows that nobody finds.
    fn refuse_replaced(&self) -> Result<(), AppendError> {
        for (path, ours) in [&self.path, &self.journal_path].into_iter().zip(self.inodes) {
            if inode_at(path).map_err(AppendError::before("find"))? != ours {
                return Err(AppendError::Replaced);
            }
        }
        Ok(())
    }

    /// The file of keys that is there now.
    fn keys(&self) -> io::Result<MutexGuard<'_, File>> {
        let path = beside(&self.path, ".keys");
        let mut keys = self.keys.lock().expect("no holder of the keys' file panics");
        if inode_at(&path)? != inode_of(&keys)? {
            *keys = open_to_write(&path)?;
        }
        Ok(keys)
    }

    fn side(&self, place: Place) -> PathBuf {
        match place {
            Place::Torn => beside(&self.path, ".torn"),
            Place::Tail(which) => beside(&self.path, &format!(".rebuild-{which}")),
            Place::Csv | Place::Journal | Place::Keys => unreachable!("these are open"),
        }
    }

    fn open_side(&self, place: Place) -> io::Result<File> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(self.side(place))?;
        if file.metadata()?.len() == 0 {
            side_files::like_csv(&file, &self.path)?;
        }
        Ok(file)
    }

    /// Does something with an open file, whichever it is.
    fn with<T>(&self, place: Place, act: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match place {
            Place::Csv => act(&self.csv),
            Place::Journal => act(&self.journal),
            Place::Keys => act(&*self.keys()?),
            Place::Torn | Place::Tail(_) => act(&self.open_side(place)?),
        }
    }
}

impl Disk for Arc<Files> {
    fn len(&self, place: Place) -> io::Result<u64> {
        self.with(place, |file| Ok(ask(file, StatxFlags::SIZE)?.stx_size))
    }

    fn read_at(&self, place: Place, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(place, |file| {
            let mut read = 0;
            while read < buffer.len() {
                match file.read_at(&mut buffer[read..], offset + read as u64) {
                    Ok(0) => break,
                    Ok(some) => read += some,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(read)
        })
    }

    fn write_parts_at(&self, place: Place, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        assert!(matches!(place, Place::Journal | Place::Keys | Place::Tail(_)), "the CSV is only ever appended to");
        match place {
            // A file that is open for appending appends, wherever it is told to write.
            Place::Tail(_) => write_all_parts_at(&open_to_write(&self.side(place))?, offset, parts),
            Place::Journal => {
                let point = if offset < Layout::REAL.mark() { "header_half_written" } else { "record_half_written" };
                let bytes = parts.iter().map(|part| part.len()).sum();
                let half = failpoints::half(point, bytes);
                if half == bytes {
                    return write_all_parts_at(&self.journal, offset, parts);
                }
                let text = parts.concat();
                self.journal.write_all_at(&text[..half], offset)?;
                failpoints::reach(point);
                self.journal.write_all_at(&text[half..], offset + half as u64)
            }
            _ => self.with(place, |file| write_all_parts_at(file, offset, parts)),
        }
    }

    fn append(&self, place: Place, bytes: &[u8]) -> io::Result<Landed> {
        if bytes.is_empty() {
            // A write of nothing tells nothing of where the end is.
            let end = self.len(place)?;
            return Ok(Landed { start: end, end });
        }
        self.with(place, |mut file| {
            let point = match place {
                Place::Csv => "csv_half_written",
                Place::Torn => "torn_half_written",
                Place::Journal | Place::Keys | Place::Tail(_) => "tail_half_written",
            };
            let first = file.write(&bytes[..failpoints::half(point, bytes.len())])?;
            let start = file.stream_position()? - first as u64;
            failpoints::reach(point);
            if first == bytes.len() {
                return Ok(Landed { start, end: start + first as u64 });
            }
            file.write_all(&bytes[first..])?;
            Ok(Landed { start, end: file.stream_position()? })
        })
    }

    fn cut(&self, place: Place, len: u64) -> io::Result<()> {
        if let (Place::Tail(_), 0) = (place, len) {
            return match fs::remove_file(self.side(place)) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        self.with(place, |file| file.set_len(len))
    }

    fn reserve(&self, place: Place, offset: u64, bytes: u64) -> io::Result<()> {
        self.with(place, |file| {
            let end = offset + bytes;
            if ask(file, StatxFlags::BLOCKS)?.stx_blocks * 512 >= end + BOOKKEEPING_BYTES {
                return Ok(());
            }
            let allocate = |bytes| fallocate(file, FallocateFlags::KEEP_SIZE, offset, bytes).map_err(io::Error::from);
            match allocate(bytes + RESERVE_BYTES).or_else(|_| allocate(bytes)) {
                // Not every file system knows how: there, a full disk is found out too late, and ends the process.
                Err(e) if e.kind() == ErrorKind::Unsupported => Ok(()),
                other => other,
            }
        })
    }

    fn sync(&self, place: Place) -> io::Result<()> {
        match place {
            Place::Csv | Place::Journal | Place::Keys => self.with(place, File::sync_data),
            Place::Torn | Place::Tail(_) => {
                self.with(place, File::sync_all)?;
                File::open(side_files::directory_of(&self.path))?.sync_all()
            }
        }
    }
}

/// The OS lock, freed when dropped. A process that is stopped keeps it, one that is killed loses it.
#[derive(Debug)]
pub(crate) struct OsLock(Option<Arc<File>>);

impl Drop for OsLock {
    fn drop(&mut self) {
        if let Some(Err(e)) = self.0.as_ref().map(|file| file.unlock()) {
            tracing::error!(error = %e, "cannot unlock the journal");
        }
    }
}
