//! Mutual exclusion: sleeping, abandoned, lost and unreachable locks, on both backends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::join;

use crate::{
    redis_connections::calls_of,
    support::{Bench, LOCK_KEY, On, QUEUE_KEY, Replica, answer, until, until_free, until_held},
};

async fn check_that_a_sleeping_row_holds_the_lock(on: On) {
    let bench = Bench::new(on);
    let (first, second) = (bench.replica(&[]), bench.replica(&[]));
    let sleeping = async { (first.append(json!({"data": "slow", "sleep": 2})).await, Instant::now()) };
    let waiting = async {
        until_held(&bench).await;
        (second.append_text("quick").await, Instant::now())
    };
    let (((status, slow), slow_at), (quick, quick_at)) = join!(sleeping, waiting);
    assert_eq!(status, 201, "{slow}");
    assert!(quick_at > slow_at, "the waiter answered first");
    assert!(slow["held_ms"].as_u64() >= Some(2000), "{slow}");
    assert!(slow["token"].as_u64() < quick["token"].as_u64());
    assert_eq!(bench.rows().iter().map(|row| row["data"].as_str()).collect::<Vec<_>>(), ["slow", "quick"]);
}

#[tokio::test]
async fn sleeping_row_holds_the_redis_lock() {
    check_that_a_sleeping_row_holds_the_lock(On::Redis).await;
}

#[tokio::test]
async fn sleeping_row_holds_the_embedded_lock() {
    check_that_a_sleeping_row_holds_the_lock(On::Embedded).await;
}

async fn check_that_an_abandoned_lock_stays_held(on: On) {
    let bench = Bench::new(on);
    let ttl = [("ROWLOCK_LOCK_TTL", "1500ms")];
    let (first, second) = (bench.replica(&ttl), bench.replica(&ttl));
    let (status, ack) = first.append(json!({"data": "crash", "skip_release": true})).await;
    let answered = Instant::now();
    assert_eq!((status, &ack["released"]), (201, &json!(false)), "{ack}");
    // The replica that abandoned it waits, too.
    let (own, other) = join!(first.append_text("own"), second.append_text("other"));
    assert!(answered.elapsed() >= Duration::from_millis(1450), "the lock was free after {:?}", answered.elapsed());
    for ack in [own, other] {
        assert!(ack["waited_ms"].as_u64() >= Some(1400), "{ack}");
        assert_eq!(ack["released"], true);
    }
    assert_eq!(bench.rows().len(), 3);
}

#[tokio::test]
async fn skip_release_leaves_the_lock_to_expire_on_redis() {
    check_that_an_abandoned_lock_stays_held(On::Redis).await;
}

#[tokio::test]
async fn skip_release_leaves_the_embedded_lock_to_expire() {
    check_that_an_abandoned_lock_stays_held(On::Embedded).await;
}

#[tokio::test]
async fn sleep_longer_than_the_time_to_live_keeps_the_lock() {
    let bench = Bench::new(On::Redis);
    let ttl = [("ROWLOCK_LOCK_TTL", "300ms")];
    let (first, second) = (bench.replica(&ttl), bench.replica(&ttl));
    let sleeping = first.append(json!({"data": "slow", "sleep": 1.5}));
    let waiting = async {
        until_held(&bench).await;
        second.append_text("quick").await
    };
    let ((status, slow), quick) = join!(sleeping, waiting);
    assert_eq!(status, 201, "{slow}");
    assert!(slow["token"].as_u64() < quick["token"].as_u64());
    assert_eq!(bench.rows().iter().map(|row| row["data"].as_str()).collect::<Vec<_>>(), ["slow", "quick"]);
}

#[tokio::test]
async fn a_lease_lost_during_sleep_writes_nothing() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_LOCK_TTL", "600ms")]);
    replica.append_text("before").await;
    let before = bench.content();
    until_free(&bench).await;
    // Repeated, because a batch whose lease is lost before the sleep begins is tried again under a new lease.
    let losing = async {
        loop {
            until_held(&bench).await;
            bench.redis().cli(&["del", LOCK_KEY]);
        }
    };
    let began = Instant::now();
    let (status, problem) = tokio::select! {
        answer = replica.append(json!({"data": "lost", "sleep": 20})) => answer,
        () = losing => unreachable!("the loop never ends"),
    };
    assert!(began.elapsed() < Duration::from_secs(15), "answered at once, not after the sleep");
    assert_eq!((status, &problem["code"], &problem["outcome"]), (503, &json!("lock_lost"), &json!("not_written")));
    assert_eq!(problem["retryable"], true);
    assert_eq!(bench.content(), before);
    replica.append_text("after").await;
}

#[tokio::test]
async fn killed_holders_lock_goes_to_the_next_waiter() {
    for on in [On::Redis, On::Embedded] {
        let bench = Bench::new(on);
        let ttl = [("ROWLOCK_LOCK_TTL", "1s")];
        let (mut first, second) = (bench.replica(&ttl), bench.replica(&ttl));
        let request = first.post(&json!({"data": "killed", "sleep": 30}));
        let sleeping = tokio::spawn(request.send());
        until_held(&bench).await;
        first.signal("KILL");
        first.end();
        assert!(sleeping.await.expect("no panic").is_err(), "a killed replica cannot answer");
        let killed = Instant::now();
        second.append_text("next").await;
        assert!(killed.elapsed() < Duration::from_secs(10), "handed over after {:?}", killed.elapsed());
        assert_eq!(bench.rows().len(), 1);
    }
}

#[tokio::test]
async fn foreign_lock_excludes_replicas_and_is_not_released() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "300ms")]);
    assert_eq!(bench.redis().cli(&["set", LOCK_KEY, "foreign", "NX", "PX", "60000"]), "OK");
    let (status, problem) = replica.append(json!({"data": "x"})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("wait_timeout")), "{problem}");
    assert_eq!(bench.redis().cli(&["get", LOCK_KEY]), "foreign");
    bench.redis().cli(&["del", LOCK_KEY]);
    replica.append_text("free").await;
    assert_eq!(bench.rows().len(), 1, "the refused row is not written later");
}

#[tokio::test]
async fn holder_releases_only_its_own_lease() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_LOCK_TTL", "20s")]);
    let stealing = async {
        until_held(&bench).await;
        bench.redis().cli(&["set", LOCK_KEY, "thief", "PX", "60000"]);
    };
    let (_, ()) = join!(replica.append(json!({"data": "robbed", "sleep": 0.3})), stealing);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.redis().cli(&["get", LOCK_KEY]), "thief");
}

#[tokio::test]
async fn waiting_rows_share_one_lease() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    let waiting = async {
        until_held(&bench).await;
        let requests: Vec<_> =
            (0..20).map(|n| tokio::spawn(answer(replica.post(&json!({"data": n.to_string()}))))).collect();
        let mut tokens = Vec::new();
        for request in requests {
            tokens.push(request.await.expect("no panic").1["token"].clone());
        }
        tokens
    };
    let (_, tokens) = join!(replica.append(json!({"data": "slow", "sleep": 2})), waiting);
    assert!(tokens.iter().all(|token| *token == json!(2)), "{tokens:?}");
}

#[tokio::test]
async fn redis_outage_is_reported_and_survived() {
    let mut bench = Bench::new(On::Redis);
    bench.redis.as_mut().expect("a Redis").stop();
    let replica = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "500ms"), ("ROWLOCK_LOCK_TTL", "500ms")]);
    for round in 0..2 {
        let began = Instant::now();
        let response = replica.post(&json!({"data": "away"})).send().await.expect("an answer");
        assert!(began.elapsed() < Duration::from_secs(5), "answered after {:?}", began.elapsed());
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        let problem: serde_json::Value = response.json().await.expect("JSON");
        assert_eq!(
            (&problem["code"], &problem["outcome"]),
            (&json!("redis_unavailable"), &json!("not_written")),
            "{problem}"
        );
        let ready = replica.request(reqwest::Method::GET, "/readyz?verbose").send().await.expect("an answer");
        assert_eq!(ready.status(), 200, "a shared Redis must not empty the load balancer");
        assert!(ready.text().await.expect("text").contains("[-] lock (redis): unreachable"));

        bench.redis.as_mut().expect("a Redis").restart();
        until("service is back", async || replica.append(json!({"data": "back"})).await.0 == 201).await;
        if round == 0 {
            bench.redis.as_mut().expect("a Redis").stop();
        }
    }
    assert!(bench.rows().iter().all(|row| row["data"] == "back"));
}

#[tokio::test]
async fn full_queue_refuses_new_rows() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_QUEUE_ROWS", "2"), ("ROWLOCK_WAIT_TIMEOUT", "20s")]);
    bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
    let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..10 {
        let (request, sender) = (replica.post(&json!({"data": "x"})), sender.clone());
        tokio::spawn(async move { sender.send(answer(request).await) });
    }
    for _ in 0..8 {
        let (status, problem) = answers.recv().await.expect("an answer");
        assert_eq!((status, &problem["code"], &problem["outcome"]), (503, &json!("queue_full"), &json!("not_written")));
    }
    bench.redis().cli(&["del", LOCK_KEY]);
    for _ in 0..2 {
        assert_eq!(answers.recv().await.expect("an answer").0, 201);
    }
    assert_eq!(bench.rows().len(), 2);
}

#[tokio::test]
async fn only_a_queued_request_is_dropped_when_cancelled() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    let taken = tokio::spawn(replica.post(&json!({"data": "taken", "sleep": 1})).send());
    until_held(&bench).await;
    let waiting = tokio::spawn(replica.post(&json!({"data": "waiting"})).send());
    tokio::time::sleep(Duration::from_millis(200)).await;
    taken.abort();
    waiting.abort();
    // Rows are written in order of arrival: after this one, both others are decided.
    replica.append_text("last").await;
    assert_eq!(bench.rows().iter().map(|row| row["data"].as_str()).collect::<Vec<_>>(), ["taken", "last"]);
}

#[tokio::test]
async fn shutdown_finishes_accepted_rows_and_frees_the_lock() {
    for signal in ["TERM", "INT"] {
        let bench = Bench::new(On::Redis);
        let mut replica = bench.replica(&[]);
        let sleeping = tokio::spawn(answer(replica.post(&json!({"data": "slow", "sleep": 1}))));
        until_held(&bench).await;
        replica.signal(signal);
        assert_eq!(sleeping.await.expect("no panic").0, 201);
        assert_eq!(replica.end().code(), Some(0), "{}", replica.log());
        assert_eq!(bench.redis().cli(&["exists", LOCK_KEY]), "0");
        assert_eq!(bench.rows().len(), 1);
    }
}

#[tokio::test]
async fn queued_rows_are_refused_when_the_grace_time_ends() {
    let bench = Bench::new(On::Redis);
    let mut replica = bench.replica(&[("ROWLOCK_GRACE", "300ms")]);
    bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
    let waiting = tokio::spawn(answer(replica.post(&json!({"data": "waits"}))));
    until("the row waits for the lock", async || bench.redis().cli(&["llen", QUEUE_KEY]) == "1").await;
    replica.signal("TERM");
    let (status, problem) = waiting.await.expect("no panic");
    assert_eq!((status, &problem["code"], &problem["outcome"]), (503, &json!("draining"), &json!("not_written")));
    assert_eq!(replica.end().code(), Some(0), "{}", replica.log());
    assert!(bench.rows().is_empty());
}

/// Eight clients that each send one row after another.
struct Load {
    done: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(replica: &Replica) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let client = || {
            let (done, request) = (Arc::clone(&done), replica.post(&json!({"data": "x"})));
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(answer(request.try_clone().expect("no stream")).await.0, 201);
                }
            })
        };
        let clients = std::iter::repeat_with(client).take(8).collect();
        Self { done, clients }
    }

    async fn end(self) {
        self.done.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("no panic");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_lock_goes_to_the_first_other_replica_that_waits() {
    let bench = Bench::new(On::Redis);
    let (busy, other) = (bench.replica(&[]), bench.replica(&[("ROWLOCK_REPLICA", "other")]));
    let load = Load::start(&busy);
    for _ in 0..30 {
        other.append_text("x").await;
    }
    load.end().await;
    let rows = bench.rows();
    let turns: Vec<usize> = rows.split(|row| row["replica"] == "other").map(<[_]>::len).skip(1).take(29).collect();
    let mut sorted = turns.clone();
    sorted.sort_unstable();
    // The current batch and one more, of at most eight rows each. (A debug build writes hardly more in the 50 ms that a lease may be
    // kept.)
    assert!(sorted[14] <= 32, "rows of the busy replica between the other's: {turns:?}");
    // It does keep the lock: rows share a token, and each grant has its own.
    let tokens: std::collections::HashSet<_> = rows.iter().map(|row| &row["token"]).collect();
    assert!(tokens.len() < rows.len(), "{} tokens for {} rows", tokens.len(), rows.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_between_busy_replicas_costs_one_call() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 3].map(|()| bench.replica(&[]));
    let load = replicas.each_ref().map(Load::start);
    until("enough rows", async || std::fs::metadata(&bench.csv).expect("a file").len() > 200_000).await;
    let tokens = bench.redis().cli(&["get", "{rowlock:rows.csv}:token"]).parse::<u64>().expect("a number");
    let calls = calls_of("evalsha", bench.redis());
    assert!(calls < tokens * 3 / 2, "{calls} calls for {tokens} tokens");
    for clients in load {
        clients.end().await;
    }
    until_free(&bench).await;
    until("nobody waits", async || bench.redis().cli(&["exists", QUEUE_KEY]) == "0").await;
}

#[tokio::test]
async fn sequential_rows_of_one_client_get_a_token_each() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    for token in 1..=200 {
        assert_eq!(replica.append_text("one after another").await["token"], json!(token));
    }
}

async fn check_equal_shares(names: &[&str]) {
    let bench = Bench::new(On::Redis);
    let replicas: Vec<_> = names.iter().map(|name| bench.replica(&[("ROWLOCK_REPLICA", name)])).collect();
    let load: Vec<_> = replicas.iter().map(Load::start).collect();
    let enough = 70_000 * names.len() as u64;
    until("enough rows", async || std::fs::metadata(&bench.csv).expect("a file").len() > enough).await;
    for clients in load {
        clients.end().await;
    }
    let rows = bench.rows();
    let share = |name: &&str| rows.iter().filter(|row| row["replica"] == *name).count() as f64;
    let shares: Vec<f64> = names.iter().map(share).collect();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    let jain = shares.iter().sum::<f64>().powi(2) / (shares.len() as f64 * squares);
    assert!(jain >= 0.99, "Jain's index {jain} of {shares:?}");
    // The lock was handed over often: no replica kept it for long.
    let mut turns: Vec<&str> = rows.iter().map(|row| row["replica"].as_str()).collect();
    turns.dedup();
    assert!(turns.len() > 20, "the lock was handed over only {} times", turns.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_under_load_get_equal_shares() {
    check_equal_shares(&["r1", "r2", "r3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_replicas_under_load_get_equal_shares() {
    check_equal_shares(&["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8"]).await;
}

#[tokio::test]
async fn a_short_outage_is_waited_out_and_a_long_one_fails_fast() {
    let mut bench = Bench::new(On::Redis);
    let wait = Duration::from_secs(1);
    let replica = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "1s")]);
    replica.append_text("before").await;
    bench.redis.as_mut().expect("a Redis").stop();
    let short = async {
        until("the outage is logged", async || replica.log().contains("the lock is unreachable")).await;
        bench.redis.as_mut().expect("a Redis").restart();
    };
    let (ack, ()) = join!(replica.append_text("waits it out"), short);
    assert_eq!(ack["token"], json!(2), "the counter was raised");

    bench.redis.as_mut().expect("a Redis").stop();
    let refused = async || {
        let (status, problem) = replica.append(json!({"data": "away"})).await;
        assert_eq!((status, &problem["code"]), (503, &json!("redis_unavailable")), "{problem}");
    };
    let began = Instant::now();
    refused().await;
    // The outage has lasted for as long as a row may wait: from now on, refusals take no time.
    until("it has lasted", async || began.elapsed() > wait + Duration::from_millis(200)).await;
    let began = Instant::now();
    for _ in 0..20 {
        refused().await;
    }
    assert!(began.elapsed() < 5 * wait, "twenty refusals took {:?}", began.elapsed());
    bench.redis.as_mut().expect("a Redis").restart();
    let back = Instant::now();
    until("service is back", async || replica.append(json!({"data": "back"})).await.0 == 201).await;
    assert!(back.elapsed() < Duration::from_secs(5), "back after {:?}", back.elapsed());
}

#[tokio::test]
async fn stopped_redis_is_waited_out() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 2].map(|()| bench.replica(&[("ROWLOCK_LOCK_TTL", "1s")]));
    replicas[0].append_text("before").await;
    bench.redis().signal("STOP");
    let still = async {
        until("the outage is logged", async || replicas[0].log().contains("the lock is unreachable")).await;
        bench.redis().signal("CONT");
    };
    let posts = replicas.iter().map(|replica| replica.append_text("meanwhile"));
    join!(futures_util::future::join_all(posts), still);
    assert_eq!(bench.rows().len(), 3);
}

#[tokio::test]
async fn foreign_pexpire_costs_a_sleeper_its_lease_but_no_row() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 2].map(|()| bench.replica(&[("ROWLOCK_LOCK_TTL", "60s")]));
    let sleeping = replicas[0].append(json!({"data": "sleeper", "sleep": 2}));
    let jumping = async {
        until_held(&bench).await;
        bench.redis().cli(&["pexpire", LOCK_KEY, "1"]);
        replicas[1].append_text("next").await
    };
    let ((status, problem), next) = join!(sleeping, jumping);
    assert_eq!((status, &problem["outcome"]), (503, &json!("not_written")), "its token is stale: {problem}");
    assert_eq!(bench.rows().len(), 1);
    // A lengthened time to live ends with the release.
    let lengthened = async {
        until_held(&bench).await;
        bench.redis().cli(&["pexpire", LOCK_KEY, "3600000"]);
        replicas[1].append_text("after").await
    };
    let ((status, _), after) = join!(replicas[0].append(json!({"data": "holder", "sleep": 1})), lengthened);
    assert_eq!(status, 201);
    assert!(after["token"].as_u64() > next["token"].as_u64());
}

/// The state after Redis's clock jumped ahead, a holder was killed, and the clock was set right.
#[tokio::test]
async fn dead_holders_lock_expires_after_a_clock_jump() {
    let bench = Bench::new(On::Redis);
    let killed = format!("killed/{}/200/7", "0".repeat(32));
    assert_eq!(bench.redis().cli(&["set", LOCK_KEY, &killed, "nx", "px", "3600000"]), "OK");
    let replica = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "10s")]);
    replica.append_text("one").await;
    // A foreign lock has no known bound: its time to live stays.
    until_free(&bench).await;
    assert_eq!(bench.redis().cli(&["set", LOCK_KEY, "foreign/200/7", "nx", "px", "3600000"]), "OK");
    let impatient = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "1500ms")]);
    let (status, problem) = impatient.append(json!({"data": "two"})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("wait_timeout")));
    assert!(bench.redis().cli(&["pttl", LOCK_KEY]).parse::<u64>().expect("a number") > 3_500_000);
}

#[tokio::test]
async fn lease_without_renewal_is_lost_and_ends_the_sleep() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_LOCK_TTL", "1s")]);
    let failing = async {
        until_held(&bench).await;
        bench.redis().cli(&["config", "set", "min-replicas-to-write", "1"]);
    };
    let began = Instant::now();
    let ((status, problem), ()) = join!(replica.append(json!({"data": "slow", "sleep": 25})), failing);
    assert_eq!((status, &problem["code"], &problem["outcome"]), (503, &json!("lock_lost"), &json!("not_written")));
    assert!(began.elapsed() < Duration::from_secs(15), "answered after {:?}", began.elapsed());
}

#[tokio::test]
async fn failed_renewals_do_not_lose_the_lock_before_it_expires() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_LOCK_TTL", "3s")]);
    let failing = async {
        until_held(&bench).await;
        // Redis refuses every script that writes, until this is undone.
        bench.redis().cli(&["config", "set", "min-replicas-to-write", "1"]);
        until("a renewal failed", async || replica.log().contains("Redis rejects this replica")).await;
        bench.redis().cli(&["config", "set", "min-replicas-to-write", "0"]);
    };
    let ((status, ack), ()) = join!(replica.append(json!({"data": "slow", "sleep": 4})), failing);
    assert_eq!(status, 201, "{ack}");
}
