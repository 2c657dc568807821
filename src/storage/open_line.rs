//! What may be done with a last row that another process left open.

use std::{
    io::{self, Read},
    path::Path,
};

use crate::{
    csv::{excerpt::excerpt, scanner::OpenLine},
    storage::{
        disk::{Disk, FileKind, FileRange},
        error::OpenError,
        format::Format,
    },
};

/// A longer incomplete last line is not moved. `OpenError::LongOpenLine` names it.
const QUARANTINE_BYTES_MAX: u64 = 1 << 20;

/// Whether a line ending makes the line a whole row.
pub(crate) fn is_whole(open: OpenLine, format: &Format) -> bool {
    open.cells == format.width().unwrap_or(open.cells) && !open.in_quotes
}

/// Refuses to move more than one incomplete last line, at `at`: behind a stray quote, all rows of the file look like one cell.
///
/// # Errors
/// `OpenQuote` or `LongOpenLine`, or that the file cannot be read.
pub(crate) fn refuse_several_lines(
    disk: &impl Disk,
    path: &Path,
    format: &Format,
    at: u64,
    open: OpenLine,
) -> Result<(), OpenError> {
    if is_whole(open, format) {
        return Ok(());
    }
    let fail = |e| OpenError::io(path, "read", e);
    // guard: one_torn_line: a stray quote does not move the rows behind it
    if let Some(text) = first_of_several_lines(disk, at, open).map_err(fail)? {
        let line = line_of(disk, at).map_err(fail)?;
        return Err(OpenError::OpenQuote { path: path.to_owned(), line, text: excerpt(&text) });
    }
    if open.bytes > QUARANTINE_BYTES_MAX {
        return Err(OpenError::LongOpenLine(path.to_owned(), at));
    }
    Ok(())
}

/// The first line of the open row at `at`, if it has several.
pub(crate) fn first_of_several_lines(disk: &impl Disk, at: u64, open: OpenLine) -> io::Result<Option<Vec<u8>>> {
    let mut text = disk.read(FileKind::Csv, at, open.bytes.min(QUARANTINE_BYTES_MAX))?;
    Ok(memchr::memchr(b'\n', &text).map(|line_end| {
        text.truncate(line_end);
        text
    }))
}

/// The number of the line that starts at `offset`, counted from 1.
pub(crate) fn line_of(disk: &impl Disk, offset: u64) -> io::Result<u64> {
    let mut input = FileRange::new(disk, FileKind::Csv, 0, offset);
    let (mut chunk, mut line) = (vec![0; 1 << 20], 1);
    loop {
        let read = input.read(&mut chunk)?;
        if read == 0 {
            return Ok(line);
        }
        line += memchr::memchr_iter(b'\n', &chunk[..read]).count() as u64;
    }
}
