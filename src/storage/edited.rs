//! Tells an edited CSV from what a crash leaves of it.

use std::{collections::HashSet, io};

use crate::storage::{
    disk::{Disk, FileKind},
    journal::{Header, JournalRecord},
};

/// Whether somebody edited rows of ours, or put another file in the place of the CSV. `records` are all since the checkpoint.
///
/// A crash makes zeros of rows, or ends the file before them, and then another program may append. So other bytes in place of our
/// rows are an edit only if rows of ours follow them, or if the file is not the one that the checkpoint was made for. The last
/// record of the same file is not judged, since a program without the lock may have appended just before its rows.
pub(crate) fn is_edited(disk: &impl Disk, head: &Header, records: &[JournalRecord]) -> io::Result<bool> {
    let Some(last) = records.last() else { return Ok(false) };
    let is_same_file = [0, disk.csv_inode()].contains(&head.csv_inode);
    for (nth, record) in records.iter().enumerate() {
        let present = disk.read(FileKind::Csv, record.offset, record.payload.len() as u64)?;
        let Some(at) = first_difference(&present, &record.payload) else { continue };
        if !is_same_file {
            return Ok(true);
        }
        let line = memchr::memrchr(b'\n', &record.payload[..at]).map_or(0, |line_end| line_end + 1);
        let others = records[nth + 1..].iter().map(|record| &*record.payload);
        let ours: HashSet<_> = std::iter::once(&record.payload[line..]).chain(others).flat_map(lines).collect();
        let len = disk.len(FileKind::Csv)?;
        let from = record.offset + line as u64;
        let text = disk.read(FileKind::Csv, from, len.saturating_sub(from))?;
        let found = lines(&text).any(|line| ours.contains(line));
        return Ok(record.sequence != last.sequence && found);
    }
    Ok(false)
}

/// The index of the first byte that is neither the recorded one nor a zero.
fn first_difference(present: &[u8], recorded: &[u8]) -> Option<usize> {
    present.iter().zip(recorded).position(|(is, should)| is != should && *is != 0)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"))
}
