//! A replica is killed or stopped at each failpoint.

use std::time::Duration;

use crate::{
    failpoints::{APPEND, CHECKPOINT, REBUILD},
    load::{Load, verify},
    replicas::{LOCK_TTL_MS, Replicas},
    support::until,
};

/// Points at which a stopped process does not hold the OS lock, so that the others must continue.
const OUTSIDE_OS_LOCK: [&str; 3] = ["lock_granted", "answer_due", "answered"];
const CLIENTS: usize = 12;

fn rounds(default: u32) -> u32 {
    std::env::var("ROWLOCK_ROUNDS").ok().map_or(default, |rounds| rounds.parse().expect("a number of rounds"))
}

async fn killed_at(points: &[&str]) {
    let mut replicas = Replicas::start();
    let load = Load::start(CLIENTS, &replicas.addresses);
    for point in points {
        for round in 0..rounds(20) {
            replicas.arm(point, "KILL");
            let index = replicas.hit(point).await;
            replicas.replace_killed(index);
            if round % 5 == 4 {
                // The next start repairs the file, since no running process knows its state.
                replicas.kill_all();
                replicas.start_all();
            }
            let before = load.acked();
            until("rows are served again", async || load.acked() > before).await;
        }
    }
    let all = load.end().await;
    verify(&replicas.bench.csv, &all);
}

async fn stopped_at(points: &[&str]) {
    let replicas = Replicas::start();
    let load = Load::start(CLIENTS, &replicas.addresses);
    for point in points {
        for _ in 0..rounds(5) {
            replicas.arm(point, "STOP");
            let index = replicas.hit(point).await;
            let before = load.acked();
            tokio::time::sleep(Duration::from_millis(3 * LOCK_TTL_MS)).await;
            assert!(
                !OUTSIDE_OS_LOCK.contains(point) || load.acked() > before,
                "no replica continued while one was stopped at {point}"
            );
            replicas.all[index].signal("CONT");
        }
    }
    let all = load.end().await;
    verify(&replicas.bench.csv, &all);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_during_append_keeps_each_key_once() {
    killed_at(&APPEND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_during_checkpoint_keeps_each_key_once() {
    killed_at(&CHECKPOINT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_during_rebuild_keeps_each_key_once() {
    killed_at(&REBUILD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_during_append_keeps_each_key_once() {
    stopped_at(&APPEND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_during_checkpoint_or_rebuild_keeps_each_key_once() {
    stopped_at(&CHECKPOINT).await;
    stopped_at(&REBUILD).await;
}
