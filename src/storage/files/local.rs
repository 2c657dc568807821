//! The files on a volume of one host: written through the page cache, synced when they must be durable, and guarded by the OS
//! lock on the journal.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, IoSlice, Seek, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use rustix::{
    fs::{FallocateFlags, OFlags, StatxFlags, fallocate},
    io::{Errno, pwritev, retry_on_intr},
};

use crate::{
    failpoints,
    storage::{
        disk::{AppendedRange, Disk, FileKind},
        error::AppendError,
        files::handles::{
            Inode, inode_at, inode_of, lock_excludes, refuse_other_file, refuse_second_path, retry, stat, try_until,
        },
        files::read_ahead::read_full,
        journal::Layout,
        safe_open::{Access, open_csv, open_or_create, open_side_file},
        side_files::{copy_owner_and_mode, parent_directory, side_path, stat_on_server},
    },
};

/// Space in the CSV is allocated in steps of this size.
const RESERVE_BYTES: u64 = 4 << 20;
/// The file system may count this much of its own metadata among a file's blocks.
const METADATA_BYTES: u64 = 64 << 10;

/// The open files of one CSV.
#[derive(Debug)]
pub(crate) struct LocalFiles {
    path: PathBuf,
    journal_path: PathBuf,
    csv: File,
    journal: Arc<File>,
    /// Of the open CSV and journal: a path that leads to another inode was replaced or renamed.
    inodes: [Inode; 2],
    /// Opened again after a replica that remembers more keys has replaced it.
    keys: Mutex<File>,
    /// Whether the handles can only read.
    read_only: bool,
    /// False on a volume without file locks that was accepted as it is.
    locks: bool,
}

/// Writes all parts without copying them into one buffer.
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

impl LocalFiles {
    /// The open CSV.
    pub(super) fn csv(&self) -> &File {
        &self.csv
    }

    /// Opens existing files.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let csv = open_csv(path, Access::Append, OFlags::empty())?;
        let open = |suffix| open_side_file(&side_path(path, suffix), path, Access::Write, OFlags::empty());
        let journal = Arc::new(open(".journal")?);
        Ok(Self {
            inodes: [inode_of(&csv)?, inode_of(&journal)?],
            keys: Mutex::new(open(".keys")?),
            journal_path: side_path(path, ".journal"),
            path: path.to_owned(),
            read_only: false,
            locks: true,
            csv,
            journal,
        })
    }

    /// Opens the files read-only. Without a journal or keys file, the CSV stands in for it: only the CSV may be read then. In the
    /// same way the journal stands in for a missing CSV.
    pub(super) fn open_to_read(path: &Path) -> io::Result<Self> {
        let found = |opened: io::Result<File>| match opened {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        let open = |suffix| open_side_file(&side_path(path, suffix), path, Access::Read, OFlags::empty());
        let csv = match found(open_csv(path, Access::Read, OFlags::empty()))? {
            Some(csv) => csv,
            None => open(".journal")?,
        };
        let (journal, keys) = (found(open(".journal"))?, found(open(".keys"))?);
        let journal_path = if journal.is_some() { side_path(path, ".journal") } else { path.to_owned() };
        let journal = Arc::new(journal.map_or_else(|| csv.try_clone(), Ok)?);
        let keys = Mutex::new(keys.map_or_else(|| csv.try_clone(), Ok)?);
        let inodes = [inode_of(&csv)?, inode_of(&journal)?];
        Ok(Self { path: path.to_owned(), journal_path, csv, inodes, journal, keys, read_only: true, locks: true })
    }

    /// Whether a lock held through one handle excludes another handle.
    pub(super) fn locks_work(&self) -> io::Result<bool> {
        lock_excludes(&self.journal, &self.open_again(&self.journal_path)?)
    }

    /// Continues without locks.
    pub(super) fn accept_unlocked(&mut self) {
        self.locks = false;
    }

    /// Takes the OS lock, retrying until `deadline`, and refuses if a path leads to another file by then.
    pub(super) fn lock(&self, deadline: Instant) -> Result<LocalLock, AppendError> {
        let lock = if self.locks {
            // guard: os_lock: one process at a time reads and writes the files
            try_until(deadline, || self.journal.try_lock())?;
            LocalLock(Some(Arc::clone(&self.journal)))
        } else {
            LocalLock(None)
        };
        self.refuse_replaced()?;
        Ok(lock)
    }

    /// Rows appended to a file that was renamed or replaced would be lost to its readers.
    pub(super) fn refuse_replaced(&self) -> Result<(), AppendError> {
        // A network volume trusts names that it knows until it learns that the directory has changed.
        stat_on_server(parent_directory(&self.path)).map_err(AppendError::before("find the directory of"))?;
        let [csv, journal] = [&self.path, &self.journal_path].map(|path| match stat_on_server(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Err(AppendError::Replaced),
            other => other.map_err(AppendError::before("find")),
        });
        let (csv, [csv_inode, journal_inode]) = (csv?, self.inodes);
        refuse_other_file(&csv, csv_inode)?;
        refuse_other_file(&journal?, journal_inode)?;
        // A check writes nothing, so that it may look at linked copies, such as those of a backup.
        if self.read_only { Ok(()) } else { refuse_second_path(&self.path, &csv) }
    }

    /// Opens a side file that exists once more.
    fn open_again(&self, path: &Path) -> io::Result<File> {
        open_side_file(path, &self.path, Access::Write, OFlags::empty())
    }

    /// The keys file that the path leads to now.
    fn keys(&self) -> io::Result<MutexGuard<'_, File>> {
        let path = side_path(&self.path, ".keys");
        let mut keys = self.keys.lock().expect("not poisoned");
        if inode_at(&path)? != inode_of(&keys)? {
            *keys = self.open_again(&path)?;
        }
        Ok(keys)
    }

    fn path_of(&self, kind: FileKind) -> PathBuf {
        match kind {
            FileKind::Torn => side_path(&self.path, ".torn"),
            FileKind::Tail(which) => side_path(&self.path, &format!(".rebuild-{which}")),
            FileKind::Csv | FileKind::Journal | FileKind::Keys => unreachable!("these files are always open"),
        }
    }

    fn open_side(&self, kind: FileKind) -> io::Result<File> {
        let file = open_or_create(&self.path_of(kind), &self.path, Access::Append, OFlags::empty())?;
        if file.metadata()?.len() == 0 {
            copy_owner_and_mode(&file, &self.path)?;
        }
        Ok(file)
    }

    fn with<T>(&self, kind: FileKind, act: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match kind {
            FileKind::Csv => act(&self.csv),
            FileKind::Journal => act(&self.journal),
            FileKind::Keys => act(&*self.keys()?),
            FileKind::Torn | FileKind::Tail(_) => act(&self.open_side(kind)?),
        }
    }
}

impl Disk for LocalFiles {
    fn is_direct(&self) -> bool {
        false
    }

    fn csv_inode(&self) -> u64 {
        self.inodes[0].2
    }

    fn forget_read_ahead(&self) {}

    fn len(&self, kind: FileKind) -> io::Result<u64> {
        self.with(kind, |file| Ok(stat(file, StatxFlags::SIZE)?.stx_size))
    }

    fn read_at(&self, kind: FileKind, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(kind, |file| read_full(file, offset, buffer))
    }

    fn write_parts_at(&self, kind: FileKind, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        assert!(matches!(kind, FileKind::Journal | FileKind::Keys | FileKind::Tail(_)), "the CSV is only appended to");
        match kind {
            // A handle opened for appending would ignore the offset.
            FileKind::Tail(_) => write_all_parts_at(&self.open_again(&self.path_of(kind))?, offset, parts),
            FileKind::Journal => {
                let is_header = offset < Layout::REAL.sync_failed_flag_offset();
                let point = if is_header { "header_half_written" } else { "record_half_written" };
                let bytes = parts.iter().map(|part| part.len()).sum();
                let partial_len = failpoints::partial_len(point, bytes);
                if partial_len == bytes {
                    return write_all_parts_at(&self.journal, offset, parts);
                }
                let text = parts.concat();
                self.journal.write_all_at(&text[..partial_len], offset)?;
                failpoints::hit(point);
                self.journal.write_all_at(&text[partial_len..], offset + partial_len as u64)
            }
            _ => self.with(kind, |file| write_all_parts_at(file, offset, parts)),
        }
    }

    fn append(&self, kind: FileKind, bytes: &[u8]) -> io::Result<AppendedRange> {
        if bytes.is_empty() {
            // An empty write does not move to the end of the file.
            let end = self.len(kind)?;
            return Ok(AppendedRange { start: end, end });
        }
        self.with(kind, |mut file| {
            let point = match kind {
                FileKind::Csv => "csv_half_written",
                FileKind::Torn => "torn_half_written",
                FileKind::Journal | FileKind::Keys | FileKind::Tail(_) => "tail_half_written",
            };
            let first = retry(|| file.write(&bytes[..failpoints::partial_len(point, bytes.len())]))?;
            let start = file.stream_position()? - first as u64;
            failpoints::hit(point);
            if first == bytes.len() {
                return Ok(AppendedRange { start, end: start + first as u64 });
            }
            file.write_all(&bytes[first..])?;
            Ok(AppendedRange { start, end: file.stream_position()? })
        })
    }

    fn truncate(&self, kind: FileKind, len: u64) -> io::Result<()> {
        if let (FileKind::Tail(_), 0) = (kind, len) {
            return match fs::remove_file(self.path_of(kind)) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            };
        }
        self.with(kind, |file| file.set_len(len))
    }

    fn reserve(&self, kind: FileKind, offset: u64, bytes: u64) -> io::Result<()> {
        self.with(kind, |file| {
            let end = offset + bytes;
            if stat(file, StatxFlags::BLOCKS)?.stx_blocks * 512 >= end + METADATA_BYTES {
                return Ok(());
            }
            let allocate = |bytes| {
                let reserved = retry_on_intr(|| fallocate(file, FallocateFlags::KEEP_SIZE, offset, bytes));
                reserved.map_err(io::Error::from)
            };
            match allocate(bytes + RESERVE_BYTES).or_else(|_| allocate(bytes)) {
                // Some file systems cannot reserve space. A full disk is then found after the commit point, and ends the process.
                Err(e) if e.kind() == ErrorKind::Unsupported => Ok(()),
                other => other,
            }
        })
    }

    fn sync(&self, kind: FileKind) -> io::Result<()> {
        match kind {
            FileKind::Csv | FileKind::Journal | FileKind::Keys => self.with(kind, File::sync_data),
            FileKind::Torn | FileKind::Tail(_) => {
                self.with(kind, File::sync_all)?;
                File::open(parent_directory(&self.path))?.sync_all()
            }
        }
    }
}

/// The OS lock, released when dropped. A stopped process keeps it, a killed process loses it.
#[derive(Debug)]
pub(crate) struct LocalLock(Option<Arc<File>>);

impl Drop for LocalLock {
    fn drop(&mut self) {
        if let Some(Err(e)) = self.0.as_ref().map(|file| retry(|| file.unlock())) {
            tracing::error!(error = %e, "cannot unlock the journal");
        }
    }
}
