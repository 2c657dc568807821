//! A real file system that fills up or gives up, a folder that may not be entered any more, and a CSV that others rename,
//! replace, cut short and edit, all while replicas write to it.

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
    replicas::Fleet,
    support::{Bench, On, Replica, journal_headers, until},
};

const CLIENTS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_that_runs_full_under_load_refuses_and_serves_again_once_there_is_room() {
    let mut bench = Bench::new(On::Redis);
    let Some(ext4) = Ext4::mount(bench.folder(), 32 << 20) else { return };
    bench.csv = ext4.at.join("rows.csv");
    let mut fleet = Fleet::on(bench);
    let filler = ext4.at.join("filler");
    for _ in 0..3 {
        let load = Load::start(CLIENTS, &fleet.addresses);
        until("rows are served", async || load.acked() >= 50).await;
        let mut file = File::create(&filler).expect("made");
        while file.write_all(&[b'x'; 1 << 16]).is_ok() {}
        drop(file);
        until("the disk is full for a client", async || load.refused(507) > 0).await;
        fs::remove_file(&filler).expect("removed");
        let before = load.acked();
        until("rows are served again", async || load.acked() > before + 50).await;
        let all = load.end().await;
        verify(&fleet.bench.csv, &all);
        // Each round begins with a file of its own, as its clients begin with the same keys.
        fleet.kill_all();
        fs::remove_dir_all(ext4.at.join("lost+found")).unwrap_or_default();
        for entry in fs::read_dir(&ext4.at).expect("readable") {
            fs::remove_file(entry.expect("an entry").path()).expect("removed");
        }
        fleet.start_all();
    }
    fleet.kill_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ext4_that_gives_up_and_turns_read_only_loses_no_acknowledged_row() {
    let mut bench = Bench::new(On::Redis);
    let Some(ext4) = Ext4::mount(bench.folder(), 32 << 20) else { return };
    bench.csv = ext4.at.join("rows.csv");
    let mut fleet = Fleet::on(bench);
    let load = Load::start(CLIENTS, &fleet.addresses);
    for _ in 0..5 {
        let enough = load.acked() + 100;
        until("rows are served", async || load.acked() >= enough).await;
        let refusals = load.refused(500);
        ext4.give_up();
        until("a client is told", async || load.refused(500) > refusals).await;
        let ended = fleet.kill_all();
        assert!(ended.iter().all(|&code| code == 74), "ended with {ended:?}");
        ext4.repair_and_mount_again();
        fleet.start_all();
    }
    let all = load.end().await;
    verify(&fleet.bench.csv, &all);
    fleet.kill_all();
}

/// Root may enter any folder, unless it gives up the right to.
fn without_the_right_to_everything(command: &Command) -> Command {
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
async fn a_folder_that_may_not_be_entered_any_more_refuses_and_serves_again_when_it_may() {
    let mut bench = Bench::new(On::Redis);
    let folder = bench.folder().join("data");
    fs::create_dir(&folder).expect("a folder");
    bench.csv = folder.join("rows.csv");
    let settings = [("ROWLOCK_CSV_HEADER", "token,data")];
    let replica = Replica::start(without_the_right_to_everything(&bench.command(&settings)));
    replica.append_text("one").await;
    let allow = |mode| fs::set_permissions(&folder, Permissions::from_mode(mode)).expect("ours");
    allow(0o000);
    let (status, problem) = replica.append(json!({"data": "refused"})).await;
    assert_eq!((status, &problem["code"], &problem["outcome"]), (500, &json!("internal"), &json!("not_written")));
    until("the log says why", async || replica.log().contains("cannot find the CSV: Permission denied")).await;
    let output = without_the_right_to_everything(&bench.command(&settings)).output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("data/rows.csv: Permission denied"), "{stderr}");
    allow(0o755);
    replica.append_text("two").await;
    // A folder where nothing new can be made has no place for what would have to be set aside.
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
async fn a_csv_that_is_renamed_or_replaced_under_load_takes_no_row_that_nobody_finds() {
    let mut fleet = Fleet::start();
    let load = Load::start(CLIENTS, &fleet.addresses);
    let (csv, moved) = (fleet.bench.csv.clone(), fleet.bench.folder().join("moved.csv"));
    for round in 0..4 {
        let enough = load.acked() + 50;
        until("rows are served", async || load.acked() >= enough).await;
        fs::rename(&csv, &moved).expect("renamed");
        if round % 2 == 1 {
            fs::write(&csv, "token,key,data\n").expect("written");
        }
        let refused = load.refused(500);
        until("clients are told", async || load.refused(500) > refused + 20).await;
        let (acked, len) = (load.acked(), fs::metadata(&moved).expect("there").len());
        let refused = load.refused(500);
        until("clients are told again", async || load.refused(500) > refused + 20).await;
        assert_eq!(
            (load.acked(), fs::metadata(&moved).expect("there").len()),
            (acked, len),
            "written where nobody looks"
        );
        fs::rename(&moved, &csv).expect("renamed back");
    }
    let all = load.end().await;
    verify(&csv, &all);
    let told = |replica: &Replica| {
        replica.log().contains("replaced or renamed") || replica.log().contains("cannot find the CSV")
    };
    assert!(fleet.replicas.iter().any(told), "{}", fleet.replicas[0].log());
    fleet.kill_all();
}

/// Keeps all replicas from the files.
fn guarded(bench: &Bench) -> File {
    let journal = File::open(format!("{}.journal", bench.csv.display())).expect("a journal");
    journal.lock().expect("file locks");
    journal
}

/// From where to where the journal still has what stands in the CSV.
fn unsettled(bench: &Bench) -> (u64, u64) {
    let settled = journal_headers(bench).iter().max().map(|&(_, csv_bytes)| csv_bytes).expect("two headers");
    (settled, fs::metadata(&bench.csv).expect("there").len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_csv_that_is_cut_short_under_load_gets_back_what_the_journal_has() {
    let mut fleet = Fleet::start();
    let load = Load::start(CLIENTS, &fleet.addresses);
    for _ in 0..20 {
        let enough = load.acked() + 20;
        until("rows are served", async || load.acked() >= enough).await;
        let guard = guarded(&fleet.bench);
        let (settled, len) = unsettled(&fleet.bench);
        let cut = OpenOptions::new().write(true).open(&fleet.bench.csv).expect("opens");
        cut.set_len(settled + (len - settled) / 2).expect("cut");
        drop(guard);
    }
    let all = load.end().await;
    verify(&fleet.bench.csv, &all);
    fleet.kill_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_somebody_edits_are_what_they_were_after_a_start_as_long_as_the_journal_has_them() {
    let mut fleet = Fleet::start();
    let load = Load::start(CLIENTS, &fleet.addresses);
    for _ in 0..10 {
        let enough = load.acked() + 40;
        until("rows are served", async || load.acked() >= enough).await;
        let guard = guarded(&fleet.bench);
        let (settled, len) = unsettled(&fleet.bench);
        if settled + 100 < len {
            // In the last row's data: a token or key of another's making would be another's row.
            let csv = OpenOptions::new().write(true).open(&fleet.bench.csv).expect("opens");
            csv.write_all_at(b"#", len - 4).expect("edited");
        }
        fleet.kill_all();
        drop(guard);
        fleet.start_all();
    }
    let all = load.end().await;
    verify(&fleet.bench.csv, &all);
    assert!(fs::read_to_string(format!("{}.torn", fleet.bench.csv.display())).expect("set aside").contains('#'));
    fleet.kill_all();
}

#[tokio::test]
async fn a_header_that_somebody_edits_while_nobody_runs_is_taken_at_the_next_start() {
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
