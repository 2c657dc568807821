//! Opens the embedded lock's file. What is in it is the lock's business.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::storage::{
    error::OpenError,
    safe_open::{Access, open_side_file},
    side_files::{ensure_side_file, refuse_unfit, side_path},
};

/// Opens the lock's file of a CSV whose path is resolved, and creates it first if it is missing.
///
/// # Errors
/// If it cannot be opened, is not a regular file with one name, or another user made it.
pub fn open_lock_file(csv: &Path) -> Result<(PathBuf, File), OpenError> {
    let path = side_path(csv, ".lock");
    let open = || open_side_file(&path, csv, Access::Write, OFlags::empty());
    let opened = match open() {
        Err(e) if e.kind() == ErrorKind::NotFound => create(csv, &path).and_then(|()| open()),
        other => other,
    };
    let file = opened.map_err(|e| OpenError::io(&path, "open", e))?;
    // guard: lock_file_is_ours: the lock's state is not written over a file with another name, such as the CSV
    refuse_unfit(&path, &file)?;
    Ok((path, file))
}

/// Makes an empty file with the mode and owner of the CSV, or of the journal if the CSV is missing.
fn create(csv: &Path, path: &Path) -> io::Result<()> {
    let journal = side_path(csv, ".journal");
    match [csv, &journal].into_iter().find(|file| file.exists()) {
        Some(model) => ensure_side_file(path, model, |_| Ok(())),
        // The CSV that is made later gets the same mode.
        None => match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        },
    }
}
