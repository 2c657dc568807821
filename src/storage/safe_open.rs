//! Opens the CSV and its side files. Where other users may write to the folder, they may put symbolic links, pipes or files
//! of their own in the place of side files: nothing of that is followed or used.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::{
    fd::AsFd,
    fs::{AtFlags, CWD, FileType, OFlags, Statx, StatxAttributes, StatxFlags, statx},
    io::retry_on_intr,
    process::geteuid,
};

use crate::storage::{
    error::OpenError,
    side_files::{parent_directory, side_path},
    unsafe_side_file::{SideFileFault, UnsafeSideFile},
};

/// What each side file has behind the CSV's name. `<csv>.lock` belongs to the embedded lock.
const SIDE_SUFFIXES: [&str; 6] = [".journal", ".keys", ".torn", ".rebuild-0", ".rebuild-1", ".events"];
/// Those that are never made by a second link, as NFS makes others.
const ONE_NAME: [&str; 4] = [".torn", ".rebuild-0", ".rebuild-1", ".events"];
/// How often a side file is looked for again that appears or disappears meanwhile.
const CREATE_TRIES: u32 = 5;
/// What is asked of a file. Not its times: see `files::handles::stat`.
const ASKED: StatxFlags = StatxFlags::TYPE.union(StatxFlags::UID).union(StatxFlags::NLINK);
/// Write permission for everybody.
const WRITABLE_FOR_ALL: u32 = 0o002;
/// In such a folder, only its owner may remove a file.
const STICKY: u32 = 0o1000;

/// What a handle is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// At any offset, and reading.
    Write,
    /// At the end, and reading.
    Append,
}

/// Opens the CSV, or a file that stands in for it. Its path was resolved, so that a symbolic link there is new.
pub(crate) fn open_csv(path: &Path, access: Access, flags: OFlags) -> io::Result<File> {
    options(access, flags).open(path)
}

/// Opens a side file that exists.
pub(crate) fn open_side_file(path: &Path, csv: &Path, access: Access, flags: OFlags) -> io::Result<File> {
    // Opening a pipe could wait for ever.
    refuse(path, csv, &stat_name(path)?)?;
    let file = options(access, flags).open(path)?;
    refuse(path, csv, &stat_handle(&file)?)?;
    Ok(file)
}

/// Opens a side file that any replica may create. A new one is empty, and only this user may read it yet.
pub(crate) fn open_or_create(path: &Path, csv: &Path, access: Access, flags: OFlags) -> io::Result<File> {
    for _ in 0..CREATE_TRIES {
        match open_side_file(path, csv, access, flags) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => {
                let file = other?;
                // Such a file is never made by a second link.
                return if stat_handle(&file)?.stx_nlink > 1 {
                    Err(refusal(path, SideFileFault::HardLinks))
                } else {
                    Ok(file)
                };
            }
        }
        match options(access, flags).create_new(true).mode(0o600).open(path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            other => return other,
        }
    }
    Err(io::Error::other(format!("{} appears and disappears", path.display())))
}

/// Refuses to start beside a file that no open would use.
pub(crate) fn refuse_unsafe_side_files(csv: &Path) -> Result<(), OpenError> {
    for suffix in SIDE_SUFFIXES {
        let path = side_path(csv, suffix);
        let found = match stat_name(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            other => other.and_then(|found| {
                let is_linked = ONE_NAME.contains(&suffix) && found.stx_nlink > 1;
                Ok(fault_of(&found, csv)?.or(is_linked.then_some(SideFileFault::HardLinks)))
            }),
        };
        if let Some(fault) = found.map_err(|e| OpenError::io(&path, "stat", e))? {
            return Err(OpenError::SideFile(UnsafeSideFile { path, fault }));
        }
    }
    Ok(())
}

/// Warns of a folder in which every user may plant files.
pub(crate) fn warn_of_open_folder(csv: &Path) {
    let folder = parent_directory(csv);
    let Ok(mode) = mode_of(folder) else { return };
    if mode & WRITABLE_FOR_ALL != 0 {
        tracing::warn!(
            folder = %folder.display(), sticky = mode & STICKY != 0,
            "every user may write to the folder of the CSV, and so put other files in the place of its side files"
        );
    }
}

fn is_open_to_all(folder: &Path) -> io::Result<bool> {
    Ok(mode_of(folder)? & WRITABLE_FOR_ALL != 0)
}

fn mode_of(folder: &Path) -> io::Result<u32> {
    let found = retry_on_intr(|| statx(CWD, folder, AtFlags::empty(), StatxFlags::MODE))?;
    Ok(found.stx_mode.into())
}

/// Whether the name, or the open file, is where something is mounted. `None` before Linux 5.8.
pub(crate) fn is_mount_point(found: &Statx) -> Option<bool> {
    let is_known = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    is_known.then(|| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn options(access: Access, flags: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::Write).append(access == Access::Append);
    // guard: side_file_links: rows are not written through a symbolic link that another user made
    options.custom_flags((flags | OFlags::NOFOLLOW).bits().cast_signed());
    options
}

fn stat_name(path: &Path) -> io::Result<Statx> {
    Ok(retry_on_intr(|| statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, ASKED))?)
}

fn stat_handle(file: impl AsFd) -> io::Result<Statx> {
    Ok(retry_on_intr(|| statx(&file, "", AtFlags::EMPTY_PATH, ASKED))?)
}

fn refusal(path: &Path, fault: SideFileFault) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, UnsafeSideFile { path: path.to_owned(), fault })
}

fn refuse(path: &Path, csv: &Path, found: &Statx) -> io::Result<()> {
    fault_of(found, csv)?.map_or(Ok(()), |fault| Err(refusal(path, fault)))
}

fn fault_of(found: &Statx, csv: &Path) -> io::Result<Option<SideFileFault>> {
    Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile if is_mount_point(found) == Some(true) => Some(SideFileFault::MountPoint),
        // guard: side_file_owner: rows and keys are not written to a file that another user made
        FileType::RegularFile if is_trusted(found.stx_uid, csv)? => None,
        FileType::RegularFile => Some(SideFileFault::Owner(found.stx_uid)),
        FileType::Symlink => Some(SideFileFault::SymbolicLink),
        _ => Some(SideFileFault::NotRegular),
    })
}

/// Whether nobody else can have put the file there. In a folder that not every user may write to, its users trust each other: they
/// could as well rename the journal.
fn is_trusted(owner: u32, csv: &Path) -> io::Result<bool> {
    if owner == 0 || owner == geteuid().as_raw() || !is_open_to_all(parent_directory(csv))? {
        return Ok(true);
    }
    match stat_name(csv) {
        Ok(found) if found.stx_uid == owner => return Ok(true),
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // A server may give the files of this user another owner, such as those of root on NFS.
    let own = tempfile::tempfile_in(parent_directory(csv)).and_then(|file| stat_handle(&file));
    Ok(own.is_ok_and(|own| own.stx_uid == owner))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::fs::{PermissionsExt, symlink},
        process::Command,
        sync::Arc,
        time::Instant,
    };

    use super::*;
    use crate::storage::{
        disk::{Disk, FileKind},
        files::Files,
        peer_file::PeerFile,
    };

    const VICTIM: &str = "of another user\n";

    /// What another user may put at a path; the second path is the victim's.
    type Plant = (&'static str, fn(&Path, &Path));

    const PLANTS: [Plant; 5] = [
        ("is a symbolic link", |at, victim| symlink(victim, at).expect("linked")),
        ("is a symbolic link", |at, victim| symlink(victim.with_extension("missing"), at).expect("linked")),
        ("is not a regular file", |at, _| {
            assert!(Command::new("mkfifo").arg(at).status().expect("mkfifo runs").success());
        }),
        ("is not a regular file", |at, _| fs::create_dir(at).expect("created")),
        ("has several hard links", |at, victim| fs::hard_link(victim, at).expect("linked")),
    ];

    /// A CSV with a journal and keys.
    fn csv_in(folder: &Path) -> std::path::PathBuf {
        let csv = folder.join("rows.csv");
        for suffix in ["", ".journal", ".keys"] {
            fs::write(side_path(&csv, suffix), "").expect("written");
        }
        csv
    }

    /// Writes to a side file that is first opened while a replica runs.
    type Use = fn(&Path) -> io::Result<()>;

    const USES: [(&str, Use); 3] = [
        (".torn", |csv| {
            let files = Arc::new(Files::open(csv)?);
            files.append(FileKind::Torn, b"quarantined\n").map(drop)
        }),
        (".rebuild-1", |csv| {
            let files = Arc::new(Files::open(csv)?);
            files.append(FileKind::Tail(1), b"rows\n").map(drop)
        }),
        (".events", |csv| PeerFile::new(csv).publish("{}")),
    ];

    #[test]
    fn planted_file_is_refused_by_each_writer() {
        for (problem, plant) in PLANTS {
            for (suffix, write) in USES {
                let folder = tempfile::tempdir().expect("a folder");
                let (csv, victim) = (csv_in(folder.path()), folder.path().join("victim"));
                fs::write(&victim, VICTIM).expect("written");
                plant(&side_path(&csv, suffix), &victim);
                let refused = write(&csv).expect_err("a planted file").to_string();
                assert!(refused.contains(&format!("rows.csv{suffix} {problem}")), "{refused}");
                assert_eq!(fs::read_to_string(&victim).expect("readable"), VICTIM, "{suffix} {problem}");
                assert!(!victim.with_extension("missing").exists(), "{suffix} {problem}");
            }
        }
    }

    #[test]
    fn planted_file_is_refused_on_a_network_volume() {
        for (problem, plant) in PLANTS {
            for kind in [FileKind::Torn, FileKind::Tail(0)] {
                let folder = tempfile::tempdir().expect("a folder");
                let (csv, victim) = (csv_in(folder.path()), folder.path().join("victim"));
                fs::write(&victim, VICTIM).expect("written");
                let files = Arc::new(Files::open_as_network(&csv).expect("opens"));
                let suffix = if kind == FileKind::Torn { ".torn" } else { ".rebuild-0" };
                plant(&side_path(&csv, suffix), &victim);
                let _lock = files.lock(Instant::now()).expect("locks");
                let refused = files.append(kind, b"rows\n").expect_err("a planted file").to_string();
                assert!(refused.contains(&format!("rows.csv{suffix} {problem}")), "{refused}");
                assert_eq!(fs::read_to_string(&victim).expect("readable"), VICTIM, "{suffix} {problem}");
                assert!(!victim.with_extension("missing").exists(), "{suffix} {problem}");
            }
        }
    }

    #[test]
    fn link_made_between_look_and_open_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (csv, victim) = (csv_in(folder.path()), folder.path().join("victim"));
        fs::write(&victim, VICTIM).expect("written");
        let torn = side_path(&csv, ".torn");
        symlink(&victim, &torn).expect("linked");
        for access in [Access::Read, Access::Write, Access::Append] {
            assert!(options(access, OFlags::empty()).open(&torn).is_err(), "{access:?}");
            assert!(options(access, OFlags::empty()).create_new(true).open(&torn).is_err() || access == Access::Read);
        }
    }

    #[test]
    fn new_side_file_is_private_until_it_gets_the_mode_of_csv() {
        let folder = tempfile::tempdir().expect("a folder");
        let csv = csv_in(folder.path());
        let torn = side_path(&csv, ".torn");
        let mut file = open_or_create(&torn, &csv, Access::Append, OFlags::empty()).expect("created");
        assert_eq!(file.metadata().expect("stats").permissions().mode() & 0o777, 0o600);
        file.write_all(b"one").expect("written");
        let mut again = open_or_create(&torn, &csv, Access::Append, OFlags::empty()).expect("opens");
        again.write_all(b"two").expect("written");
        assert_eq!(fs::read_to_string(&torn).expect("readable"), "onetwo");
    }
}
