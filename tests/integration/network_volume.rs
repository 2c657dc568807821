//! Replicas that take their volume for NFS: what several processes on one host can show of it. `tests/hosts` has real hosts.

use std::sync::Arc;

use crate::{
    concurrent_appends::every_line_stands_exactly_once,
    support::{Bench, On},
    volumes::with_mounts,
};

const NFS: &str = "nfs4 nas:/export rw,vers=4.2,hard";

/// Replicas on Redis, and the setting that makes them take their volume for NFS.
fn bench() -> (Bench, String) {
    let bench = Bench::new(On::Redis);
    let library = with_mounts(&bench, NFS);
    (bench, library)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_on_nfs_write_each_line_once() {
    let (bench, library) = bench();
    every_line_stands_exactly_once(bench, &[("LD_PRELOAD", &library)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_seen_by_other_replicas_and_check_at_once() {
    let (bench, library) = bench();
    let settings = [("LD_PRELOAD", &*library)];
    let replicas = [bench.replica(&settings), bench.replica(&settings)];
    for number in 0..20 {
        let text = format!("row {number}");
        replicas[number % 2].append_text(&text).await;
        for replica in &replicas {
            let page = replica.get("/rows?last=1", &[]).await.text().await.expect("text");
            assert!(page.contains(&text), "{text} is missing: {page}");
        }
    }
    let output = bench.run(&["check"], &settings);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let names = std::fs::read_dir(bench.folder()).expect("readable").map(|entry| entry.expect("readable").file_name());
    assert!(!names.into_iter().any(|name| name.to_string_lossy().ends_with(".torn")), "nothing is quarantined");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_replica_gets_its_turn_beside_a_busy_one() {
    let (bench, library) = bench();
    let settings = [("LD_PRELOAD", &*library)];
    let (busy, other) = (Arc::new(bench.replica(&settings)), bench.replica(&settings));
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let busy = Arc::clone(&busy);
            tokio::spawn(async move {
                loop {
                    busy.append_text("busy").await;
                }
            })
        })
        .collect();
    for _ in 0..20 {
        other.append_text("its turn").await;
    }
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    let log = busy.log() + &other.log();
    assert!(!log.contains("a batch was not written"), "nobody waits for the OS lock of an idle replica: {log}");
}

#[tokio::test]
async fn lone_clients_in_turns_do_not_wait_for_the_os_lock() {
    let (bench, library) = bench();
    let settings = [("LD_PRELOAD", &*library)];
    let replicas = [bench.replica(&settings), bench.replica(&settings)];
    for number in 0..200 {
        replicas[number % 2].append_text("mine").await;
    }
    for replica in &replicas {
        assert!(!replica.log().contains("a batch was not written"), "{}", replica.log());
    }
    let tokens = bench.tokens();
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]), "each row has a token of its own: {tokens:?}");
}
