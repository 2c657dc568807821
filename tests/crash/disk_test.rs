//! Tests the simulated disk with the system calls that a process makes.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
};
use tempfile::{NamedTempFile, TempDir};

use super::disk::{Disk, Lost, disk};

/// Enough seeds for each random outcome to occur.
const SEEDS: u64 = 64;

/// Mounts the disk, runs `work`, and unmounts it.
fn on<T>(disk: &Disk, work: impl FnOnce(&Path) -> T) -> T {
    let folder = TempDir::new().expect("a temporary folder");
    let mounted = disk.mount(folder.path());
    let done = work(folder.path());
    mounted.unmount();
    done
}

fn sync_folder(folder: &Path) {
    File::open(folder).and_then(|folder| folder.sync_all()).expect("synced");
}

/// Creates a file that is durable.
fn durable_file(folder: &Path, name: &str, content: &[u8]) -> File {
    let mut file = File::create(folder.join(name)).expect("created");
    file.write_all(content).expect("written");
    file.sync_all().expect("synced");
    sync_folder(folder);
    file
}

fn appending(path: &Path) -> File {
    OpenOptions::new().append(true).create(true).open(path).expect("opens")
}

/// The results of `observe` after `work` and a power cut, for many seeds.
fn outcomes<T: Ord>(work: impl Fn(&Path), observe: impl Fn(&Disk) -> T) -> BTreeSet<T> {
    let cut = |seed| {
        let disk = disk(seed)?;
        on(&disk, &work);
        disk.cut_power();
        Some(observe(&disk))
    };
    (0..SEEDS).filter_map(cut).collect()
}

#[test]
fn synced_data_survives_power_cut() {
    let Some(_) = disk(0) else { return };
    let work = |folder: &Path| {
        let mut file = durable_file(folder, "rows", b"one\n");
        file.write_all(b"two\n").expect("written");
        assert_eq!(fs::read(folder.join("rows")).expect("read"), b"one\ntwo\n", "the cache has it at once");
    };
    let seen = outcomes(work, |disk| disk.read("rows").expect("its name was synced"));
    assert!(seen.iter().all(|content| content.starts_with(b"one\n")), "{seen:?}");
    assert!(seen.contains(b"one\n".as_slice()) && seen.contains(b"one\ntwo\n".as_slice()), "{seen:?}");
}

#[test]
fn unsynced_write_survives_in_pieces_with_zeros_between() {
    let Some(_) = disk(0) else { return };
    let work = |folder: &Path| {
        durable_file(folder, "rows", b"").write_all(&[b'x'; 20_000]).expect("written");
    };
    let seen = outcomes(work, |disk| disk.read("rows").expect("its name was synced"));
    assert!(seen.iter().flatten().all(|byte| [0, b'x'].contains(byte)));
    assert!(seen.iter().any(|content| content.contains(&0)), "a gap");
    assert!(seen.iter().any(|content| content.len() % 4096 != 0 && content.len() < 20_000), "a partly written page");
    assert!(seen.contains([b'x'; 20_000].as_slice()), "all of it");
}

#[test]
fn unsynced_truncation_may_be_undone() {
    let Some(_) = disk(0) else { return };
    let work = |folder: &Path| durable_file(folder, "rows", b"0123456789").set_len(3).expect("truncated");
    let seen = outcomes(work, |disk| disk.read("rows").expect("its name was synced"));
    assert_eq!(seen, BTreeSet::from([b"012".to_vec(), b"0123456789".to_vec()]));
}

#[test]
fn new_name_survives_only_after_directory_sync() {
    let Some(_) = disk(0) else { return };
    let create = |folder: &Path| {
        let mut file = File::create_new(folder.join("new")).expect("created");
        file.write_all(b"x").expect("written");
        file.sync_all().expect("synced");
    };
    let read = |disk: &Disk| disk.read("new");
    assert_eq!(outcomes(create, read), BTreeSet::from([None, Some(b"x".to_vec())]));
    let create_and_sync = |folder: &Path| {
        create(folder);
        sync_folder(folder);
    };
    assert_eq!(outcomes(create_and_sync, read), BTreeSet::from([Some(b"x".to_vec())]));
}

#[test]
fn rename_is_atomic() {
    let Some(_) = disk(0) else { return };
    let work = |folder: &Path| {
        durable_file(folder, "rows", b"old");
        durable_file(folder, "rows.new", b"new");
        fs::rename(folder.join("rows.new"), folder.join("rows")).expect("renamed");
    };
    let observe = |disk: &Disk| (disk.names(), disk.read("rows").expect("one or the other"));
    let before = (vec!["rows".to_owned(), "rows.new".to_owned()], b"old".to_vec());
    let after = (vec!["rows".to_owned()], b"new".to_vec());
    assert_eq!(outcomes(work, observe), BTreeSet::from([before, after]));
}

#[test]
fn losses_of_power_cut_are_counted() {
    let (mut took_all, mut took_nothing) = (false, false);
    for seed in 0..SEEDS {
        let Some(disk) = disk(seed) else { return };
        on(&disk, |folder| {
            durable_file(folder, "rows", b"one\n").write_all(b"two\n").expect("written");
            fs::hard_link(folder.join("rows"), folder.join("other")).expect("linked");
        });
        let lost = disk.cut_power();
        took_all |= lost == Lost { writes: 1, pieces: lost.pieces, entries: 1 } && lost.pieces > 0;
        took_nothing |= lost == Lost::default();
        assert_eq!(disk.cut_power(), Lost::default(), "nothing is pending any more");
        let content = on(&disk, |folder| fs::read(folder.join("rows")).expect("read"));
        assert_eq!(Some(content), disk.read("rows"));
        assert_eq!(disk.names().len(), 2 - lost.entries);
    }
    assert!(took_all && took_nothing);
}

#[test]
fn sync_after_failed_one_succeeds_with_data_lost() {
    let Some(_) = disk(0) else { return };
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let disk = Disk::new(seed);
        on(&disk, |folder| {
            let mut file = durable_file(folder, "rows", b"one\n");
            disk.fail_syncs("rows", 1);
            file.write_all(b"two\n").expect("written");
            let failed = file.sync_data().expect_err("fails as requested");
            assert_eq!(failed.raw_os_error(), Some(Errno::IO.raw_os_error()));
            file.sync_data().expect("the second sync succeeds");
            assert_eq!(fs::read(folder.join("rows")).expect("read"), b"one\ntwo\n", "the cache has unwritten data");
        });
        assert_eq!(disk.syncs_failed(), 1);
        disk.cut_power();
        seen.insert(disk.read("rows").expect("its name was synced"));
    }
    assert!(seen.contains(b"one\n".as_slice()) && seen.contains(b"one\ntwo\n".as_slice()), "{seen:?}");
}

#[test]
fn injected_write_error_writes_nothing() {
    let Some(disk) = disk(1) else { return };
    on(&disk, |folder| {
        disk.fail_writes("rows", 2, Errno::IO);
        let mut file = File::create(folder.join("rows")).expect("created");
        for _ in 0..2 {
            let failed = file.write_all(b"x").expect_err("fails as requested");
            assert_eq!(failed.raw_os_error(), Some(Errno::IO.raw_os_error()));
        }
        file.write_all(b"y").expect("written");
    });
    assert_eq!(disk.read("rows").as_deref(), Some(b"y".as_slice()));
}

#[test]
fn appends_of_two_threads_do_not_overwrite_each_other() {
    let Some(disk) = disk(2) else { return };
    on(&disk, |folder| {
        let path = &folder.join("rows");
        thread::scope(|scope| {
            for thread in ["a", "b"] {
                scope.spawn(move || {
                    let mut file = appending(path);
                    (0..500).for_each(|row| file.write_all(format!("{thread}{row}\n").as_bytes()).expect("written"));
                });
            }
        });
    });
    assert_all_rows(&disk);
}

#[test]
fn appends_of_two_processes_do_not_overwrite_each_other() {
    let Some(disk) = disk(3) else { return };
    on(&disk, |folder| {
        let append = |process: &str| {
            let script = format!("exec >>rows; i=0; while [ $i -lt 500 ]; do echo {process}$i; i=$((i+1)); done");
            Command::new("sh").args(["-c", &script]).current_dir(folder).spawn().expect("sh runs")
        };
        for mut process in ["a", "b"].map(append) {
            assert!(process.wait().expect("ends").success());
        }
    });
    assert_all_rows(&disk);
}

fn assert_all_rows(disk: &Disk) {
    let content = String::from_utf8(disk.read("rows").expect("is there")).expect("text");
    let mut rows: Vec<_> = content.lines().map(str::to_owned).collect();
    let mut expected: Vec<_> =
        ["a", "b"].iter().flat_map(|who| (0..500).map(move |row| format!("{who}{row}"))).collect();
    rows.sort();
    expected.sort();
    assert_eq!(rows, expected);
}

#[test]
fn short_writes_can_be_continued() {
    let Some(disk) = disk(4) else { return };
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    on(&disk, |folder| {
        disk.short_writes(true);
        let mut file = appending(&folder.join("rows"));
        let first = file.write(&bytes).expect("written");
        assert!(first > 0 && first < bytes.len(), "{first}");
        file.write_all(&bytes[first..]).expect("written");
        disk.short_writes(false);
        assert_eq!(file.write(&bytes).expect("written"), bytes.len());
    });
    assert_eq!(disk.read("rows"), Some(bytes.repeat(2)));
}

#[test]
fn lock_excludes_second_handle_and_other_process() {
    let Some(disk) = disk(5) else { return };
    on(&disk, |folder| {
        let path = folder.join("rows");
        let (first, second) = (appending(&path), appending(&path));
        first.lock().expect("locked");
        assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        let flock = || Command::new("flock").arg("-n").arg(&path).arg("true").status().expect("flock runs").success();
        assert!(!flock());
        drop(first);
        assert!(flock());
        second.try_lock().expect("is free");
    });
}

#[test]
fn reserved_space_counts_as_blocks_not_as_length() {
    let Some(disk) = disk(6) else { return };
    on(&disk, |folder| {
        let file = durable_file(folder, "rows", b"x");
        assert_eq!(file.metadata().expect("known").blocks(), 8);
        fallocate(&file, FallocateFlags::KEEP_SIZE, 1, 8192).expect("reserved");
        let metadata = file.metadata().expect("known");
        assert_eq!((metadata.len(), metadata.blocks()), (1, 24));
        fallocate(&file, FallocateFlags::empty(), 0, 10_000).expect("reserved");
        assert_eq!(file.metadata().expect("known").len(), 10_000);
        disk.without_fallocate(true);
        assert_eq!(fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1), Err(Errno::OPNOTSUPP));
        disk.without_fallocate(false);
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1).expect("can again");
    });
}

#[test]
fn full_disk_writes_what_fits() {
    let Some(disk) = disk(7) else { return };
    on(&disk, |folder| {
        let mut file = durable_file(folder, "rows", b"");
        disk.capacity(Some(3 * 4096));
        assert_eq!(fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4 * 4096), Err(Errno::NOSPC));
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 2 * 4096).expect("fits");
        let space = statvfs(folder).expect("known");
        assert_eq!((space.f_blocks, space.f_bavail), (3, 1));
        assert_eq!(file.write(&[1; 20_000]).expect("fits in part"), 3 * 4096);
        let full = file.write(b"x").expect_err("is full");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        file.write_all_at(b"y", 0).expect("what is there may be overwritten");
        let other = File::create(folder.join("other")).expect("a name needs no space");
        assert_eq!(other.write_at(b"x", 0).expect_err("is full").kind(), ErrorKind::StorageFull);
        drop(file);
        fs::remove_file(folder.join("rows")).expect("removed");
        wait_for_space(folder);
        other.write_all_at(b"x", 0).expect("there is space again");
    });
}

/// The kernel reports the last close of a file only after the close has returned.
fn wait_for_space(folder: &Path) {
    for _ in 0..1000 {
        if statvfs(folder).expect("known").f_bavail > 0 {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("no space was freed");
}

#[test]
fn read_only_disk_refuses_every_change() {
    let Some(disk) = disk(8) else { return };
    on(&disk, |folder| {
        let (path, other) = (folder.join("rows"), folder.join("other"));
        let file = durable_file(folder, "rows", b"one\n");
        disk.read_only(true);
        let refused = [
            file.write_at(b"x", 0).map(drop),
            file.set_len(0),
            file.set_permissions(fs::Permissions::from_mode(0o600)),
            fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 9999).map_err(io::Error::from),
            File::create_new(&other).map(drop),
            OpenOptions::new().append(true).open(&path).map(drop),
            fs::hard_link(&path, &other),
            fs::rename(&path, &other),
            fs::remove_file(&path),
        ];
        for (at, answer) in refused.into_iter().enumerate() {
            assert_eq!(answer.expect_err("is read-only").kind(), ErrorKind::ReadOnlyFilesystem, "change {at}");
        }
        let mut content = String::new();
        File::open(&path).expect("opens").read_to_string(&mut content).expect("reads");
        assert_eq!(content, "one\n");
        disk.read_only(false);
        fs::remove_file(&path).expect("removed");
    });
}

#[test]
fn names_and_metadata_behave_as_on_real_disk() {
    let Some(disk) = disk(9) else { return };
    on(&disk, |folder| {
        let path = folder.join("rows");
        let file = durable_file(folder, "rows", b"one\n");
        assert_eq!(File::create_new(&path).expect_err("exists").kind(), ErrorKind::AlreadyExists);
        let temporary = || NamedTempFile::new_in(folder).expect("created");
        let taken = temporary().persist_noclobber(&path).expect_err("the name is taken");
        assert_eq!(taken.error.kind(), ErrorKind::AlreadyExists);
        drop(taken);
        temporary().persist_noclobber(folder.join("new")).expect("the name is free");
        fs::hard_link(&path, folder.join("second")).expect("linked");
        assert_eq!(file.metadata().expect("known").nlink(), 2);
        file.set_permissions(fs::Permissions::from_mode(0o640)).expect("set");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("set");
        let metadata = fs::metadata(folder.join("second")).expect("known");
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), metadata.nlink()), (0o640, 0, 2));
        let names: BTreeSet<_> =
            fs::read_dir(folder).expect("lists").map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(names, ["new", "rows", "second"].map(Into::into).into());
    });
    assert_eq!(disk.names(), ["new", "rows", "second"]);
}

#[test]
fn panicking_test_leaves_no_mount() {
    let Some(disk) = disk(10) else { return };
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().to_owned();
    let panicking = thread::spawn(move || {
        let _mounted = disk.mount(&path);
        let file = File::create(path.join("rows")).expect("created");
        std::panic::resume_unwind(Box::new(file));
    });
    let mut file = *panicking.join().expect_err("panicked").downcast::<File>().expect("the file");
    file.write_all(b"x").expect("an open file stays usable");
    assert!(!folder.path().join("rows").exists());
    let mounts = fs::read_to_string("/proc/self/mounts").expect("known");
    assert!(!mounts.contains(folder.path().to_str().expect("text")), "{mounts}");
}

#[test]
fn synced_overwrites_survive_power_cut() {
    let Some(disk) = disk(11) else { return };
    on(&disk, |folder| {
        let file = durable_file(folder, "journal", &vec![0; 1 << 20]);
        for step in 0..1000 {
            file.write_all_at(&[step as u8; 4096], step % 256 * 4096).expect("written");
            file.sync_data().expect("synced");
        }
    });
    assert_eq!(disk.cut_power(), Lost::default());
    assert_eq!(
        disk.read("journal").map(|content| (content.len(), content[231 * 4096])),
        Some((1 << 20, 999_u64 as u8))
    );
}
