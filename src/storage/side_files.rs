//! Making the CSV and its side file, and refusing what can't be one.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::NamedTempFile;

use crate::csv::schema::Schema;
use crate::storage::{
    OpenError,
    files::{Files, beside},
    journal::{Header, Layout},
    keys::{self, preamble},
    ledger::checkpoint::write_zeros,
};

/// Resolves symbolic links once, so that all replicas mean the same file ever after.
///
/// # Errors
/// If the file, or its directory, can't be found.
pub fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    let fail = |e| OpenError::io(path, "find", e);
    match fs::symlink_metadata(path) {
        Ok(_) => fs::canonicalize(path).map_err(fail),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let name = path.file_name().ok_or_else(|| OpenError::NotAFile(path.to_owned()))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(fs::canonicalize(parent).map_err(|e| OpenError::io(parent, "find the directory", e))?.join(name))
        }
        Err(e) => Err(fail(e)),
    }
}

/// Reads `ROWLOCK_CSV_HEADER`.
pub(crate) fn parse_header_option(header: &str) -> Result<Schema, OpenError> {
    if header == "none" {
        Ok(Schema::headerless())
    } else {
        Schema::from_header(header.as_bytes()).map_err(OpenError::HeaderOption)
    }
}

/// Makes a missing file whole or not at all: header and all, synced under another name, then linked, then the directory synced.
pub(crate) fn ensure_exists(path: &Path, schema: &Schema) -> Result<(), OpenError> {
    if let Ok(metadata) = fs::metadata(path) {
        return if metadata.is_file() { Ok(()) } else { Err(OpenError::NotAFile(path.to_owned())) };
    }
    let make = || -> io::Result<()> {
        let directory = directory_of(path);
        // The process's umask takes away what others may not do.
        let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(directory)?;
        if let Some(header) = schema.header() {
            file.write_all(&header)?;
            file.write_all(b"\n")?;
        }
        put_in_place(file, path)
    };
    make().map_err(|e| OpenError::io(path, "make", e))
}

/// Refuses what an append could not keep its promises on.
pub(crate) fn refuse_unfit(path: &Path, file: &File) -> Result<(), OpenError> {
    let metadata = file.metadata().map_err(|e| OpenError::io(path, "stat", e))?;
    match (metadata.is_file(), metadata.nlink()) {
        (false, _) => Err(OpenError::NotAFile(path.to_owned())),
        (true, 0 | 1) => Ok(()),
        (true, _) => Err(OpenError::HardLinks(path.to_owned())),
    }
}

/// Makes the journal whole or not at all: zeros, then two headers that say how far the CSV was read. Keeps one that is there.
pub(crate) fn ensure_journal(path: &Path, csv: &Path, head: &Header, layout: Layout) -> io::Result<()> {
    make_beside(path, csv, |file| write_journal(file, head, layout))
}

fn write_journal(file: &File, head: &Header, layout: Layout) -> io::Result<()> {
    write_zeros(0, head.bytes, |at, zeros| file.write_all_at(zeros, at))?;
    for (page, number) in [(0, 1), (1, 0)] {
        file.write_all_at(&Header { number, ..head.clone() }.encode(), page * layout.page)?;
    }
    Ok(())
}

/// Puts a new journal in the place of one that is kept under another name: at no time is there none.
pub(crate) fn replace_journal(csv: &Path, kept_as: &Path, head: &Header, layout: Layout) -> io::Result<()> {
    let path = beside(csv, ".journal");
    let file = side_file(csv, |file| write_journal(file, head, layout))?;
    fs::hard_link(&path, kept_as)?;
    put_over(file, &path)
}

/// Makes the file of keys, with room for so many. Keeps one that is there.
pub(crate) fn ensure_keys(path: &Path, csv: &Path, slots: u64) -> io::Result<()> {
    make_beside(path, csv, |file| file.write_all_at(&preamble(slots), 0))
}

/// Replaces a file of fewer keys by one with room for `wanted`: for who holds the OS lock.
pub(crate) fn grow_keys(files: &Arc<Files>, csv: &Path, end: u64, wanted: u64) -> io::Result<()> {
    if keys::slots(files)? >= wanted {
        return Ok(());
    }
    let file = side_file(csv, |file| keys::copy_slots(files, end, wanted, file))?;
    put_over(file, &beside(csv, ".keys"))
}

/// A side file: whole or not at all. Keeps one that is there.
fn make_beside(path: &Path, csv: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    put_in_place(side_file(csv, fill)?, path)
}

/// With the CSV's mode and owner, under a name of no meaning yet.
fn side_file(csv: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<NamedTempFile> {
    let file = NamedTempFile::new_in(directory_of(csv))?;
    fill(file.as_file())?;
    like_csv(file.as_file(), csv)?;
    Ok(file)
}

/// Synced, put in the place of what is there, and the directory synced.
fn put_over(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(directory_of(path))?.sync_all()
}

/// Synced, linked, and the directory synced; another process may have been first.
fn put_in_place(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => File::open(directory_of(path))?.sync_all(),
        Err(e) if e.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e.error),
    }
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Side files get the CSV's mode, and its owner where the system lets us give it.
pub(crate) fn like_csv(file: &File, csv: &Path) -> io::Result<()> {
    let like = fs::metadata(csv)?;
    let ours = file.metadata()?;
    if (ours.uid(), ours.gid()) != (like.uid(), like.gid()) {
        match std::os::unix::fs::fchown(file, Some(like.uid()), Some(like.gid())) {
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                tracing::debug!(error = %e, "a side file stays ours, the CSV is somebody else's");
            }
            other => other?,
        }
    }
    file.set_permissions(like.permissions())
}
