//! A file with two paths could get two journals: the start and each turn refuse a CSV that has a second one.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::support::{Bench, On, Replica, not_run, until};

const HEADER: &str = "token,data\n";

/// Whether this process may mount: a container's root may not.
fn may_mount() -> bool {
    let may_mount = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    if !may_mount {
        not_run("this process may not mount");
    }
    may_mount
}

/// The command behind this script, in a mount namespace of its own, which ends with its process.
fn after_mounts(command: &Command, script: &str) -> Command {
    let mut wrapped = Command::new("unshare");
    wrapped.args(["--mount", "sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped.current_dir(command.get_current_dir().expect("a bench's"));
    wrapped
}

#[test]
fn linked_copy_of_a_backup_may_be_checked() {
    let bench = Bench::new(On::Embedded);
    assert!(bench.run(&["append", "--data", "x"], &[]).status.success());
    for suffix in ["", ".journal", ".keys"] {
        let path = format!("{}{suffix}", bench.csv.display());
        fs::hard_link(&path, bench.folder().join(format!("linked{suffix}"))).expect("linked");
    }
    let output = bench.run(&["check", &bench.csv.to_string_lossy()], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = bench.run(&["append", "--data", "y"], &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("several hard links"), "{output:?}");
}

/// A bench with a CSV in the folder `a`, that uses `b/rows.csv`.
fn bench_with_folders() -> Bench {
    let mut bench = Bench::new(On::Embedded);
    for folder in ["a", "b", "c"] {
        fs::create_dir(bench.folder().join(folder)).expect("a folder");
    }
    fs::write(bench.folder().join("a/rows.csv"), HEADER).expect("written");
    bench.csv = bench.folder().join("b/rows.csv");
    bench
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[test]
fn csv_that_is_mounted_by_itself_is_refused() {
    if !may_mount() {
        return;
    }
    for script in [
        "mount --bind a/rows.csv b/rows.csv",
        "mount --bind a/rows.csv b/rows.csv; mount -o remount,bind,ro b/rows.csv; mount --bind a/rows.csv b/rows.csv",
        "mount --bind a c; mount --bind c/rows.csv b/rows.csv",
        // A folder that others may use at the same time.
        "mount --bind b/rows.csv b/rows.csv",
    ] {
        let bench = bench_with_folders();
        fs::write(&bench.csv, HEADER).expect("written");
        for arguments in [&["append", "--data", "x"][..], &["serve"], &["check", "--repair"]] {
            let mut command = bench.command(&[]);
            command.args(arguments);
            if arguments[0] == "check" {
                command.arg(&bench.csv);
            }
            let output = after_mounts(&command, script).output().expect("runs");
            let stderr = String::from_utf8_lossy(&output.stderr);
            // A check says first what a repair would do.
            let lines = if arguments[0] == "check" { 2 } else { 1 };
            assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), lines), "{script}: {stderr}");
            assert!(stderr.lines().last().is_some_and(|it| it.contains("b/rows.csv is a mount point")), "{stderr}");
            let folder = if script.contains("b/rows.csv b") { "b of " } else { "a of " };
            assert!(stderr.contains(&format!("/{folder}")), "the folder to mount: {stderr}");
        }
        for folder in ["a", "b"] {
            let left: Vec<_> = names(&bench.folder().join(folder));
            assert!(!left.iter().any(|name| name.ends_with(".journal")), "{script}: {left:?}");
            assert_eq!(fs::read_to_string(bench.folder().join(folder).join("rows.csv")).expect("read"), HEADER);
        }
    }
}

#[test]
fn csv_in_a_mounted_folder_is_served() {
    if !may_mount() {
        return;
    }
    for script in [
        "mount --bind a b",
        "mount -t tmpfs rows b",
        "mount -t tmpfs rows c; mkdir c/upper c/work
         mount -t overlay rows -o lowerdir=a,upperdir=c/upper,workdir=c/work b",
    ] {
        let bench = bench_with_folders();
        // The second one finds the journal of the first one.
        let twice = format!("{script}\n\"$@\" > first");
        let mut command = bench.command(&[("ROWLOCK_CSV_HEADER", "token,data")]);
        command.args(["append", "--data", "x", "--json"]);
        let output = after_mounts(&command, &twice).output().expect("runs");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        let tokens = [fs::read(bench.folder().join("first")).expect("an answer"), output.stdout].map(|answer| {
            let answer: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
            answer["token"].clone()
        });
        assert_eq!(tokens, [json!(1), json!(2)], "{script}");
    }
}

/// What gives the CSV of a running replica a second path, and takes it away.
type Change = (&'static str, fn(&Path, u32), fn(&Path, u32));

fn beside(csv: &Path, name: &str) -> PathBuf {
    csv.with_file_name(name)
}

/// Runs a program among the mounts of a process.
fn in_namespace_of(pid: u32, arguments: &[&str]) {
    let output = Command::new("nsenter").args(["--mount", "--target", &pid.to_string()]).args(arguments).output();
    let output = output.expect("nsenter runs");
    assert!(output.status.success(), "{output:?}");
}

const LINKED: Change = (
    "a second name",
    |csv, _| fs::hard_link(csv, beside(csv, "twin.csv")).expect("linked"),
    |csv, _| fs::remove_file(beside(csv, "twin.csv")).expect("removed"),
);

const MOVED: Change = (
    "moved, and a symbolic link in its place",
    |csv, _| {
        fs::rename(csv, beside(csv, "moved.csv")).expect("moved");
        symlink("moved.csv", csv).expect("linked");
    },
    |csv, _| fs::rename(beside(csv, "moved.csv"), csv).expect("moved back"),
);

const MOUNTED: Change = (
    "mounted on itself",
    |csv, pid| in_namespace_of(pid, &["mount", "--bind", &csv.to_string_lossy(), &csv.to_string_lossy()]),
    |csv, pid| in_namespace_of(pid, &["umount", &csv.to_string_lossy()]),
);

async fn is_refused_until_undone(bench: &Bench, replica: &Replica, (what, change, undo): Change) {
    replica.append_text("before").await;
    change(&bench.csv, replica.pid());
    let (status, problem) = replica.append(json!({"data": "refused"})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("file_replaced")), "{what}: {problem}");
    assert_eq!(problem["outcome"], "not_written", "{what}");
    undo(&bench.csv, replica.pid());
    until(what, async || replica.append(json!({"data": "after"})).await.0 == 201).await;
    let data: Vec<_> = bench.rows().iter().map(|row| row["data"].clone()).collect();
    assert_eq!(data, ["before", "after"], "{what}");
}

#[tokio::test]
async fn second_name_of_a_csv_in_use_refuses_rows() {
    let bench = Bench::new(On::Embedded);
    is_refused_until_undone(&bench, &bench.replica(&[]), LINKED).await;
}

#[tokio::test]
async fn symbolic_link_in_place_of_a_csv_in_use_refuses_rows() {
    let bench = Bench::new(On::Embedded);
    is_refused_until_undone(&bench, &bench.replica(&[]), MOVED).await;
}

#[tokio::test]
async fn mount_on_a_csv_in_use_refuses_rows() {
    if may_mount() {
        let bench = Bench::new(On::Embedded);
        let replica = Replica::start(after_mounts(&bench.command(&[]), ""));
        is_refused_until_undone(&bench, &replica, MOUNTED).await;
    }
}
