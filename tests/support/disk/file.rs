//! One file: the content in the cache, the content on the disk, and the changes between them.

use std::{collections::BTreeSet, mem, time::SystemTime};

use rowlock::random::Random;

use super::Lost;

/// Space is allocated in blocks of this size.
pub(super) const BLOCK: u64 = 4096;

/// Owner, mode and times survive every power cut: no promise depends on them.
pub(super) struct CachedFile {
    cache: Vec<u8>,
    disk: Vec<u8>,
    pending: Vec<Change>,
    /// The end of the space that `fallocate` has reserved. It survives every power cut, too.
    reserved: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) accessed: SystemTime,
    pub(super) modified: SystemTime,
    pub(super) changed: SystemTime,
    /// A file without a name uses space only while it is open.
    handles: BTreeSet<u64>,
    /// Handles that were open when a sync by another one failed, and have not returned the error yet.
    untold: BTreeSet<u64>,
}

enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => put(image, *at, bytes),
            Self::Resize(len) => image.resize(*len, 0),
        }
    }
}

fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[at..end].copy_from_slice(bytes);
}

impl CachedFile {
    pub(super) fn new(mode: u32, uid: u32, gid: u32) -> Self {
        let now = SystemTime::now();
        Self {
            cache: Vec::new(),
            disk: Vec::new(),
            pending: Vec::new(),
            reserved: 0,
            mode,
            uid,
            gid,
            accessed: now,
            modified: now,
            changed: now,
            handles: BTreeSet::new(),
            untold: BTreeSet::new(),
        }
    }

    pub(super) fn open(&mut self, handle: u64) {
        self.handles.insert(handle);
    }

    pub(super) fn close(&mut self, handle: u64) {
        self.handles.remove(&handle);
        self.untold.remove(&handle);
    }

    pub(super) fn is_open(&self) -> bool {
        !self.handles.is_empty()
    }

    pub(super) fn forget_handles(&mut self) {
        self.handles.clear();
        self.untold.clear();
    }

    /// As on Linux, a failed sync is reported once to each other open handle.
    pub(super) fn tell_others_than(&mut self, handle: u64) {
        self.untold.extend(self.handles.iter().filter(|&&other| other != handle));
    }

    /// Whether a sync by another handle failed, and this one has not returned the error yet.
    pub(super) fn is_told_now(&mut self, handle: u64) -> bool {
        self.untold.remove(&handle)
    }

    pub(super) fn content(&self) -> &[u8] {
        &self.cache
    }

    pub(super) fn len(&self) -> u64 {
        self.cache.len() as u64
    }

    /// The space that the file uses on the disk.
    pub(super) fn room(&self) -> u64 {
        self.room_to(self.len())
    }

    /// The space that it would use with at least this length.
    pub(super) fn room_to(&self, end: u64) -> u64 {
        end.max(self.len()).max(self.reserved).next_multiple_of(BLOCK)
    }

    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.change(Change::Write(at, bytes.to_vec()));
    }

    pub(super) fn resize(&mut self, len: u64) {
        if len < self.len() {
            // As on ext4, a truncation releases the space reserved after the end.
            self.reserved = self.reserved.min(len);
        }
        self.change(Change::Resize(len as usize));
    }

    pub(super) fn reserve(&mut self, end: u64) {
        self.reserved = self.reserved.max(end);
        self.changed = SystemTime::now();
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.cache);
        self.pending.push(change);
        self.modified = SystemTime::now();
        self.changed = self.modified;
    }

    pub(super) fn sync(&mut self) {
        for change in mem::take(&mut self.pending) {
            change.apply(&mut self.disk);
        }
    }

    /// Writes each pending piece to the disk with this probability. Nothing is pending afterwards.
    pub(super) fn survive(&mut self, random: &mut Random, percent: usize) -> Lost {
        let mut lost = Lost::default();
        for change in mem::take(&mut self.pending) {
            let pieces = survive(&change, &mut self.disk, random, percent);
            lost.writes += usize::from(pieces > 0);
            lost.pieces += pieces;
        }
        lost
    }

    pub(super) fn lose_power(&mut self, random: &mut Random) -> Lost {
        let percent = [0, 50, 50, 100][random.below(4)];
        let lost = self.survive(random, percent);
        self.cache.clone_from(&self.disk);
        self.forget_handles();
        lost
    }
}

/// Applies random pieces, which may end anywhere in a page. Returns how many were lost.
fn survive(change: &Change, disk: &mut Vec<u8>, random: &mut Random, percent: usize) -> usize {
    let Change::Write(at, bytes) = change else {
        let survives = random.chance(percent);
        if survives {
            change.apply(disk);
        }
        return usize::from(!survives);
    };
    let (mut lost, mut at, mut rest) = (0, *at, bytes.as_slice());
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at((1 + random.below(BLOCK as usize)).min(rest.len()));
        if random.chance(percent) {
            put(disk, at, piece);
        } else {
            lost += 1;
        }
        at += piece.len();
        rest = behind;
    }
    lost
}
