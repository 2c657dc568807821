//! A file that loses power.

use std::{mem, ops::Range};

use crate::random::Random;

/// A file: its bytes in the page cache, its bytes on the disk, and the changes that are not synced yet.
#[derive(Default)]
pub(super) struct SimFile {
    pub(super) cache: Vec<u8>,
    disk: Vec<u8>,
    pending: Vec<Change>,
}

pub(super) enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                if image.len() < at + bytes.len() {
                    image.resize(at + bytes.len(), 0);
                }
                image[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Truncate(len) => image.resize(*len, 0),
        }
    }
}

impl SimFile {
    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.cache);
        self.pending.push(change);
    }

    /// Writes a random part of the unsynced changes to the disk, in pieces of any size.
    pub(super) fn survive(&mut self, random: &mut Random) {
        for change in mem::take(&mut self.pending) {
            let Change::Write(at, bytes) = &change else {
                if random.chance(50) {
                    change.apply(&mut self.disk);
                }
                continue;
            };
            let mut from = 0;
            while from < bytes.len() {
                let to = (from + 1 + random.below(24)).min(bytes.len());
                if random.chance(50) {
                    Change::Write(at + from, bytes[from..to].to_vec()).apply(&mut self.disk);
                }
                from = to;
            }
        }
    }

    pub(super) fn sync(&mut self) {
        for change in mem::take(&mut self.pending) {
            change.apply(&mut self.disk);
        }
    }

    pub(super) fn lose_power(&mut self, random: &mut Random) {
        self.survive(random);
        self.cache.clone_from(&self.disk);
    }

    /// Makes one write durable, and nothing that other calls wrote.
    pub(super) fn write_durably(&mut self, at: usize, bytes: &[u8]) {
        for change in mem::take(&mut self.pending) {
            match change {
                Change::Write(from, old) => self.pending.extend(outside(from, &old, at..at + bytes.len())),
                // A file system makes an older truncation durable first.
                Change::Truncate(_) => change.apply(&mut self.disk),
            }
        }
        let change = Change::Write(at, bytes.to_vec());
        change.apply(&mut self.cache);
        change.apply(&mut self.disk);
    }

    pub(super) fn durable(&self) -> &[u8] {
        &self.disk
    }

    /// Loses everything that was written since the file was like this.
    pub(super) fn revert(&mut self, earlier: &[u8]) {
        (self.cache, self.disk) = (earlier.to_vec(), earlier.to_vec());
        self.pending.clear();
    }

    pub(super) fn truncate_durably(&mut self, len: usize) {
        self.pending.clear();
        self.cache.truncate(len);
        self.disk.clone_from(&self.cache);
    }
}

/// The parts of a write that another one does not overwrite.
fn outside(from: usize, bytes: &[u8], other: Range<usize>) -> impl Iterator<Item = Change> {
    let index = |at: usize| at.saturating_sub(from).min(bytes.len());
    let (start, end) = (index(other.start), index(other.end));
    let parts = [(from, &bytes[..start]), (from + end, &bytes[end..])];
    parts
        .into_iter()
        .filter(|(_, part)| !part.is_empty())
        .map(|(at, part)| Change::Write(at, part.to_vec()))
        .collect::<Vec<_>>()
        .into_iter()
}
