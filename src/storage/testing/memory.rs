//! The files of one CSV in memory, without faults.

use std::{cell::RefCell, io, rc::Rc};

use crate::storage::disk::{AppendedRange, Disk, FileKind};

/// Fills `buffer` with a file's bytes from `offset` on, and returns how many there are.
pub(super) fn copy_from(file: &[u8], offset: u64, buffer: &mut [u8]) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|offset| file.get(offset..)).unwrap_or_default();
    let read = rest.len().min(buffer.len());
    buffer[..read].copy_from_slice(&rest[..read]);
    read
}

/// Files in memory.
#[derive(Clone, Default)]
pub(super) struct Memory(Rc<RefCell<[Vec<u8>; 6]>>);

impl Memory {
    pub(super) fn edit<T>(&self, kind: FileKind, edit: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let file = match kind {
            FileKind::Csv => 0,
            FileKind::Journal => 1,
            FileKind::Keys => 2,
            FileKind::Torn => 3,
            FileKind::Tail(which) => 4 + usize::from(which),
        };
        edit(&mut self.0.borrow_mut()[file])
    }

    /// A copy of all files.
    pub(super) fn copy(&self) -> Self {
        Self(Rc::new(RefCell::new(self.0.borrow().clone())))
    }
}

impl Disk for Memory {
    fn is_direct(&self) -> bool {
        false
    }

    fn csv_inode(&self) -> u64 {
        1
    }

    fn forget_read_ahead(&self) {}

    fn len(&self, kind: FileKind) -> io::Result<u64> {
        Ok(self.edit(kind, |file| file.len()) as u64)
    }

    fn read_at(&self, kind: FileKind, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.edit(kind, |file| copy_from(file, offset, buffer)))
    }

    fn write_parts_at(&self, kind: FileKind, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let (bytes, from) = (parts.concat(), offset as usize);
        self.edit(kind, |file| {
            file.resize(file.len().max(from + bytes.len()), 0);
            file[from..from + bytes.len()].copy_from_slice(&bytes);
        });
        Ok(())
    }

    fn append(&self, kind: FileKind, bytes: &[u8]) -> io::Result<AppendedRange> {
        let start = self.len(kind)?;
        self.edit(kind, |file| file.extend_from_slice(bytes));
        Ok(AppendedRange { start, end: start + bytes.len() as u64 })
    }

    fn truncate(&self, kind: FileKind, len: u64) -> io::Result<()> {
        self.edit(kind, |file| file.resize(len as usize, 0));
        Ok(())
    }

    fn reserve(&self, _: FileKind, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _: FileKind) -> io::Result<()> {
        Ok(())
    }
}
