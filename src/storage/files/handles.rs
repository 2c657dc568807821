//! What files of both kinds need of an open file and of its name.

use std::{
    fs::{File, TryLockError},
    io::{self, ErrorKind},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, Statx, StatxFlags, statx},
    io::retry_on_intr,
};

use crate::storage::{
    error::{AppendError, OpenError},
    safe_open::is_mount_point,
    side_files::stat_on_server,
};

/// The longest pause between two attempts to take an OS lock.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Device (major, minor) and inode number.
pub(super) type Inode = (u32, u32, u64);

/// Requests only these attributes: since Linux 6.13, reading a file's times makes its next write store a new time, and the
/// sync after that write takes 1.5 times as long.
pub(super) fn stat(file: &File, what: StatxFlags) -> io::Result<Statx> {
    Ok(retry_on_intr(|| statx(file, "", AtFlags::EMPTY_PATH, what))?)
}

/// The inode that the path leads to now. A network volume would otherwise answer from its attribute cache for up to a minute.
pub(super) fn inode_at(path: &Path) -> io::Result<Inode> {
    Ok(inode(&stat_on_server(path)?))
}

pub(super) fn inode_of(file: &File) -> io::Result<Inode> {
    Ok(inode(&stat(file, StatxFlags::INO)?))
}

pub(super) fn inode(found: &Statx) -> Inode {
    (found.stx_dev_major, found.stx_dev_minor, found.stx_ino)
}

/// Refuses a name that leads to another file than the open one.
pub(super) fn refuse_other_file(named: &Statx, open: Inode) -> Result<(), AppendError> {
    // guard: same_file: no rows go to a renamed or replaced file
    if inode(named) == open { Ok(()) } else { Err(AppendError::Replaced) }
}

/// Refuses a CSV that another path may lead to, beside which another journal could be: `named` is what its name leads to, without
/// following a symbolic link.
pub(super) fn refuse_second_path(csv: &Path, named: &Statx) -> Result<(), AppendError> {
    // guard: one_path: the CSV of a running replica gets no second journal
    if named.stx_nlink > 1 {
        return Err(AppendError::Unfit(OpenError::HardLinks(csv.to_owned())));
    }
    // guard: not_mounted: the CSV of a running replica is not reached by a mount of the file alone
    if is_mount_point(named) == Some(true) {
        return Err(AppendError::Unfit(OpenError::mount_point(csv)));
    }
    Ok(())
}

/// Makes a call again that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Tries to take a file lock every 1 to 50 ms until `deadline`.
pub(crate) fn try_until(deadline: Instant, try_lock: impl Fn() -> Result<(), TryLockError>) -> Result<(), AppendError> {
    let mut pause = Duration::from_millis(1);
    loop {
        match try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Interrupted => continue,
            Err(TryLockError::Error(e)) => return Err(AppendError::before("lock")(e)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(AppendError::Busy),
            Err(TryLockError::WouldBlock) => thread::sleep(pause),
        }
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
    }
}

/// Whether a lock held through one handle excludes another handle of the same file.
pub(super) fn lock_excludes(first: &File, second: &File) -> io::Result<bool> {
    match try_until(Instant::now(), || first.try_lock()) {
        // Another process holds the lock, so locks work.
        Err(AppendError::Busy) => return Ok(true),
        Err(e) => {
            tracing::debug!(error = %e, "the journal cannot be locked");
            return Ok(false);
        }
        Ok(()) => {}
    }
    let excluded = matches!(try_until(Instant::now(), || second.try_lock()), Err(AppendError::Busy));
    retry(|| first.unlock())?;
    Ok(excluded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_call_is_made_again_and_other_errors_are_not() {
        let mut results = vec![Ok(7), Err(ErrorKind::Interrupted), Err(ErrorKind::Interrupted)];
        assert_eq!(retry(|| results.pop().expect("a call").map_err(io::Error::from)).expect("at last"), 7);
        let mut results = vec![Ok(7), Err(ErrorKind::StorageFull), Err(ErrorKind::Interrupted)];
        let failed = retry(|| results.pop().expect("a call").map_err(io::Error::from)).expect_err("the second call");
        assert_eq!(failed.kind(), ErrorKind::StorageFull);
    }

    #[test]
    fn interrupted_lock_is_tried_again() {
        let tries = std::cell::Cell::new(0);
        let try_lock = || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err(TryLockError::Error(ErrorKind::Interrupted.into())) } else { Ok(()) }
        };
        try_until(Instant::now(), try_lock).expect("locked");
        assert_eq!(tries.get(), 3);
    }
}
