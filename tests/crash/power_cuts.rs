//! Power cuts and failing syncs under replicas with load, on a simulated disk that loses unsynced data.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    disk::{Disk, Lost, Mounted, disk},
    load::{HEADER, Load, verify},
    replicas::Replicas,
    support::{Bench, On, Replica, answer, until},
};

const CLIENTS: usize = 12;
const SYNC_FAILED: i32 = 74;

/// A disk, on which the CSV of a bench is. To be dropped before the bench, whose folder it is mounted in.
struct Host {
    // Unmounted before its folder is removed.
    mounted: Option<Mounted>,
    disk: Disk,
    at: PathBuf,
}

impl Host {
    fn start(on: On, seed: u64) -> Option<(Bench, Self)> {
        let disk = disk(seed)?;
        let mut bench = Bench::new(on);
        let at = bench.folder().join("disk");
        fs::create_dir(&at).expect("a folder");
        bench.csv = at.join("rows.csv");
        let mounted = Some(disk.mount(&at));
        Some((bench, Self { mounted, disk, at }))
    }

    /// No process may have a file open.
    fn lose_power(&mut self) -> Lost {
        self.mounted.take().expect("it was mounted").unmount();
        let lost = self.disk.cut_power();
        self.mounted = Some(self.disk.mount(&self.at));
        lost
    }
}

fn cuts() -> u64 {
    std::env::var("ROWLOCK_CUTS").ok().map_or(100, |cuts| cuts.parse().expect("a number of power cuts"))
}

/// Between the power cuts, syncs fail and Redis loses all its data.
#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_under_load_keep_each_key_once() {
    let Some((bench, mut host)) = Host::start(On::Redis, 1) else { return };
    let mut replicas = Replicas::on(bench);
    let load = Load::start(CLIENTS, &replicas.addresses);
    let (mut lost, mut failed) = (Lost::default(), Vec::new());
    for cut in 0..cuts() {
        let enough = load.acked() + 1 + cut * 7919 % 60;
        until("rows are served again", async || load.acked() >= enough).await;
        if cut % 4 == 3 {
            let file = ["rows.csv.journal", "rows.csv", "rows.csv.journal", "rows.csv.keys"][(cut / 4 % 4) as usize];
            let before = host.disk.syncs_failed();
            host.disk.fail_syncs(file, 1);
            until("a sync fails", async || host.disk.syncs_failed() > before).await;
            until("its process ends", async || replicas.all.iter_mut().any(|replica| replica.has_ended())).await;
        }
        if cut % 5 == 4 {
            replicas.bench.redis().cli(&["flushall"]);
        }
        failed.extend(replicas.kill_all());
        let more = host.lose_power();
        (lost.writes, lost.pieces, lost.entries) =
            (lost.writes + more.writes, lost.pieces + more.pieces, lost.entries + more.entries);
        replicas.start_all();
    }
    let all = load.end().await;
    verify(&replicas.bench.csv, &all);
    println!("{} rows acknowledged, {lost:?}, {} syncs failed", all.len(), host.disk.syncs_failed());
    assert!(lost.writes as u64 >= cuts(), "unsynced writes must be lost: {lost:?}");
    // The sync also fails in other processes that have the file open, which may be about to end.
    assert!(failed.iter().all(|&code| code == SYNC_FAILED), "{failed:?}");
    assert!(failed.len() as u64 >= cuts() / 4, "a failed sync must end its process: {failed:?}");
    replicas.kill_all();
    drop(host);
}

/// Appends a row with a key. Returns the status, whether it was replayed, and the body.
async fn keyed(replica: &Replica, key: &str) -> (u16, bool, Value) {
    let response = replica.post(&json!({"data": key})).header("idempotency-key", key).send().await.expect("an answer");
    let replayed = response.headers().contains_key("idempotent-replayed");
    (response.status().as_u16(), replayed, response.json().await.expect("JSON"))
}

async fn is_ready(replica: &Replica) -> bool {
    let answer = replica.request(reqwest::Method::GET, "/readyz").send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

const SETTINGS: [(&str, &str); 1] = [("ROWLOCK_CSV_HEADER", HEADER)];

#[tokio::test(flavor = "multi_thread")]
async fn failed_sync_or_write_ends_process_unacknowledged() {
    for seed in 0..12 {
        let Some((bench, mut host)) = Host::start(On::Embedded, seed) else { return };
        let mut replica = bench.replica(&SETTINGS);
        assert_eq!(keyed(&replica, "before").await.0, 201);
        let after_commit = seed % 3 == 2;
        match seed % 3 {
            0 => host.disk.fail_syncs("rows.csv.journal", 1),
            1 => host.disk.fail_writes("rows.csv.journal", 1, rustix::io::Errno::IO),
            _ => host.disk.fail_writes("rows.csv", 1, rustix::io::Errno::IO),
        }
        let (status, _, problem) = keyed(&replica, "doubtful").await;
        assert_eq!((status, &problem["code"], &problem["outcome"]), (500, &json!("sync_failed"), &json!("unknown")));
        assert!(!is_ready(&replica).await, "a replica whose sync failed is not ready");
        assert_eq!(replica.end().code(), Some(SYNC_FAILED), "{}", replica.log());
        assert!(replica.log().contains("cannot know what the file holds"), "{}", replica.log());
        if seed % 2 == 1 {
            host.lose_power();
        }
        let report = bench.run(&["check", "--json"], &SETTINGS);
        let report: Value = serde_json::from_slice(&report.stdout).expect("a report");
        // The failed-sync flag is not synced: a power cut may remove it, together with the data in doubt.
        assert!(seed % 2 == 1 || report["journal"]["state"] == "in_doubt", "{report}");
        let next = bench.replica(&SETTINGS);
        let (status, replayed, ack) = keyed(&next, "doubtful").await;
        assert_eq!(status, 201, "{ack}");
        assert!(replayed || !after_commit, "a committed row stays");
        assert!(keyed(&next, "before").await.1);
        let keys: Vec<_> = bench.rows().iter().map(|row| row["key"].clone()).collect();
        assert_eq!(keys, ["before", "doubtful"], "seed {seed}");
    }
}

/// As a signal does while a call waits for its volume.
#[tokio::test(flavor = "multi_thread")]
async fn interrupted_write_is_made_again() {
    for file in ["rows.csv", "rows.csv.journal"] {
        let Some((bench, host)) = Host::start(On::Embedded, 13) else { return };
        let replica = bench.replica(&SETTINGS);
        for key in ["one", "two"] {
            let before = host.disk.writes_failed();
            host.disk.fail_writes(file, 3, rustix::io::Errno::INTR);
            assert_eq!(keyed(&replica, key).await.0, 201, "{file}: {}", replica.log());
            assert_eq!(host.disk.writes_failed(), before + 3, "{file}");
        }
        let keys: Vec<_> = bench.rows().iter().map(|row| row["key"].clone()).collect();
        assert_eq!(keys, ["one", "two"], "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_checkpoint_sync_ends_process_and_loses_no_row() {
    for file in ["rows.csv", "rows.csv.keys"] {
        let Some((bench, mut host)) = Host::start(On::Embedded, 7) else { return };
        let mut replica = bench.replica(&SETTINGS);
        host.disk.fail_syncs(file, 1);
        for key in ["one", "two", "three"] {
            assert_eq!(keyed(&replica, key).await.0, 201);
        }
        // The checkpoint begins after a second without rows.
        assert_eq!(replica.end().code(), Some(SYNC_FAILED), "{}", replica.log());
        host.lose_power();
        let next = bench.replica(&SETTINGS);
        for key in ["one", "two", "three"] {
            assert!(keyed(&next, key).await.1, "{key}");
        }
        assert_eq!(bench.rows().len(), 3);
    }
}

#[test]
fn failed_sync_sets_exit_code_of_command() {
    let Some((bench, host)) = Host::start(On::Embedded, 3) else { return };
    assert!(bench.run(&["append", "--data", "one"], &SETTINGS).status.success());
    // The first sync of the journal is that of the first refresh.
    host.disk.fail_syncs("rows.csv.journal", u32::MAX);
    let output = bench.run(&["append", "--data", "two"], &SETTINGS);
    assert_eq!(output.status.code(), Some(SYNC_FAILED), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn short_writes_are_continued() {
    let Some((bench, host)) = Host::start(On::Redis, 5) else { return };
    host.disk.short_writes(true);
    let mut replicas = Replicas::on(bench);
    let load = Load::start(CLIENTS, &replicas.addresses);
    until("rows are served", async || load.acked() >= 300).await;
    let all = load.end().await;
    verify(&replicas.bench.csv, &all);
    replicas.kill_all();
    drop(host);
}

/// On a file system that can reserve space, and on one that can't.
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_before_or_after_commit_point_leaves_no_rows() {
    for without_fallocate in [false, true] {
        let Some((bench, host)) = Host::start(On::Embedded, 9) else { return };
        host.disk.without_fallocate(without_fallocate);
        let replica = bench.replica(&SETTINGS);
        assert_eq!(keyed(&replica, "before").await.0, 201);
        let used = |name: &str| host.disk.read(name).map_or(0, |content| content.len().next_multiple_of(4096) as u64);
        let used_bytes = host.disk.names().iter().map(|name| used(name)).sum::<u64>();
        // Space reserved in advance stays with the file: only rows beyond it find the disk full.
        let (row, reserved) = ("x".repeat(60_000), if without_fallocate { 0 } else { 4 << 20 });
        host.disk.capacity(Some(used_bytes + reserved));
        let mut written = 0;
        // Without the headers, which a checkpoint may write at any time.
        let journal = || host.disk.read("rows.csv.journal").map(|journal| journal[3 * 4096..].to_vec());
        let (problem, before) = loop {
            let before = journal();
            let (status, body) = replica.append(json!({"data": row})).await;
            if status != 201 {
                break ((status, body), before);
            }
            written += 1;
            assert!(written < 100, "the disk never fills");
        };
        let expected = (507, &json!("disk_full"), &json!("not_written"));
        assert_eq!((problem.0, &problem.1["code"], &problem.1["outcome"]), expected);
        assert_eq!(bench.rows().len(), 1 + written, "half a row was left behind");
        assert!(without_fallocate || journal() == before, "a record was written without space for its rows");
        host.disk.capacity(None);
        assert_eq!(replica.append(json!({"data": row})).await.0, 201);
        assert!(keyed(&replica, "before").await.1);
        assert_eq!(bench.rows().len(), 2 + written);
        let check = bench.run(&["check"], &SETTINGS);
        assert_eq!(check.status.code(), Some(0), "{check:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_volume_refuses_rows_until_writable() {
    for on in [On::Redis, On::Embedded] {
        let Some((bench, host)) = Host::start(on, 11) else { return };
        // The embedded lock is on that volume too, and the append waits for it.
        let replica = bench.replica(&[SETTINGS[0], ("ROWLOCK_WAIT_TIMEOUT", "200ms")]);
        assert_eq!(keyed(&replica, "before").await.0, 201);
        // A checkpoint fails too, and must not end the process.
        host.disk.read_only(true);
        let refused_for = Instant::now();
        while refused_for.elapsed() < Duration::from_secs(2) {
            let (status, _, problem) = keyed(&replica, "refused").await;
            assert_eq!(
                (status, &problem["code"], &problem["outcome"]),
                (500, &json!("internal"), &json!("not_written"))
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(replica.log().contains("Read-only file system"), "{}", replica.log());
        let ready = async || answer(replica.request(Method::GET, "/readyz")).await.0 == 200;
        assert!(!ready().await, "rows are refused");
        host.disk.read_only(false);
        until("it is ready", ready).await;
        until("rows are served again", async || keyed(&replica, "refused").await.0 == 201).await;
        assert!(keyed(&replica, "before").await.1);
        assert_eq!(bench.rows().len(), 2);
    }
}
