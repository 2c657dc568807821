//! The state of the disk, and what each call does to it.

use std::collections::HashMap;

use rustix::{fs::RenameFlags, io::Errno};

use rowlock::random::Random;

use super::{
    Lost,
    faults::Faults,
    file::{BLOCK, CachedFile},
    names::Names,
};

pub(super) type Answer<T> = Result<T, Errno>;

/// The largest file, since everything is in memory.
const FILE_MAX: u64 = 1 << 30;
/// What `statfs` returns for a disk without a limit.
const DISK_BYTES: u64 = 1 << 40;

pub(super) struct State {
    pub(super) names: Names,
    pub(super) faults: Faults,
    /// By inode number. A file without a name stays until a power cut, since the disk may still have its name.
    files: HashMap<u64, CachedFile>,
    /// Inode numbers are never reused, since the kernel identifies files by them.
    last: u64,
    last_handle: u64,
    random: Random,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            names: Names::default(),
            faults: Faults::default(),
            files: HashMap::new(),
            last: fuser::INodeNo::ROOT.0,
            last_handle: 0,
            random: Random(seed),
        }
    }

    pub(super) fn find(&self, name: &str) -> Answer<u64> {
        self.names.file(name).ok_or(Errno::NOENT)
    }

    pub(super) fn file(&self, ino: u64) -> Answer<&CachedFile> {
        self.files.get(&ino).ok_or(Errno::STALE)
    }

    pub(super) fn file_mut(&mut self, ino: u64) -> Answer<&mut CachedFile> {
        self.files.get_mut(&ino).ok_or(Errno::STALE)
    }

    /// Every change calls this first.
    pub(super) fn may_change(&self) -> Answer<()> {
        if self.faults.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    pub(super) fn create(&mut self, name: &str, mode: u32, uid: u32, gid: u32) -> Answer<u64> {
        self.may_change()?;
        self.refuse_taken(name)?;
        self.last += 1;
        self.files.insert(self.last, CachedFile::new(mode, uid, gid));
        self.names.change(vec![(name.to_owned(), Some(self.last))]);
        Ok(self.last)
    }

    pub(super) fn link(&mut self, ino: u64, name: &str) -> Answer<()> {
        self.may_change()?;
        self.refuse_taken(name)?;
        self.names.change(vec![(name.to_owned(), Some(ino))]);
        Ok(())
    }

    fn refuse_taken(&self, name: &str) -> Answer<()> {
        if self.find(name).is_ok() { Err(Errno::EXIST) } else { Ok(()) }
    }

    pub(super) fn unlink(&mut self, name: &str) -> Answer<()> {
        self.may_change()?;
        self.find(name)?;
        self.names.change(vec![(name.to_owned(), None)]);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, flags: RenameFlags) -> Answer<()> {
        self.may_change()?;
        let (moved, replaced) = (self.find(from)?, self.find(to).ok());
        if !(flags - RenameFlags::NOREPLACE).is_empty() {
            return Err(Errno::INVAL);
        }
        if replaced.is_some() && flags.contains(RenameFlags::NOREPLACE) {
            return Err(Errno::EXIST);
        }
        // POSIX: a rename between two names of one file changes nothing.
        if replaced != Some(moved) {
            self.names.change(vec![(from.to_owned(), None), (to.to_owned(), Some(moved))]);
        }
        Ok(())
    }

    /// A new handle for each open.
    pub(super) fn open(&mut self, ino: u64) -> Answer<u64> {
        self.last_handle += 1;
        let handle = self.last_handle;
        self.file_mut(ino)?.open(handle);
        Ok(handle)
    }

    /// Returns how many bytes were written.
    pub(super) fn write(&mut self, ino: u64, at: u64, bytes: &[u8]) -> Answer<usize> {
        self.may_change()?;
        if let Some(errno) = self.faults.writes.next(self.names.of(ino)) {
            self.faults.writes_failed += 1;
            return Err(errno);
        }
        let end = self.end_within(ino, at + bytes.len() as u64)?;
        let mut taken = bytes.len().min(end.saturating_sub(at) as usize);
        if taken == 0 {
            return Err(Errno::NOSPC);
        }
        if self.faults.short_writes && taken > 1 {
            taken = 1 + self.random.below(taken - 1);
            self.faults.writes_shortened += 1;
        }
        self.file_mut(ino)?.write(at as usize, &bytes[..taken]);
        Ok(taken)
    }

    pub(super) fn resize(&mut self, ino: u64, len: u64) -> Answer<()> {
        self.may_change()?;
        self.refuse_beyond(ino, len)?;
        self.file_mut(ino)?.resize(len);
        Ok(())
    }

    pub(super) fn allocate(&mut self, ino: u64, end: u64, keep_size: bool) -> Answer<()> {
        self.may_change()?;
        if self.faults.without_fallocate {
            return Err(Errno::OPNOTSUPP);
        }
        self.refuse_beyond(ino, end)?;
        let file = self.file_mut(ino)?;
        file.reserve(end);
        if !keep_size && file.len() < end {
            file.resize(end);
        }
        Ok(())
    }

    fn refuse_beyond(&self, ino: u64, end: u64) -> Answer<()> {
        if self.end_within(ino, end)? < end { Err(Errno::NOSPC) } else { Ok(()) }
    }

    /// How far towards `end` a write can go. A file may use its allocated space even if the disk is full.
    fn end_within(&self, ino: u64, end: u64) -> Answer<u64> {
        let file = self.file(ino)?;
        if end > FILE_MAX {
            return Err(Errno::FBIG);
        }
        let more = file.room_to(end) - file.room();
        if more <= self.room_left() {
            return Ok(end);
        }
        Ok(end.min(file.room() + self.room_left() / BLOCK * BLOCK))
    }

    pub(super) fn room_in_all(&self) -> u64 {
        self.faults.capacity.unwrap_or(DISK_BYTES)
    }

    pub(super) fn room_left(&self) -> u64 {
        let in_use = |(ino, file): &(&u64, &CachedFile)| file.is_open() || self.names.of(**ino).next().is_some();
        let used = self.files.iter().filter(in_use).map(|(_, file)| file.room()).sum();
        self.room_in_all().saturating_sub(used)
    }

    pub(super) fn sync(&mut self, ino: u64, handle: u64) -> Answer<()> {
        let file = self.files.get_mut(&ino).ok_or(Errno::STALE)?;
        if file.is_told_now(handle) {
            self.faults.syncs_failed += 1;
            return Err(Errno::IO);
        }
        let Some(errno) = self.faults.syncs.next(self.names.of(ino)) else {
            file.sync();
            return Ok(());
        };
        self.faults.syncs_failed += 1;
        // As on Linux, what could not be written counts as written from then on.
        file.survive(&mut self.random, 50);
        file.tell_others_than(handle);
        Err(errno)
    }

    pub(super) fn lose_power(&mut self) -> Lost {
        let mut lost = Lost { entries: self.names.lose_power(&mut self.random), ..Lost::default() };
        self.files.retain(|ino, _| self.names.of(*ino).next().is_some());
        // In order, so that the effect of a seed does not depend on the map's hashes.
        let mut files: Vec<_> = self.files.iter_mut().collect();
        files.sort_unstable_by_key(|(ino, _)| **ino);
        for (_, file) in files {
            let more = file.lose_power(&mut self.random);
            lost.writes += more.writes;
            lost.pieces += more.pieces;
        }
        lost
    }

    /// The kernel does not always close files that were open at the unmount.
    pub(super) fn forget_handles(&mut self) {
        for file in self.files.values_mut() {
            file.forget_handles();
        }
    }
}
