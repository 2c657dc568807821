//! The disk of a reader in tests: each of its calls may find the files of a later moment.

use std::io;

use crate::storage::{
    disk::{AppendedRange, Disk, FileKind},
    testing::memory::copy_from,
};

/// Files that go on changing while a reader reads.
pub(super) trait Moving: Clone {
    /// Whether they are on a volume that several hosts share.
    fn is_direct(&self) -> bool;
    /// Lets the writer go on, perhaps, and shows a file as it is then.
    fn see<T>(&self, kind: FileKind, look: impl FnOnce(&[u8]) -> T) -> T;
}

/// Only reads. Any write ends the test.
#[derive(Clone)]
pub(super) struct ReaderDisk<M>(pub(super) M);

impl<M: Moving> Disk for ReaderDisk<M> {
    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }

    fn csv_inode(&self) -> u64 {
        1
    }

    fn forget_read_ahead(&self) {}

    fn len(&self, kind: FileKind) -> io::Result<u64> {
        Ok(self.0.see(kind, |file| file.len() as u64))
    }

    fn read_at(&self, kind: FileKind, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.see(kind, |file| copy_from(file, offset, buffer)))
    }

    fn write_parts_at(&self, kind: FileKind, _: u64, _: &[&[u8]]) -> io::Result<()> {
        unreachable!("a reader writes {kind:?}")
    }

    fn append(&self, kind: FileKind, _: &[u8]) -> io::Result<AppendedRange> {
        unreachable!("a reader appends to {kind:?}")
    }

    fn truncate(&self, kind: FileKind, _: u64) -> io::Result<()> {
        unreachable!("a reader truncates {kind:?}")
    }

    fn reserve(&self, _: FileKind, _: u64, _: u64) -> io::Result<()> {
        unreachable!("a reader reserves space")
    }

    fn sync(&self, kind: FileKind) -> io::Result<()> {
        unreachable!("a reader syncs {kind:?}")
    }
}
