//! What the connection pools cost: commands per row, and connections.

use std::time::Duration;

use serde_json::json;

use crate::support::{Bench, On, Redis, Replica, answer, until, until_free};

/// How often clients have sent a command, or scripts have called it.
pub(crate) fn calls_of(command: &str, redis: &Redis) -> u64 {
    let (stats, name) = (redis.cli(&["info", "commandstats"]), format!("cmdstat_{command}:calls="));
    let calls = stats.lines().find_map(|line| line.strip_prefix(&name)).and_then(|rest| rest.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

/// The commands that a checkout from the pool sends.
fn checkouts(redis: &Redis) -> u64 {
    calls_of("ping", redis).max(calls_of("unwatch", redis))
}

async fn metric(replica: &Replica, name: &str) -> u64 {
    let text = replica.get("/metrics", &[]).await.text().await.expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(name)).expect("the metric");
    value.trim().parse().expect("a number")
}

/// Starts a replica, and waits until its pools have the connections that they use.
async fn warm_replica(bench: &Bench) -> Replica {
    let replica = bench.replica(&[]);
    for _ in 0..5 {
        replica.append_text("first").await;
    }
    until_free(bench).await;
    bench.redis().cli(&["config", "resetstat"]);
    replica
}

/// A checkout happens once a renewal, a status call or an idle second, whatever the number of rows.
fn assert_few_checkouts(redis: &Redis, rows: u64, began: std::time::Instant) {
    let (checkouts, most) = (checkouts(redis), 10 + 3 * began.elapsed().as_secs());
    assert!(checkouts <= most && checkouts < rows / 10, "{checkouts} checkouts for {rows} rows");
}

#[tokio::test]
async fn sequential_row_costs_at_most_two_calls_and_no_ping() {
    let bench = Bench::new(On::Redis);
    let replica = warm_replica(&bench).await;
    let (rows, began) = (300, std::time::Instant::now());
    for _ in 0..rows {
        replica.append_text("sequential").await;
    }
    until_free(&bench).await;
    // An acquire and a release each, or a release that acquires the lock again at once. Renewals and probes are scripts, too.
    let (scripts, others) = (calls_of("evalsha", bench.redis()), 10 + 3 * began.elapsed().as_secs());
    assert!((rows..=2 * rows + others).contains(&scripts), "{scripts} calls for {rows} rows");
    assert_few_checkouts(bench.redis(), rows, began);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_under_load_costs_no_ping() {
    let bench = Bench::new(On::Redis);
    let replica = warm_replica(&bench).await;
    let opened = metric(&replica, "rowlock_redis_connections_opened_total").await;
    let began = std::time::Instant::now();
    let clients = (0..32).map(|_| {
        let request = replica.post(&json!({"data": "load"}));
        tokio::spawn(async move {
            for _ in 0..30 {
                assert_eq!(answer(request.try_clone().expect("no stream")).await.0, 201);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no panic");
    }
    until_free(&bench).await;
    let rows = 32 * 30;
    let scripts = calls_of("evalsha", bench.redis());
    assert!(scripts < 2 * rows, "{scripts} calls for {rows} rows that share leases");
    assert_few_checkouts(bench.redis(), rows, began);
    let opened_later = metric(&replica, "rowlock_redis_connections_opened_total").await;
    assert!(opened_later <= opened + 2, "{} connections opened under load", opened_later - opened);
}

#[tokio::test]
async fn idle_committer_gives_its_connection_back() {
    let bench = Bench::new(On::Redis);
    let replica = warm_replica(&bench).await;
    // The first append after an idle second takes the connection out again.
    until("a checkout after an idle time", async || {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let before = calls_of("unwatch", bench.redis());
        replica.append_text("after idle").await;
        calls_of("unwatch", bench.redis()) > before
    })
    .await;
    assert_eq!(metric(&replica, "rowlock_redis_connections_discarded_total").await, 0);
}

#[tokio::test]
async fn killed_connections_are_replaced_and_counted() {
    let bench = Bench::new(On::Redis);
    let replica = warm_replica(&bench).await;
    let opened = metric(&replica, "rowlock_redis_connections_opened_total").await;
    bench.redis().cli(&["client", "kill", "type", "normal"]);
    replica.append_text("after").await;
    assert!(metric(&replica, "rowlock_redis_connections_opened_total").await > opened);
    assert!(metric(&replica, "rowlock_redis_connections_discarded_total").await >= 1);
}
