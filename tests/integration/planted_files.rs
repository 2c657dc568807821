//! What another user may put in the place of a side file: nothing of it is followed, used or changed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Bench, On, not_run};

/// `<csv>.lock` has tests of its own.
const SIDE_FILES: [&str; 6] = [".journal", ".keys", ".torn", ".rebuild-0", ".rebuild-1", ".events"];
const SECRET: &str = "of another user\n";
/// A user who owns nothing else.
const FOREIGN: u32 = 54_321;

/// What is put at a path; the second path is a file that nobody may write to, and the text is what the refusal says.
type Plant = (fn(&Path, &Path), &'static str);

const PLANTS: [Plant; 5] = [
    (|at, victim| symlink(victim, at).expect("linked"), "is a symbolic link"),
    (|at, victim| symlink(victim.with_extension("missing"), at).expect("linked"), "is a symbolic link"),
    (|at, _| assert!(Command::new("mkfifo").arg(at).status().expect("mkfifo runs").success()), "is not a regular file"),
    (|at, _| fs::create_dir(at).expect("created"), "is not a regular file"),
    (
        |at, _| {
            fs::write(at, SECRET).expect("written");
            chown(at, Some(FOREIGN), Some(FOREIGN)).expect("root may");
        },
        "belongs to user 54321",
    ),
];

/// The plants that this user may make.
fn plants() -> &'static [Plant] {
    if rustix::process::geteuid().is_root() {
        return &PLANTS;
    }
    not_run("only root may make files of other users");
    &PLANTS[..PLANTS.len() - 1]
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    names
}

#[test]
fn planted_side_file_refuses_start_and_is_left_alone() {
    for &(plant, problem) in plants() {
        for suffix in SIDE_FILES {
            let bench = Bench::with_file(On::Embedded, b"token,data\n");
            let (victim, side) =
                (bench.folder().join("victim"), PathBuf::from(format!("{}{suffix}", bench.csv.display())));
            fs::write(&victim, SECRET).expect("written");
            // So that everybody may plant files.
            fs::set_permissions(bench.folder(), fs::Permissions::from_mode(0o1777)).expect("ours");
            plant(&side, &victim);
            let before = names(bench.folder());
            let csv = bench.csv.to_string_lossy();
            for arguments in
                [&["append", "--data", "x"][..], &["serve"], &["check", &csv], &["check", &csv, "--repair"]]
            {
                let output = bench.run(arguments, &[]);
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{suffix}: {stderr}");
                assert!(stderr.contains(&format!("rows.csv{suffix} {problem}")), "{arguments:?}: {stderr}");
            }
            assert_eq!(fs::read_to_string(&victim).expect("readable"), SECRET, "{suffix}");
            assert_eq!(bench.content(), "token,data\n");
            let left: Vec<_> =
                names(bench.folder()).into_iter().filter(|name| !name.ends_with("rows.csv.lock")).collect();
            assert_eq!(left, before, "{suffix}: nothing is created");
        }
    }
}

#[tokio::test]
async fn folder_that_all_may_write_to_is_warned_about() {
    for (mode, is_open) in [(0o700, false), (0o775, false), (0o777, true), (0o1777, true)] {
        let bench = Bench::new(On::Embedded);
        fs::set_permissions(bench.folder(), fs::Permissions::from_mode(mode)).expect("ours");
        let replica = bench.replica(&[]);
        assert_eq!(replica.log().contains("every user may write to the folder of the CSV"), is_open, "{mode:o}");
        replica.append_text("x").await;
    }
}

#[tokio::test]
async fn side_files_of_csv_owner_and_of_group_are_used() {
    if !rustix::process::geteuid().is_root() {
        return not_run("only root may make files of other users");
    }
    let bench = Bench::with_file(On::Embedded, b"token,data\n");
    chown(&bench.csv, Some(FOREIGN), Some(FOREIGN)).expect("root may");
    for owner in [FOREIGN, FOREIGN + 1, FOREIGN + 2] {
        let output = bench.run(&["append", "--data", "x"], &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Where not every user may write, a replica of another user of the group may have made them.
        for suffix in [".journal", ".keys", ".lock"] {
            chown(format!("{}{suffix}", bench.csv.display()), Some(owner), None).expect("root may");
        }
    }
    assert_eq!(bench.rows().len(), 3);
    let output = bench.run(&["check", &bench.csv.to_string_lossy()], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn linked_side_file_refuses_start() {
    for suffix in [".torn", ".rebuild-0", ".rebuild-1", ".events"] {
        let bench = Bench::with_file(On::Embedded, b"token,data\n");
        let victim = bench.folder().join("victim");
        fs::write(&victim, SECRET).expect("written");
        fs::hard_link(&victim, format!("{}{suffix}", bench.csv.display())).expect("linked");
        let output = bench.run(&["append", "--data", "x"], &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(&format!("rows.csv{suffix} has several hard links")), "{stderr}");
        assert_eq!((output.status.code(), fs::read_to_string(&victim).expect("readable").as_str()), (Some(1), SECRET));
    }
}
