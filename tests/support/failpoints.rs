//! The failpoints at which a replica can kill or stop itself, see `src/failpoints.rs`.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};

/// On the path of every append.
pub(crate) const APPEND: [&str; 8] = [
    "lock_granted",
    "record_half_written",
    "record_written",
    "record_synced",
    "csv_half_written",
    "csv_written",
    "answer_due",
    "answered",
];
pub(crate) const CHECKPOINT: [&str; 6] = [
    "checkpoint_keys_written",
    "checkpoint_csv_synced",
    "checkpoint_keys_synced",
    "header_half_written",
    "header_written",
    "header_synced",
];
/// In a rebuild of the end of the file. They need a torn line, see `leave_torn_line`.
pub(crate) const REBUILD: [&str; 10] = [
    "torn_half_written",
    "rebuild_quarantined",
    "tail_half_written",
    "rebuild_tail_synced",
    "rebuild_journaled",
    "rebuild_truncated",
    "rebuild_truncation_synced",
    "rebuild_appended",
    "rebuild_appended_synced",
    "rebuild_ended",
];

/// Makes the next replica that reaches the failpoint kill or stop itself. `folder` is its `ROWLOCK_TEST_POINTS`.
pub(crate) fn arm(folder: &Path, point: &str, signal: &str) {
    let prepared = folder.join("prepared");
    fs::write(&prepared, signal).expect("writable");
    fs::rename(prepared, folder.join(point)).expect("armed");
}

/// Appends half a line, as a foreign writer that was killed. The next replica has to rebuild the end of the file.
pub(crate) fn leave_torn_line(csv: &Path) {
    let journal = fs::File::open(format!("{}.journal", csv.display())).expect("a journal");
    // A replica that has reached the failpoint may keep the lock.
    if journal.try_lock().is_err() {
        return;
    }
    let text = fs::read(csv).expect("readable");
    // A replica that was killed in the middle of a row has left an open line already.
    let is_whole = text.ends_with(b"\n") && text.iter().filter(|&&byte| byte == b'"').count() % 2 == 0;
    if is_whole {
        let mut csv = OpenOptions::new().append(true).open(csv).expect("writable");
        csv.write_all(b",\"torn").expect("writable");
    }
}
