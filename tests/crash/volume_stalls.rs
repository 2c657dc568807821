//! A volume that does not answer one of the replicas, as a server that is cut off from a host.

use std::{
    fs,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    disk::{Disk, Mounted, disk},
    load::HEADER,
    support::{Bench, LOCK_KEY, On, Replica, answer, until, until_held},
};

const TTL: Duration = Duration::from_secs(2);
const WAIT: Duration = Duration::from_secs(3);
/// For a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(3);

/// A bench whose CSV is on a disk that can leave calls unanswered. To be dropped in reverse order.
fn start(on: On) -> Option<(Bench, Mounted, Disk)> {
    let disk = disk(1)?;
    let mut bench = Bench::new(on);
    let at = bench.folder().join("disk");
    fs::create_dir(&at).expect("a folder");
    bench.csv = at.join("rows.csv");
    let mounted = disk.mount(&at);
    Some((bench, mounted, disk))
}

fn replica(bench: &Bench, name: &str, wait: &str, grace: &str) -> Replica {
    let settings = [
        ("ROWLOCK_REPLICA", name),
        ("ROWLOCK_CSV_HEADER", HEADER),
        ("ROWLOCK_LOCK_TTL", "2s"),
        ("ROWLOCK_WAIT_TIMEOUT", wait),
        ("ROWLOCK_GRACE", grace),
    ];
    bench.replica(&settings)
}

fn keyed(replica: &Replica, key: &'static str, sleep: f64) -> tokio::task::JoinHandle<(u16, Value)> {
    tokio::spawn(answer(replica.post(&json!({"data": key, "sleep": sleep})).header("Idempotency-Key", key)))
}

async fn status(replica: &Replica, path: &str) -> u16 {
    replica.get(path, &[]).await.status().as_u16()
}

async fn stuck_seconds(replica: &Replica) -> f64 {
    let metrics = replica.get("/metrics", &[]).await.text().await.expect("text");
    let line = metrics.lines().find_map(|line| line.strip_prefix("rowlock_storage_stuck_seconds "));
    line.expect("the metric").parse().expect("a number")
}

/// Lets the replica take the lock, and then leaves its calls unanswered: the write of this row hangs.
async fn stall_holder(bench: &Bench, disk: &Disk, replica: &Replica) -> tokio::task::JoinHandle<(u16, Value)> {
    let sleeps = keyed(replica, "held", 1.0);
    until_held(bench).await;
    // By then its token is recorded, and it sleeps.
    tokio::time::sleep(Duration::from_millis(500)).await;
    disk.stall(Some(replica.pid()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    sleeps
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_holder_lets_others_go_on_and_heals() {
    let Some((bench, _mounted, disk)) = start(On::Redis) else { return };
    // The other waits for longer than the lease of the holder can last.
    let (one, two) = (replica(&bench, "one", "3s", "30s"), replica(&bench, "two", "10s", "30s"));
    let arrived = Instant::now();
    let held = stall_holder(&bench, &disk, &one).await;
    let stalled = Instant::now();
    let (queued, other) = (keyed(&one, "queued", 0.0), keyed(&two, "other", 0.0));
    let rows = tokio::spawn(answer(one.request(Method::GET, "/rows")));
    until("the holder is not ready", async || status(&one, "/readyz").await == 503).await;
    assert_eq!((status(&one, "/livez").await, status(&two, "/readyz").await), (200, 200));
    let checks = one.get("/readyz?verbose", &[]).await.text().await.expect("text");
    assert!(checks.contains("[-] volume: no answer for"), "{checks}");
    assert!(stuck_seconds(&one).await >= 1.0);
    assert_eq!(stuck_seconds(&two).await, 0.0);

    let holder = || bench.redis().cli(&["get", LOCK_KEY]);
    until("the lock passes on", async || holder().starts_with("two/")).await;
    assert!(stalled.elapsed() < Duration::from_secs(1) + TTL + SLACK, "it took {:?}", stalled.elapsed());
    let (status_held, problem) = held.await.expect("no panic");
    assert!(arrived.elapsed() < WAIT + SLACK, "it was answered after {:?}", arrived.elapsed());
    assert_eq!((status_held, &problem["code"], &problem["outcome"]), (500, &json!("internal"), &json!("unknown")));
    for refused in [queued, rows] {
        let (status, problem) = refused.await.expect("no panic");
        assert!(stalled.elapsed() < WAIT + SLACK, "it was refused after {:?}", stalled.elapsed());
        assert_eq!(
            (status, &problem["code"], &problem["outcome"]),
            (503, &json!("file_busy"), &json!("not_written")),
            "{problem}"
        );
    }
    // The stalled process keeps the OS lock of this disk; a server would give it to the other.
    assert!([201, 503].contains(&other.await.expect("no panic").0));
    assert!(one.log().contains("a storage call does not return"), "{}", one.log());

    disk.stall(None);
    until("it is ready again", async || status(&one, "/readyz").await == 200).await;
    assert_eq!(stuck_seconds(&one).await, 0.0);
    until("the log says so", async || one.log().contains("the volume answers again")).await;
    for (replica, key) in [(&one, "held"), (&two, "held"), (&one, "queued"), (&two, "other")] {
        let sleep = if key == "held" { 1.0 } else { 0.0 };
        until("each key is written", async || keyed(replica, key, sleep).await.expect("no panic").0 == 201).await;
    }
    let mut written: Vec<_> = bench.rows().iter().map(|row| row["key"].clone()).collect();
    written.sort();
    assert_eq!(written, ["held", "other", "queued"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stuck_writer_ends_within_its_grace_time() {
    let Some((bench, _mounted, disk)) = start(On::Redis) else { return };
    let mut one = replica(&bench, "one", "3s", "3s");
    let held = stall_holder(&bench, &disk, &one).await;
    let signalled = Instant::now();
    one.signal("TERM");
    assert_eq!(one.end().code(), Some(1), "{}", one.log());
    // Two more seconds are for the last answers.
    assert!(signalled.elapsed() < Duration::from_secs(5) + SLACK, "it took {:?}", signalled.elapsed());
    assert!(one.log().contains("the committer has not ended"), "{}", one.log());
    let (status, problem) = held.await.expect("answered while it drained");
    assert_eq!((status, &problem["code"], &problem["outcome"]), (500, &json!("internal"), &json!("unknown")));
    disk.stall(None);
    let two = replica(&bench, "two", "3s", "30s");
    until("the key is written", async || keyed(&two, "held", 0.0).await.expect("no panic").0 == 201).await;
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_replica_notices_a_stalled_volume() {
    let Some((bench, _mounted, disk)) = start(On::Embedded) else { return };
    let mut one = replica(&bench, "one", "3s", "1s");
    one.append_text("before").await;
    disk.stall(Some(one.pid()));
    let stalled = Instant::now();
    until("it is not ready", async || status(&one, "/readyz").await == 503).await;
    assert!(stalled.elapsed() < Duration::from_secs(3) + SLACK, "it took {:?}", stalled.elapsed());
    // More calls than the runtime has threads: none of them may block one.
    for _ in 0..3 {
        assert_eq!(status(&one, "/lock").await, 503);
        assert!(stuck_seconds(&one).await >= 1.0);
        assert_eq!(status(&one, "/livez").await, 200);
    }
    one.signal("TERM");
    assert_eq!(one.end().code(), Some(0), "{}", one.log());
}
