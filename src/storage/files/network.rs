//! The files on a volume that several hosts share, such as NFS.
//!
//! Each host has a page cache of its own, and an OS lock makes only the locked file's cache true. So nothing goes through the
//! cache: every read asks the server, and every write is stable there when it returns. A server refuses a write with `EIO` once
//! it gave the lock away, but only a write through the handle that held the lock of that very file. So each file is written
//! through the handle that holds its lock: the journal's lock is the OS lock of the whole, and the other files are locked
//! under it, when they are first written.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, OFlags, Statx, StatxFlags, statx},
    io::retry_on_intr,
};

use crate::storage::{
    disk::{AppendedRange, Disk, FileKind},
    error::{AppendError, is_full},
    files::{
        handles::{Inode, inode_of, lock_excludes, refuse_other_file, refuse_second_path, retry, stat, try_until},
        read_ahead::{ReadAhead, read_full},
    },
    safe_open::{Access, open_csv, open_or_create, open_side_file},
    side_files::{copy_owner_and_mode, parent_directory, side_path, stat_on_server},
};

/// How long the holder of the journal's lock tries for the lock of another file, which only a dead host can still have.
const SIDE_LOCK_WAIT: Duration = Duration::from_secs(2);

/// The open files.
#[derive(Debug)]
pub(crate) struct NetworkFiles {
    path: PathBuf,
    journal_path: PathBuf,
    /// Whether the handles can only read.
    read_only: bool,
    /// False on a volume without file locks that was accepted as it is.
    locks: bool,
    /// Past the page cache, except in tests on file systems whose direct I/O needs aligned memory.
    direct: OFlags,
    /// Of the CSV and the journal: a path that leads to another inode was replaced or renamed.
    inodes: [Inode; 2],
    handles: Mutex<Handles>,
    hold: Mutex<Option<Hold>>,
    /// A call failed, perhaps because the server gave a lock away. The lock stays lost for its handle, so the next hold opens
    /// the files again.
    is_suspect: AtomicBool,
    csv_ahead: ReadAhead,
    journal_ahead: ReadAhead,
    /// The CSV's last known length. A read that ends there needs no second call to find the end.
    csv_len: AtomicU64,
}

/// The handles that are always open.
#[derive(Debug, Clone)]
struct Handles {
    /// Only for reading. A handle that is open for writing makes the kernel take other hosts' changes for its own, and other
    /// programs on this host then read zeros in place of new rows.
    csv: Arc<File>,
    journal: Arc<File>,
}

/// The handles that are open, and locked, while this process holds the journal's lock.
#[derive(Debug)]
struct Hold {
    csv: Arc<File>,
    /// The CSV's length when it was opened, until it is asked for or changed: the open has just told it.
    csv_len: Option<u64>,
    /// Side files that were written.
    side: Vec<(FileKind, Arc<File>)>,
}

impl NetworkFiles {
    /// Opens existing files.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, false, OFlags::DIRECT)
    }

    /// Opens the files read-only. Without a journal, the CSV stands in for it: only the CSV may be read then. In the same way the
    /// journal stands in for a missing CSV.
    pub(super) fn open_to_read(path: &Path) -> io::Result<Self> {
        Self::open_with(path, true, OFlags::DIRECT)
    }

    fn open_with(path: &Path, read_only: bool, direct: OFlags) -> io::Result<Self> {
        let side = side_path(path, ".journal");
        let journal_path = if read_only && !side.exists() { path.to_owned() } else { side };
        let csv_path = if read_only && !path.exists() { &journal_path } else { path };
        let direct = if is_direct_possible(csv_path)? { direct } else { OFlags::empty() };
        let csv = open_csv(csv_path, Access::Read, direct)?;
        let access = if read_only { Access::Read } else { Access::Write };
        let journal = open_side_file(&journal_path, path, access, flags(access, direct))?;
        Ok(Self {
            inodes: [inode_of(&csv)?, inode_of(&journal)?],
            handles: Mutex::new(Handles { csv: Arc::new(csv), journal: Arc::new(journal) }),
            path: path.to_owned(),
            journal_path,
            read_only,
            locks: true,
            direct,
            hold: Mutex::new(None),
            is_suspect: AtomicBool::new(false),
            csv_ahead: ReadAhead::default(),
            journal_ahead: ReadAhead::default(),
            csv_len: AtomicU64::new(u64::MAX),
        })
    }

    /// The CSV's handle for reading.
    pub(super) fn csv(&self) -> Arc<File> {
        self.handles().csv
    }

    /// Whether a lock held through one handle excludes another handle.
    pub(super) fn locks_work(&self) -> io::Result<bool> {
        lock_excludes(&self.handles().journal, &self.open_side(&self.journal_path, Access::Write)?)
    }

    /// Continues without locks.
    pub(super) fn accept_unlocked(&mut self) {
        self.locks = false;
    }

    /// Takes the locks of the journal and then of the CSV, each with the handle that is written.
    pub(super) fn lock(self: &Arc<Self>, deadline: Instant) -> Result<NetworkLock, AppendError> {
        self.forget_read_ahead();
        self.reopen_if_suspect()?;
        let journal = self.handles().journal;
        let lock = |file: &File, deadline| {
            if !self.locks {
                return Ok(());
            }
            let locked = try_until(deadline, || if self.read_only { file.try_lock_shared() } else { file.try_lock() });
            locked.inspect_err(|e| {
                if !matches!(e, AppendError::Busy) {
                    self.is_suspect.store(true, Ordering::Relaxed);
                }
            })
        };
        // guard: lock_journal: every record is written through the handle that holds the journal's lock
        lock(&journal, deadline)?;
        let held = NetworkLock { files: Arc::clone(self), journal };
        let csv = if self.read_only {
            self.handles().csv
        } else {
            let csv = open_csv(&self.path, Access::Write, flags(Access::Write, self.direct));
            Arc::new(csv.map_err(|e| self.suspect("open", e))?)
        };
        // The open has just told both.
        let opened = stat(&csv, StatxFlags::SIZE | StatxFlags::NLINK).map_err(|e| self.suspect("stat", e))?;
        let csv_len = opened.stx_size;
        // guard: lock_csv: rows are written through a handle that holds the CSV's lock
        lock(&csv, deadline.max(Instant::now() + SIDE_LOCK_WAIT))?;
        self.refuse_replaced(&csv)?;
        if !self.read_only {
            refuse_second_path(&self.path, &opened)?;
        }
        self.csv_len.store(csv_len, Ordering::Relaxed);
        *self.hold.lock().expect("not poisoned") = Some(Hold { csv, csv_len: Some(csv_len), side: Vec::new() });
        Ok(held)
    }

    fn suspect(&self, doing: &'static str, e: io::Error) -> AppendError {
        self.is_suspect.store(true, Ordering::Relaxed);
        AppendError::before(doing)(e)
    }

    /// Opens the files again after a failed call.
    fn reopen_if_suspect(&self) -> Result<(), AppendError> {
        if !self.is_suspect.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let reopen = || {
            let csv = open_csv(&self.path, Access::Read, self.direct)?;
            let access = if self.read_only { Access::Read } else { Access::Write };
            let journal = self.open_side(&self.journal_path, access)?;
            let is_same = [inode_of(&csv)?, inode_of(&journal)?] == self.inodes;
            Ok((is_same, Handles { csv: Arc::new(csv), journal: Arc::new(journal) }))
        };
        let (is_same, handles) = reopen().map_err(|e| self.suspect("open", e))?;
        if !is_same {
            self.is_suspect.store(true, Ordering::Relaxed);
            return Err(AppendError::Replaced);
        }
        *self.handles.lock().expect("not poisoned") = handles;
        Ok(())
    }

    fn handles(&self) -> Handles {
        self.handles.lock().expect("not poisoned").clone()
    }

    /// Rows appended to a file that was renamed or replaced would be lost to its readers.
    fn refuse_replaced(&self, csv: &File) -> Result<(), AppendError> {
        let find = || -> io::Result<(Statx, Statx, Inode)> {
            // The client trusts names that it knows until it learns that the directory has changed.
            stat_on_server(parent_directory(&self.path))?;
            Ok((stat_name(&self.path)?, stat_name(&self.journal_path)?, inode_of(csv)?))
        };
        let (named_csv, named_journal, opened) = find().map_err(|e| match e.kind() {
            ErrorKind::NotFound => AppendError::Replaced,
            _ => AppendError::before("find")(e),
        })?;
        let [csv_inode, journal_inode] = self.inodes;
        refuse_other_file(&named_csv, csv_inode)?;
        refuse_other_file(&named_journal, journal_inode)?;
        if opened == csv_inode { Ok(()) } else { Err(AppendError::Replaced) }
    }

    fn open_side(&self, path: &Path, access: Access) -> io::Result<File> {
        open_side_file(path, &self.path, access, flags(access, self.direct))
    }

    fn path_of(&self, kind: FileKind) -> PathBuf {
        match kind {
            FileKind::Csv => self.path.clone(),
            FileKind::Journal => self.journal_path.clone(),
            FileKind::Keys => side_path(&self.path, ".keys"),
            FileKind::Torn => side_path(&self.path, ".torn"),
            FileKind::Tail(which) => side_path(&self.path, &format!(".rebuild-{which}")),
        }
    }

    fn handle_to_read(&self, kind: FileKind) -> io::Result<Arc<File>> {
        let hold = self.hold.lock().expect("not poisoned");
        match (kind, &*hold) {
            (FileKind::Csv, Some(hold)) => Ok(Arc::clone(&hold.csv)),
            (FileKind::Csv, None) => Ok(self.handles().csv),
            (FileKind::Journal, _) => Ok(self.handles().journal),
            (_, hold) => match hold.as_ref().and_then(|hold| hold.side(kind)) {
                Some(file) => Ok(file),
                None => Ok(Arc::new(self.open_side(&self.path_of(kind), Access::Read)?)),
            },
        }
    }

    /// The handle that holds the file's lock.
    fn handle_to_write(&self, kind: FileKind) -> io::Result<Arc<File>> {
        let mut hold = self.hold.lock().expect("not poisoned");
        let hold = hold.as_mut().ok_or_else(|| io::Error::other("a file is written without the OS lock"))?;
        match kind {
            FileKind::Csv => return Ok(Arc::clone(&hold.csv)),
            FileKind::Journal => return Ok(self.handles().journal),
            FileKind::Keys | FileKind::Torn | FileKind::Tail(_) => {}
        }
        if let Some(file) = hold.side(kind) {
            return Ok(file);
        }
        // A start has made the keys, perhaps by a second link that is still there.
        let open = if kind == FileKind::Keys { open_side_file } else { open_or_create };
        let file = open(&self.path_of(kind), &self.path, Access::Write, flags(Access::Write, self.direct))?;
        // guard: lock_side_files: a late write of a host that lost its locks can't hit another host's side files
        try_until(Instant::now() + SIDE_LOCK_WAIT, || if self.locks { file.try_lock() } else { Ok(()) })
            .map_err(io::Error::other)?;
        if stat_fresh(&file)? == 0 {
            copy_owner_and_mode(&file, &self.path)?;
        }
        let file = Arc::new(file);
        hold.side.push((kind, Arc::clone(&file)));
        Ok(file)
    }

    /// Notes failures after which the handles can't be used any more.
    fn watch<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|e| {
            let is_refusal = matches!(e.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied);
            if !is_full(e) && !is_refusal {
                self.is_suspect.store(true, Ordering::Relaxed);
            }
        })
    }

    /// Closes what a hold opened, which also unlocks it.
    fn end_hold(&self) {
        self.hold.lock().expect("not poisoned").take();
    }
}

impl Disk for NetworkFiles {
    fn is_direct(&self) -> bool {
        true
    }

    fn csv_inode(&self) -> u64 {
        self.inodes[0].2
    }

    fn forget_read_ahead(&self) {
        if self.read_only
            && let Err(e) = self.reopen_if_suspect()
        {
            tracing::debug!(error = %e, "the files cannot be opened again yet");
        }
        self.csv_ahead.forget();
        self.journal_ahead.forget();
    }

    fn len(&self, kind: FileKind) -> io::Result<u64> {
        let mut hold = self.hold.lock().expect("not poisoned");
        if let Some(len) = hold.as_mut().filter(|_| kind == FileKind::Csv).and_then(|hold| hold.csv_len.take()) {
            return Ok(len);
        }
        drop(hold);
        let len = self.watch(self.handle_to_read(kind).and_then(|file| stat_fresh(&file)))?;
        if kind == FileKind::Csv {
            self.csv_len.store(len, Ordering::Relaxed);
        }
        Ok(len)
    }

    fn read_at(&self, kind: FileKind, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.watch(self.handle_to_read(kind).and_then(|file| match kind {
            FileKind::Csv => self.csv_ahead.read_at(&file, offset, buffer, self.csv_len.load(Ordering::Relaxed)),
            FileKind::Journal => self.journal_ahead.read_at(&file, offset, buffer, u64::MAX),
            _ => read_full(&file, offset, buffer),
        }))
    }

    /// One write from one buffer: parts that do not end at a page are a call of the server each, and unstable.
    fn write_parts_at(&self, kind: FileKind, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.forget_read_ahead();
        let file = self.handle_to_write(kind);
        self.watch(file.and_then(|file| match parts {
            [part] => file.write_all_at(part, offset),
            parts => file.write_all_at(&parts.concat(), offset),
        }))
    }

    /// Writes at the end that the server knows: the NFS client only imitates `O_APPEND`.
    fn append(&self, kind: FileKind, bytes: &[u8]) -> io::Result<AppendedRange> {
        self.forget_read_ahead();
        let append = || {
            let file = self.handle_to_write(kind)?;
            // A line that another program has appended since is not overwritten.
            let start = stat_fresh(&file)?;
            file.write_all_at(bytes, start)?;
            Ok(AppendedRange { start, end: start + bytes.len() as u64 })
        };
        self.watch(append())
    }

    /// Side files are emptied and never deleted, since a delete is not bound to a lock.
    fn truncate(&self, kind: FileKind, len: u64) -> io::Result<()> {
        self.forget_read_ahead();
        if len == 0 && !self.path_of(kind).exists() {
            return Ok(());
        }
        self.watch(self.handle_to_write(kind).and_then(|file| file.set_len(len)))
    }

    /// Servers refuse to allocate space without changing the length.
    fn reserve(&self, _: FileKind, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _: FileKind) -> io::Result<()> {
        Ok(())
    }
}

impl Hold {
    fn side(&self, kind: FileKind) -> Option<Arc<File>> {
        self.side.iter().find(|(open, _)| *open == kind).map(|(_, file)| Arc::clone(file))
    }
}

/// Every write of a handle that is open for writing is stable when it returns.
fn flags(access: Access, direct: OFlags) -> OFlags {
    if access == Access::Read { direct } else { direct | OFlags::DSYNC }
}

/// What a name leads to, for which a known name needs no call.
fn stat_name(path: &Path) -> io::Result<Statx> {
    Ok(retry_on_intr(|| statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO))?)
}

/// Whether the file can be read and written past the page cache at any offset: network file systems ask for no alignment.
fn is_direct_possible(path: &Path) -> io::Result<bool> {
    let found = retry_on_intr(|| statx(CWD, path, AtFlags::empty(), StatxFlags::DIOALIGN))?;
    Ok(found.stx_mask & StatxFlags::DIOALIGN.bits() == 0 || found.stx_dio_offset_align == 1)
}

/// The length that the server knows.
fn stat_fresh(file: &File) -> io::Result<u64> {
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    Ok(retry_on_intr(|| statx(file, "", how, StatxFlags::SIZE))?.stx_size)
}

/// The locks of one hold, released when dropped: the CSV's first, then the journal's.
#[derive(Debug)]
pub(crate) struct NetworkLock {
    files: Arc<NetworkFiles>,
    journal: Arc<File>,
}

impl Drop for NetworkLock {
    fn drop(&mut self) {
        self.files.end_hold();
        if let Err(e) = retry(|| self.journal.unlock()) {
            tracing::debug!(error = %e, "cannot unlock the journal");
            self.files.is_suspect.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Local file systems ask for aligned memory in direct I/O, so these files are opened without it.
    fn open_files(folder: &Path) -> Arc<NetworkFiles> {
        let path = folder.join("rows.csv");
        for suffix in ["", ".journal", ".keys"] {
            std::fs::write(side_path(&path, suffix), "").expect("writable");
        }
        Arc::new(NetworkFiles::open_with(&path, false, OFlags::empty()).expect("opens"))
    }

    fn is_locked(files: &NetworkFiles, kind: FileKind) -> bool {
        let file = File::options().write(true).open(files.path_of(kind)).expect("opens");
        matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock))
    }

    #[test]
    fn each_file_is_locked_by_the_handle_that_writes_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = open_files(folder.path());
        let kinds = [FileKind::Journal, FileKind::Csv, FileKind::Keys, FileKind::Torn, FileKind::Tail(1)];
        let lock = files.lock(Instant::now()).expect("locks");
        for kind in kinds {
            if kind == FileKind::Csv || kind == FileKind::Torn {
                files.append(kind, b"one").expect("writes");
            } else {
                files.write_parts_at(kind, 3, &[b"o", b"ne"]).expect("writes");
            }
            assert!(is_locked(&files, kind), "{kind:?}");
        }
        assert_eq!(files.read(FileKind::Keys, 0, 9).expect("reads"), b"\0\0\0one");
        drop(lock);
        assert!(!kinds.iter().any(|&kind| is_locked(&files, kind)), "all are released");
    }

    #[test]
    fn write_without_the_os_lock_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = open_files(folder.path());
        drop(files.lock(Instant::now()).expect("locks"));
        for kind in [FileKind::Csv, FileKind::Journal, FileKind::Torn] {
            assert!(files.write_parts_at(kind, 0, &[b"late"]).is_err(), "{kind:?}");
        }
        assert_eq!(files.len(FileKind::Csv).expect("stats"), 0);
    }

    #[test]
    fn second_holder_waits_and_replaced_csv_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = open_files(folder.path());
        let other = Arc::new(NetworkFiles::open_with(&files.path, false, OFlags::empty()).expect("opens"));
        let lock = files.lock(Instant::now()).expect("locks");
        assert!(matches!(other.lock(Instant::now()), Err(AppendError::Busy)));
        drop(lock);
        std::fs::rename(&files.path, folder.path().join("old.csv")).expect("renames");
        std::fs::write(&files.path, "").expect("writable");
        assert!(matches!(other.lock(Instant::now()), Err(AppendError::Replaced)));
        assert!(!is_locked(&files, FileKind::Journal), "a refusal keeps no lock");
    }

    #[test]
    fn files_are_opened_again_after_a_failed_call() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = open_files(folder.path());
        let journal = files.handles().journal;
        assert!(files.write_parts_at(FileKind::Csv, 0, &[b"late"]).is_err());
        let _lock = files.lock(Instant::now()).expect("locks");
        assert!(!Arc::ptr_eq(&journal, &files.handles().journal));
    }

    #[test]
    fn read_ahead_lasts_until_it_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = open_files(folder.path());
        std::fs::write(&files.path, "one two").expect("writable");
        assert_eq!(files.read(FileKind::Csv, 0, 3).expect("reads"), b"one");
        std::fs::write(&files.path, "ONE TWO THREE").expect("writable");
        assert_eq!(files.read(FileKind::Csv, 4, 3).expect("reads"), b"two");
        files.forget_read_ahead();
        assert_eq!(files.read(FileKind::Csv, 4, 9).expect("reads"), b"TWO THREE");
    }
}
