//! A replica that is killed or stopped at each point of a row's way.

use std::time::Duration;

use crate::{
    load::{Load, verify},
    named_points::{APPEND, CHECKPOINT, REBUILD},
    replicas::{Fleet, LOCK_TTL_MS},
    support::until,
};

/// Where a stopped process keeps no OS lock, so that the others must go on without it.
const UNGUARDED: [&str; 3] = ["lock_granted", "answer_due", "answered"];
const CLIENTS: usize = 12;

fn rounds(default: u32) -> u32 {
    std::env::var("ROWLOCK_ROUNDS").ok().map_or(default, |rounds| rounds.parse().expect("a number of rounds"))
}

async fn killed_at(points: &[&str]) {
    let mut fleet = Fleet::start();
    let load = Load::start(CLIENTS, &fleet.addresses);
    for point in points {
        for round in 0..rounds(20) {
            fleet.arm(point, "KILL");
            let place = fleet.hit(point).await;
            fleet.replace_killed(place);
            if round % 5 == 4 {
                // Nobody is left who knows: the next start makes the file whole.
                fleet.kill_all();
                fleet.start_all();
            }
            let before = load.acked();
            until("rows are served again", async || load.acked() > before).await;
        }
    }
    let all = load.end().await;
    verify(&fleet.bench.csv, &all);
}

async fn stopped_at(points: &[&str]) {
    let fleet = Fleet::start();
    let load = Load::start(CLIENTS, &fleet.addresses);
    for point in points {
        for _ in 0..rounds(5) {
            fleet.arm(point, "STOP");
            let place = fleet.hit(point).await;
            let before = load.acked();
            tokio::time::sleep(Duration::from_millis(3 * LOCK_TTL_MS)).await;
            assert!(
                !UNGUARDED.contains(point) || load.acked() > before,
                "nobody went on while one was stopped at {point}"
            );
            fleet.replicas[place].signal("CONT");
        }
    }
    let all = load.end().await;
    verify(&fleet.bench.csv, &all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_at_any_point_of_an_append_leaves_every_key_exactly_once() {
    killed_at(&APPEND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_at_any_point_of_a_checkpoint_leaves_every_key_exactly_once() {
    killed_at(&CHECKPOINT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_at_any_point_of_a_rebuild_leaves_every_key_exactly_once() {
    killed_at(&REBUILD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stopped_past_its_time_at_any_point_of_an_append_leaves_every_key_exactly_once() {
    stopped_at(&APPEND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_stopped_past_its_time_at_any_point_of_a_checkpoint_or_rebuild_leaves_every_key_exactly_once() {
    stopped_at(&CHECKPOINT).await;
    stopped_at(&REBUILD).await;
}
