//! Making the CSV and its side file, and refusing what can't be one.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::OpenError;
use crate::schema::Schema;

/// Resolves symbolic links once, so that all replicas mean the same file ever after.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
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
pub(super) fn parse_header_option(header: &str) -> Result<Schema, OpenError> {
    if header == "none" {
        Ok(Schema::headerless())
    } else {
        Schema::from_header(header.as_bytes()).map_err(OpenError::HeaderOption)
    }
}

/// Makes a missing file whole or not at all: header and all, synced under another name, then linked, then the directory synced.
pub(super) fn ensure_exists(path: &Path, schema: &Schema) -> Result<(), OpenError> {
    if let Ok(metadata) = fs::metadata(path) {
        return if metadata.is_file() { Ok(()) } else { Err(OpenError::NotAFile(path.to_owned())) };
    }
    let make = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        // The process's umask takes away what others may not do.
        let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(directory)?;
        if let Some(header) = schema.header() {
            file.write_all(&header)?;
            file.write_all(b"\n")?;
        }
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => File::open(directory)?.sync_all(),
            Err(e) if e.error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e.error),
        }
    };
    make().map_err(|e| OpenError::io(path, "make", e))
}

/// Refuses what an append could not keep its promises on.
pub(super) fn refuse_unfit(path: &Path, file: &File) -> Result<(), OpenError> {
    let metadata = file.metadata().map_err(|e| OpenError::io(path, "stat", e))?;
    match (metadata.is_file(), metadata.nlink()) {
        (false, _) => Err(OpenError::NotAFile(path.to_owned())),
        (true, 0 | 1) => Ok(()),
        (true, _) => Err(OpenError::HardLinks(path.to_owned())),
    }
}

/// Appends `bytes` to `<csv>.torn` and syncs them, before they are cut from the CSV. The side file gets the CSV's mode and owner.
pub(super) fn set_aside(csv: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut path = csv.as_os_str().to_owned();
    path.push(".torn");
    let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
    let like = fs::metadata(csv)?;
    if file.metadata()?.len() == 0 {
        file.set_permissions(like.permissions())?;
        std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    file.write_all(bytes)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    File::open(csv.parent().unwrap_or(Path::new("/")))?.sync_all()
}
