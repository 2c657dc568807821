//! A file system that fills up or fails, a folder that becomes inaccessible, and a CSV that is renamed, replaced, truncated and
//! edited, all while replicas write to it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{FileExt, PermissionsExt},
    process::Command,
};

use serde_json::json;

use crate::{
    ext4::{Ext4, is_root},
    load::{HEADER, Load, verify},
    replicas::Replicas,
    support::{Bench, On, Replica, journal_headers, until},
};

const CLIENTS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn full_ext4_refuses_rows_until_there_is_space() {
    let mut bench = Bench::new(On::Redis);
    let Some(ext4) = Ext4::mount(bench.folder(), 32 << 20) else { return };
    bench.csv = ext4.at.join("rows.csv");
    let mut replicas = Replicas::on(bench);
    let filler = ext4.at.join("filler");
    for _ in 0..3 {
        let load = Load::start(CLIENTS, &replicas.addresses);
        until("rows are served", async || load.acked() >= 50).await;
        let mut file = File::create(&filler).expect("made");
        while file.write_all(&[b'x'; 1 << 16]).is_ok() {}
        drop(file);
        until("the disk is full for a client", async || load.refused(507) > 0).await;
        fs::remove_file(&filler).expect("removed");
        let before = load.acked();
        until("rows are served again", async || load.acked() > before + 50).await;
        let all = load.end().await;
        verify(&replicas.bench.csv, &all);
        // Each round needs a new file, since its clients use the same keys.
        replicas.kill_all();
        fs::remove_dir_all(ext4.at.join("lost+found")).unwrap_or_default();
        for entry in fs::read_dir(&ext4.at).expect("readable") {
            fs::remove_file(entry.expect("an entry").path()).expect("removed");
        }
        replicas.start_all();
    }
    replicas.kill_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_error_loses_no_acknowledged_row() {
    let mut bench = Bench::new(On::Redis);
    let Some(ext4) = Ext4::mount(bench.folder(), 32 << 20) else { return };
    bench.csv = ext4.at.join("rows.csv");
    let mut replicas = Replicas::on(bench);
    let load = Load::start(CLIENTS, &replicas.addresses);
    for _ in 0..5 {
        let enough = load.acked() + 100;
        until("rows are served", async || load.acked() >= enough).await;
        let refusals = load.refused(500);
        ext4.give_up();
        until("a client gets an error", async || load.refused(500) > refusals).await;
        let ended = replicas.kill_all();
        assert!(ended.iter().all(|&code| code == 74), "ended with {ended:?}");
        ext4.repair_and_mount_again();
        replicas.start_all();
    }
    let all = load.end().await;
    verify(&replicas.bench.csv, &all);
    replicas.kill_all();
}

/// Removes root's capability to enter any folder.
fn without_root_privileges(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    if is_root() {
        wrapped.arg("--bounding-set=-dac_override,-dac_read_search");
    }
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.env_clear().env("PATH", "/usr/bin:/bin");
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped.current_dir(command.get_current_dir().expect("a bench's"));
    wrapped
}

#[tokio::test]
async fn inaccessible_folder_refuses_rows_until_accessible() {
    let mut bench = Bench::new(On::Redis);
    let folder = bench.folder().join("data");
    fs::create_dir(&folder).expect("a folder");
    bench.csv = folder.join("rows.csv");
    let settings = [("ROWLOCK_CSV_HEADER", "token,data")];
    let replica = Replica::start(without_root_privileges(&bench.command(&settings)));
    replica.append_text("one").await;
    let allow = |mode| fs::set_permissions(&folder, Permissions::from_mode(mode)).expect("ours");
    allow(0o000);
    let (status, problem) = replica.append(json!({"data": "refused"})).await;
    assert_eq!((status, &problem["code"], &problem["outcome"]), (500, &json!("internal"), &json!("not_written")));
    until("the log says why", async || replica.log().contains("cannot find the CSV: Permission denied")).await;
    let output = without_root_privileges(&bench.command(&settings)).output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("data/rows.csv: Permission denied"), "{stderr}");
    allow(0o755);
    replica.append_text("two").await;
    // In a read-only folder there is no place for quarantined bytes.
    allow(0o555);
    OpenOptions::new().append(true).open(&bench.csv).and_then(|mut csv| csv.write_all(b"torn")).expect("written");
    let (status, problem) = replica.append(json!({"data": "refused"})).await;
    assert_eq!((status, &problem["code"], &problem["outcome"]), (500, &json!("internal"), &json!("not_written")));
    allow(0o755);
    replica.append_text("three").await;
    let data: Vec<_> = bench.rows().iter().map(|row| row["data"].clone()).collect();
    assert_eq!(data, ["one", "two", "three"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn renamed_or_replaced_csv_gets_no_rows() {
    let mut replicas = Replicas::start();
    let load = Load::start(CLIENTS, &replicas.addresses);
    let (csv, moved) = (replicas.bench.csv.clone(), replicas.bench.folder().join("moved.csv"));
    for round in 0..4 {
        let enough = load.acked() + 50;
        until("rows are served", async || load.acked() >= enough).await;
        fs::rename(&csv, &moved).expect("renamed");
        if round % 2 == 1 {
            fs::write(&csv, "token,key,data\n").expect("written");
        }
        let refused = load.refused(503);
        until("clients get errors", async || load.refused(503) > refused + 20).await;
        let (acked, len) = (load.acked(), fs::metadata(&moved).expect("there").len());
        let refused = load.refused(503);
        until("clients still get errors", async || load.refused(503) > refused + 20).await;
        assert_eq!(
            (load.acked(), fs::metadata(&moved).expect("there").len()),
            (acked, len),
            "rows were written to the renamed file"
        );
        fs::rename(&moved, &csv).expect("renamed back");
    }
    let all = load.end().await;
    verify(&csv, &all);
    let has_logged = |replica: &Replica| replica.log().contains("replaced or renamed");
    assert!(replicas.all.iter().any(has_logged), "{}", replicas.all[0].log());
    replicas.kill_all();
}

/// Takes the OS lock, so that no replica accesses the files.
fn lock_files(bench: &Bench) -> File {
    let journal = File::open(format!("{}.journal", bench.csv.display())).expect("a journal");
    journal.lock().expect("file locks");
    journal
}

/// The range of the CSV after the checkpoint, which the journal still has.
fn after_checkpoint(bench: &Bench) -> (u64, u64) {
    let checkpoint = journal_headers(bench).iter().max().map(|&(_, csv_bytes)| csv_bytes).expect("two headers");
    (checkpoint, fs::metadata(&bench.csv).expect("there").len())
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_csv_is_restored_from_journal() {
    let mut replicas = Replicas::start();
    let load = Load::start(CLIENTS, &replicas.addresses);
    for _ in 0..20 {
        let enough = load.acked() + 20;
        until("rows are served", async || load.acked() >= enough).await;
        let guard = lock_files(&replicas.bench);
        let (checkpoint, len) = after_checkpoint(&replicas.bench);
        let file = OpenOptions::new().write(true).open(&replicas.bench.csv).expect("opens");
        file.set_len(checkpoint + (len - checkpoint) / 2).expect("truncated");
        drop(guard);
    }
    let all = load.end().await;
    verify(&replicas.bench.csv, &all);
    replicas.kill_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn edited_rows_are_restored_from_journal_at_start() {
    let mut replicas = Replicas::start();
    let load = Load::start(CLIENTS, &replicas.addresses);
    for _ in 0..10 {
        let enough = load.acked() + 40;
        until("rows are served", async || load.acked() >= enough).await;
        let guard = lock_files(&replicas.bench);
        let (checkpoint, len) = after_checkpoint(&replicas.bench);
        if checkpoint + 100 < len {
            // Edits the data of the last row: with another token or key it would count as a foreign row.
            let csv = OpenOptions::new().write(true).open(&replicas.bench.csv).expect("opens");
            csv.write_all_at(b"#", len - 4).expect("edited");
        }
        replicas.kill_all();
        drop(guard);
        replicas.start_all();
    }
    let all = load.end().await;
    verify(&replicas.bench.csv, &all);
    assert!(fs::read_to_string(format!("{}.torn", replicas.bench.csv.display())).expect("quarantined").contains('#'));
    replicas.kill_all();
}

#[tokio::test]
async fn header_edited_while_stopped_is_used_at_next_start() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&[("ROWLOCK_CSV_HEADER", HEADER)]);
    replica.append_text("one").await;
    replica.signal("TERM");
    replica.end();
    fs::write(&bench.csv, "key,data,token\n,one,1\n").expect("edited");
    let output = bench.run(&["check", "--json"], &[]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["journal"]["state"], "other_file", "{report}");
    bench.replica(&[]).append_text("two").await;
    assert_eq!(bench.content(), "key,data,token\n,one,1\n,two,2\n");
}
