//! The lock's queue: order of arrival, hand-overs and notifications.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rowlock::{
    api::lock_status::LockState,
    lock::{self, Lock, Reacquire, Reacquired, Released},
    progress::Progress,
};
use serde_json::json;
use tokio::join;

use crate::{
    redis_connections::calls_of,
    support::{Bench, LOCK_KEY, On, QUEUE_KEY, Redis, answer, until, until_free, until_held},
};

fn lock_of(redis: &Redis, replica: &str) -> Lock {
    let (replica, ttl) = (replica.to_owned(), Duration::from_secs(30));
    let options = lock::Options {
        replica,
        ttl,
        tls: lock::TlsFiles::default(),
        meter: Arc::default(),
        progress: Progress::default(),
    };
    Lock::redis(&redis.url().to_owned().into(), LOCK_KEY, options).expect("an address")
}

#[tokio::test]
async fn release_that_requeues_waits_behind_others_without_a_poll() {
    let redis = Redis::start(&[]);
    let [first, second] = ["a", "b"].map(|replica| Arc::new(lock_of(&redis, replica)));
    let mut calls_of_turns = Vec::new();
    for _ in 0..20 {
        let lease = first.acquire(|| true).await.expect("the lock");
        let waiting = tokio::spawn({
            let second = Arc::clone(&second);
            async move { second.acquire(|| true).await.expect("the lock") }
        });
        while first.status().await.is_none_or(|status| status.waiters.is_empty()) {}
        let (released, reacquired) = lease.release_and_requeue(Reacquire::IfContended).await;
        assert_eq!(released, Released::HandedOver("b".to_owned()));
        let Reacquired::Queued(ticket) = reacquired else { panic!("not queued") };
        let second_lease = waiting.await.expect("no panic");
        let waiters: Vec<_> =
            first.status().await.expect("reachable").waiters.into_iter().map(|it| it.replica).collect();
        assert_eq!(waiters, ["a"]);
        let before = calls_of("evalsha", &redis);
        assert_eq!(second_lease.release().await, Released::HandedOver("a".to_owned()));
        let lease = first.acquire_from(ticket, || true).await.expect("the lock");
        calls_of_turns.push(calls_of("evalsha", &redis) - before);
        // Nobody else waits: the lock is free.
        let (released, reacquired) = lease.release_and_requeue(Reacquire::IfContended).await;
        assert!(released == Released::Free && matches!(reacquired, Reacquired::No));
        assert_eq!(first.status().await.map(|status| status.state), Some(LockState::Free));
    }
    calls_of_turns.sort_unstable();
    // The release only, which notifies the waiter. A notification that comes late, or before the listener is connected, costs a poll.
    assert_eq!(calls_of_turns[10], 1, "{calls_of_turns:?}");
}

#[tokio::test]
async fn contended_lease_is_not_kept_for_another_batch() {
    let redis = Redis::start(&[]);
    let [holder, other] = ["a", "b"].map(|replica| lock_of(&redis, replica));
    // Until its listener is connected.
    let lease = loop {
        let lease = holder.acquire(|| true).await.expect("the lock");
        if lease.may_keep().await {
            break lease;
        }
        lease.release().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let waiting = tokio::spawn(async move { other.acquire(|| true).await });
    while holder.status().await.is_none_or(|status| status.waiters.is_empty()) {}
    assert!(!lease.may_keep().await, "the holder was notified");
    lease.release().await;
    assert!(waiting.await.expect("no panic").is_some());
}

#[tokio::test]
async fn waiters_are_served_in_order_of_arrival() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 4].map(|()| bench.replica(&[]));
    bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
    let mut waiting = Vec::new();
    for (at, replica) in replicas.iter().enumerate() {
        waiting.push(tokio::spawn(answer(replica.post(&json!({"data": at.to_string()})))));
        until("the row waits for the lock", async || bench.redis().cli(&["llen", QUEUE_KEY]) == (at + 1).to_string())
            .await;
    }
    bench.redis().cli(&["del", LOCK_KEY]);
    for request in waiting {
        assert_eq!(request.await.expect("no panic").0, 201);
    }
    assert_eq!(bench.rows().iter().map(|row| row["data"].as_str()).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn deleted_foreign_lock_is_acquired_at_the_next_poll() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    let mut gaps = Vec::new();
    for _ in 0..5 {
        until_free(&bench).await;
        assert_eq!(bench.redis().cli(&["set", LOCK_KEY, "foreign", "nx", "px", "60000"]), "OK");
        let deleting = async {
            until("the row waits for the lock", async || bench.redis().cli(&["llen", QUEUE_KEY]) == "1").await;
            bench.redis().cli(&["del", LOCK_KEY]);
            Instant::now()
        };
        let (deleted, acquired) = join!(deleting, async {
            replica.append_text("next").await;
            Instant::now()
        });
        gaps.push(acquired.saturating_duration_since(deleted));
    }
    gaps.sort();
    assert!(gaps[2] < Duration::from_secs(1), "waiters poll every 250 ms: {gaps:?}");
}

#[tokio::test]
async fn hand_over_notifies_only_the_next_waiter() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 5].map(|()| bench.replica(&[]));
    bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
    let posts = replicas.iter().map(|replica| replica.append_text("x"));
    let freeing = async {
        until("all wait", async || bench.redis().cli(&["llen", QUEUE_KEY]) == "5").await;
        bench.redis().cli(&["del", LOCK_KEY]);
    };
    join!(futures_util::future::join_all(posts), freeing);
    let published = calls_of("publish", bench.redis());
    // One for each hand-over. The first waiter may have found the free lock by a poll.
    assert!((4..=5).contains(&published), "{published} notifications for five waiters");
}

#[tokio::test]
async fn dead_waiter_is_skipped_and_its_unused_grant_moves_on() {
    let bench = Bench::new(On::Redis);
    let settings = [("ROWLOCK_LOCK_TTL", "60s")];
    let (holder, mut dead, last) = (bench.replica(&settings), bench.replica(&settings), bench.replica(&settings));
    for sleep in [2.0, 0.8] {
        until_free(&bench).await;
        let holding = tokio::spawn(answer(holder.post(&json!({"data": "holds", "sleep": sleep}))));
        until_held(&bench).await;
        let dying = tokio::spawn(dead.post(&json!({"data": "dies"})).send());
        until("the row waits for the lock", async || bench.redis().cli(&["llen", QUEUE_KEY]) == "1").await;
        // After the long sleep the waiter counts as dead at its turn. After the short one it is granted the lock, and never uses it.
        dead.signal("STOP");
        let waiting = tokio::spawn(answer(last.post(&json!({"data": "lives"}))));
        let (status, ack) = waiting.await.expect("no panic");
        assert_eq!(status, 201);
        assert!(ack["waited_ms"].as_u64() < Some(10_000), "{ack}");
        assert_eq!(holding.await.expect("no panic").0, 201);
        dying.abort();
        dead.signal("KILL");
        dead = bench.replica(&settings);
    }
    assert_eq!(
        bench.rows().iter().map(|row| row["data"].as_str()).collect::<Vec<_>>(),
        ["holds", "lives", "holds", "lives"]
    );
}

#[tokio::test]
async fn refused_row_leaves_no_entry_in_the_lock_queue() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "200ms")]);
    bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
    assert_eq!(replica.append(json!({"data": "x"})).await.0, 503);
    until("the queue is empty", async || bench.redis().cli(&["exists", QUEUE_KEY]) == "0").await;
}

#[tokio::test]
async fn waiter_without_notifications_is_served() {
    let bench = Bench::new(On::Redis);
    let (first, second) = (bench.replica(&[]), bench.replica(&[]));
    let holding = tokio::spawn(answer(first.post(&json!({"data": "holds", "sleep": 1}))));
    until_held(&bench).await;
    let waiting = tokio::spawn(answer(second.post(&json!({"data": "waits"}))));
    until("the row waits for the lock", async || bench.redis().cli(&["llen", QUEUE_KEY]) == "1").await;
    bench.redis().cli(&["client", "kill", "type", "pubsub"]);
    assert_eq!(waiting.await.expect("no panic").0, 201);
    assert_eq!(holding.await.expect("no panic").0, 201);
}

#[tokio::test]
async fn release_hands_over_without_a_poll() {
    let bench = Bench::new(On::Redis);
    let (first, second) = (bench.replica(&[]), bench.replica(&[]));
    let mut gaps = Vec::new();
    for _ in 0..9 {
        until_free(&bench).await;
        let holding = async { (first.append(json!({"data": "holds", "sleep": 0.4})).await.0, Instant::now()) };
        let waiting = async {
            until_held(&bench).await;
            (second.append_text("waits").await, Instant::now())
        };
        let ((status, released), (_, granted)) = join!(holding, waiting);
        assert_eq!(status, 201);
        gaps.push(granted.duration_since(released));
    }
    gaps.sort();
    // With polls every 250 ms alone, the median gap would be half of that.
    assert!(gaps[4] < Duration::from_millis(80), "{gaps:?}");
}
