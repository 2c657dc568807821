//! Creates the CSV and its side files, and refuses what cannot serve as a CSV.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, CWD, Statx, StatxFlags, statx},
    io::retry_on_intr,
};
use tempfile::NamedTempFile;

use crate::{
    csv::schema::Schema,
    storage::{
        disk::{Disk, write_zeros},
        error::OpenError,
        journal::{Header, Layout},
        keys,
        volume::is_mount_point,
    },
};

/// How long a start waits for another one, on another host, to remove the name under which it created the file.
const LINKS_WAIT: Duration = Duration::from_secs(1);
/// The pause between two looks at that.
const LINKS_PAUSE: Duration = Duration::from_millis(20);
/// Names of files that are being created begin with it.
const TEMPORARY_PREFIX: &str = ".rowlock-new-";

/// `<csv><suffix>`.
pub(crate) fn side_path(csv: &Path, suffix: &str) -> PathBuf {
    let mut path = csv.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Resolves symbolic links once, so that all replicas use the same file and side files.
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

/// Parses `ROWLOCK_CSV_HEADER`, which may begin with the BOM of the file that it was copied from.
pub(crate) fn parse_header_option(header: &str) -> Result<Schema, OpenError> {
    if header == "none" {
        Ok(Schema::headerless())
    } else {
        Schema::from_header(header.strip_prefix('\u{feff}').unwrap_or(header).as_bytes())
            .map_err(OpenError::HeaderOption)
    }
}

/// Creates a missing CSV with its header. The file appears complete or not at all.
pub(crate) fn ensure_exists(path: &Path, schema: &Schema) -> Result<(), OpenError> {
    if let Ok(metadata) = fs::metadata(path) {
        return if metadata.is_file() { Ok(()) } else { Err(OpenError::NotAFile(path.to_owned())) };
    }
    let create = || -> io::Result<()> {
        let directory = parent_directory(path);
        // The process's umask still applies.
        let permissions = Permissions::from_mode(0o666);
        let mut builder = tempfile::Builder::new();
        let file = builder.prefix(TEMPORARY_PREFIX).permissions(permissions).tempfile_in(directory);
        let file = file.map_err(without_path)?;
        if let Some(header) = schema.header() {
            file.as_file().write_all(&[&*header, b"\n"].concat())?;
        }
        persist_new(file, path)
    };
    create().map_err(|e| OpenError::io(path, "create", e))
}

/// Refuses a file that is not a regular file with one name, or that is a mount point: each of several paths to it would have a
/// journal and an OS lock of its own.
pub(crate) fn refuse_unfit(path: &Path, file: &File) -> Result<(), OpenError> {
    let fail = |e| OpenError::io(path, "stat", e);
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(OpenError::NotAFile(path.to_owned()));
    }
    // guard: mounted_csv: a file that is mounted by itself gets no second journal
    if is_mount_point(path).map_err(fail)? {
        return Err(OpenError::mount_point(path));
    }
    let deadline = Instant::now() + LINKS_WAIT;
    while links(file).map_err(fail)? > 1 {
        if Instant::now() >= deadline {
            return Err(OpenError::HardLinks(path.to_owned()));
        }
        // guard: temporary_name: a start that another start interleaves with, or that was killed, is not several hard links
        remove_temporary_names(path, file).map_err(fail)?;
        thread::sleep(LINKS_PAUSE);
    }
    Ok(())
}

/// The number of names, as the server of a network volume knows it.
fn links(file: &File) -> io::Result<u32> {
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    Ok(retry_on_intr(|| statx(file, "", how, StatxFlags::NLINK))?.stx_nlink)
}

/// Asks the server of a network volume, not the attribute cache. Costs nothing more on a local volume. NFS asks only for
/// attributes that can change, so the mode is requested as well. Follows no symbolic link: the path was resolved.
pub(crate) fn stat_on_server(path: &Path) -> io::Result<Statx> {
    // guard: moved_behind_a_link: a CSV that was moved, with a symbolic link in its place, gets no second journal
    let how = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    Ok(retry_on_intr(|| statx(CWD, path, how, StatxFlags::INO | StatxFlags::MODE | StatxFlags::NLINK))?)
}

/// Removes the names under which a file was created, where it could only get its own name by a second link (`persist_new`).
fn remove_temporary_names(path: &Path, file: &File) -> io::Result<()> {
    let (directory, found) = (parent_directory(path), file.metadata()?);
    // A network volume lists a directory from its cache until it learns that the directory has changed.
    stat_on_server(directory)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            continue;
        }
        let removed = entry.metadata().and_then(|metadata| {
            let is_same = (metadata.dev(), metadata.ino()) == (found.dev(), found.ino());
            if is_same { fs::remove_file(entry.path()) } else { Ok(()) }
        });
        match removed {
            // The start that made the name may remove it at the same time.
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Creates the journal, complete or not at all: two headers, then zeros. Keeps an existing one.
pub(crate) fn ensure_journal(csv: &Path, head: &Header, layout: Layout) -> io::Result<()> {
    ensure_side_file(&side_path(csv, ".journal"), csv, |file| write_journal(file, head, layout))
}

fn write_journal(file: &File, head: &Header, layout: Layout) -> io::Result<()> {
    write_zeros(0, head.bytes, |at, zeros| file.write_all_at(zeros, at))?;
    for (page, number) in [(0, 1), (1, 0)] {
        file.write_all_at(&Header { number, ..head.clone() }.encode(), page * layout.page)?;
    }
    Ok(())
}

/// Replaces the journal by a new one and keeps the old one under another name. There is a journal at any time.
pub(crate) fn replace_journal(csv: &Path, kept_as: &Path, head: &Header, layout: Layout) -> io::Result<()> {
    let path = side_path(csv, ".journal");
    let file = new_side_file(csv, |file| write_journal(file, head, layout))?;
    fs::hard_link(&path, kept_as)?;
    persist_over(file, &path)
}

/// Creates the keys file with this many slots. Keeps an existing one.
pub(crate) fn ensure_keys(csv: &Path, slots: u64) -> io::Result<()> {
    ensure_side_file(&side_path(csv, ".keys"), csv, |file| file.write_all_at(&keys::preamble(slots), 0))
}

/// Replaces a keys file with fewer slots by one with `wanted` slots. The caller holds the OS lock.
pub(crate) fn grow_keys(disk: &impl Disk, csv: &Path, end: u64, wanted: u64) -> io::Result<()> {
    if keys::slots(disk)? >= wanted {
        return Ok(());
    }
    let file = new_side_file(csv, |file| keys::copy_slots(disk, end, wanted, file))?;
    persist_over(file, &side_path(csv, ".keys"))
}

/// Creates a side file, complete or not at all. Keeps an existing one.
pub(crate) fn ensure_side_file(path: &Path, csv: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    persist_new(new_side_file(csv, fill)?, path)
}

/// A temporary file in the CSV's directory, with the CSV's owner and mode.
fn new_side_file(csv: &Path, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<NamedTempFile> {
    let file =
        tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(parent_directory(csv)).map_err(without_path)?;
    fill(file.as_file())?;
    copy_owner_and_mode(file.as_file(), csv)?;
    Ok(file)
}

/// The system's error alone: the path of a temporary file in it means nothing to a reader, and the caller names the CSV.
fn without_path(e: io::Error) -> io::Error {
    let Some(named) = e.get_ref() else { return e };
    let text = named.to_string();
    let system = text.split_once(" at path ").map_or(&*text, |(system, _)| system);
    io::Error::new(e.kind(), system)
}

/// Syncs the file, renames it over an existing one, and syncs the directory.
fn persist_over(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(parent_directory(path))?.sync_all()
}

/// Syncs the file, gives it its name unless another process was faster, and syncs the directory. NFS can only do that by a
/// second link, whose old name is then removed: a rename there always replaces, and could so hit a file that another host has
/// made and used since this one was cut off.
fn persist_new(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => File::open(parent_directory(path))?.sync_all(),
        Err(e) if e.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e.error),
    }
}

pub(crate) fn parent_directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Gives a side file the CSV's mode, and its owner where the system permits that.
pub(crate) fn copy_owner_and_mode(file: &File, csv: &Path) -> io::Result<()> {
    let (wanted, current) = (fs::metadata(csv)?, file.metadata()?);
    if (current.uid(), current.gid()) != (wanted.uid(), wanted.gid()) {
        match std::os::unix::fs::fchown(file, Some(wanted.uid()), Some(wanted.gid())) {
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                tracing::debug!(error = %e, "cannot give a side file the CSV's owner");
            }
            other => other?,
        }
    }
    file.set_permissions(wanted.permissions())
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    /// `persist_new` on a volume that cannot rename without replacing.
    fn persist_by_link(temporary: &Path, path: &Path) {
        match fs::hard_link(temporary, path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => panic!("{e}"),
            _ => {}
        }
    }

    fn temporary(folder: &Path) -> NamedTempFile {
        tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder).expect("created")
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn starts_at_the_same_time_never_see_several_hard_links() {
        const STARTS: usize = 8;
        for _ in 0..200 {
            let folder = tempfile::tempdir().expect("a folder");
            let (path, start) = (folder.path().join("rows.csv"), Barrier::new(STARTS));
            thread::scope(|scope| {
                for _ in 0..STARTS {
                    scope.spawn(|| {
                        let file = temporary(folder.path());
                        start.wait();
                        persist_by_link(file.path(), &path);
                        refuse_unfit(&path, &File::open(&path).expect("opens")).expect("one name");
                    });
                }
            });
            assert_eq!(names(folder.path()), ["rows.csv"]);
        }
    }

    #[test]
    fn errors_of_temporary_files_do_not_name_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = without_path(io::Error::from_raw_os_error(28));
        assert_eq!(
            (kept.kind(), kept.to_string()),
            (ErrorKind::StorageFull, io::Error::from_raw_os_error(28).to_string())
        );
        let named =
            tempfile::Builder::new().tempfile_in(folder.path().join("missing")).map(drop).expect_err("no folder");
        assert!(named.to_string().contains("at path"), "{named}");
        let kept = without_path(named);
        assert_eq!((kept.kind(), kept.to_string()), (ErrorKind::NotFound, io::Error::from_raw_os_error(2).to_string()));
    }

    #[test]
    fn temporary_name_of_a_killed_start_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.csv");
        let (_, killed) = temporary(folder.path()).keep().expect("kept");
        let (_, other) = temporary(folder.path()).keep().expect("kept");
        persist_by_link(&killed, &path);
        let open = || File::open(&path).expect("opens");
        refuse_unfit(&path, &open()).expect("one name");
        assert!(!killed.exists() && other.exists());
        fs::hard_link(&path, folder.path().join("second.csv")).expect("linked");
        assert!(matches!(refuse_unfit(&path, &open()), Err(OpenError::HardLinks(_))));
    }
}
