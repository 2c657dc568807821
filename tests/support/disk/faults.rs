//! The failures that a test has requested.

use std::collections::HashMap;

use rustix::io::Errno;

#[derive(Default)]
pub(super) struct Faults {
    pub(super) syncs: ByName,
    pub(super) syncs_failed: u32,
    pub(super) writes: ByName,
    pub(super) writes_failed: u32,
    pub(super) short_writes: bool,
    pub(super) writes_shortened: u32,
    pub(super) read_only: bool,
    pub(super) capacity: Option<u64>,
    pub(super) without_fallocate: bool,
}

/// Per file name: how many of the next calls fail, and with which error. The file need not exist yet.
#[derive(Default)]
pub(super) struct ByName(HashMap<String, (u32, Errno)>);

impl ByName {
    pub(super) fn set(&mut self, name: &str, times: u32, errno: Errno) {
        self.0.insert(name.to_owned(), (times, errno));
    }

    /// The error of this call on a file with these names.
    pub(super) fn next<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> Option<Errno> {
        for name in names {
            if let Some((times, errno)) = self.0.get_mut(name)
                && *times > 0
            {
                *times -= 1;
                return Some(*errno);
            }
        }
        None
    }
}
