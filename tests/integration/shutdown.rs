//! Shutdown: what a replica does after SIGTERM, alone and behind a load balancer.

use std::{
    fs,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Bench, LOCK_KEY, On, QUEUE_KEY, Replica, answer, free_port, until, until_held};

#[tokio::test]
async fn draining_replica_is_not_ready_and_serves_for_the_delay() {
    let bench = Bench::new(On::Redis);
    let mut replica = bench.replica(&[("ROWLOCK_DRAIN_DELAY", "3s")]);
    let began = Instant::now();
    replica.signal("TERM");
    until("it is not ready", async || answer(replica.request(Method::GET, "/readyz")).await.0 == 503).await;
    let response = replica.post(&json!({"data": "late"})).send().await.expect("an answer");
    assert_eq!((response.status().as_u16(), response.headers()["connection"].as_bytes()), (201, &b"close"[..]));
    assert_eq!(answer(replica.request(Method::GET, "/livez")).await.0, 200);
    assert!(began.elapsed() < Duration::from_secs(3), "this took longer than the drain delay");
    assert_eq!(replica.end().code(), Some(0), "{}", replica.log());
    assert!(began.elapsed() >= Duration::from_secs(3));
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test]
async fn second_signal_ends_the_process_at_once() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&[("ROWLOCK_DRAIN_DELAY", "1h")]);
    replica.signal("TERM");
    until("it is not ready", async || answer(replica.request(Method::GET, "/readyz")).await.0 == 503).await;
    replica.signal("INT");
    assert_eq!(replica.end().code(), Some(1), "{}", replica.log());
}

#[tokio::test]
async fn sleeping_row_is_refused_when_the_grace_time_is_over() {
    let bench = Bench::new(On::Redis);
    let mut replica = bench.replica(&[("ROWLOCK_GRACE", "200ms")]);
    let sleeping = tokio::spawn(answer(replica.post(&json!({"data": "sleeps", "sleep": 30}))));
    until_held(&bench).await;
    replica.signal("TERM");
    let (status, problem) = sleeping.await.expect("no panic");
    assert_eq!((status, &problem["code"], &problem["outcome"]), (503, &json!("draining"), &json!("not_written")));
    assert_eq!(replica.end().code(), Some(0), "{}", replica.log());
    assert_eq!(bench.redis().cli(&["exists", LOCK_KEY, QUEUE_KEY]), "0");
    assert!(bench.rows().is_empty());
}

/// Where the committer waits when the grace time ends.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// For the lock in Redis, which another client has.
    Lock,
    /// For the embedded lock, which another process has.
    LockFile,
    /// For the end of a row's `sleep`.
    Sleep,
    /// For a file that another process has locked: before a row sleeps, to write a row, and to write one that has slept.
    BusyBeforeSleep,
    Busy,
    BusyAfterSleep,
    /// For a Redis that does not answer: to a probe, to the release of the lock, to an admin who takes it, also from a row that sleeps.
    Probe,
    Release,
    ForcedRelease,
    ForcedReleaseOfSleeper,
}

type Answer = JoinHandle<(u16, Value)>;

/// Sends a request, and returns when the replica has most likely read it: it has answered two that were sent later.
async fn send(replica: &Replica, request: RequestBuilder) -> Answer {
    let sent = tokio::spawn(answer(request));
    for _ in 0..2 {
        assert_eq!(answer(replica.request(Method::GET, "/livez")).await.0, 200);
    }
    sent
}

/// Sends a row that sleeps, and returns once its token is recorded: the row sleeps then.
async fn send_sleeper(bench: &Bench, replica: &Replica, secs: f64) -> Answer {
    let modified = || fs::metadata(format!("{}.journal", bench.csv.display())).and_then(|it| it.modified()).ok();
    let before = modified();
    let sent = send(replica, replica.post(&json!({"data": "sleeps", "sleep": secs}))).await;
    until("its token is recorded", async || modified() != before).await;
    sent
}

/// Makes the committer wait. Returns the answers, which are due when the grace time ends, and the files that have to stay locked.
async fn make_wait(wait: Wait, bench: &Bench, replica: &Replica) -> (Vec<Answer>, Option<fs::File>) {
    let row = || replica.post(&json!({"data": "waits"}));
    let locked = |suffix: &str| {
        let file = fs::File::open(format!("{}{suffix}", bench.csv.display())).expect("a side file");
        file.lock().expect("locked");
        Some(file)
    };
    let retried = async |request| {
        let sent = send(replica, request).await;
        until("it is tried again", async || replica.log().contains("trying again")).await;
        vec![sent]
    };
    match wait {
        Wait::LockFile => {
            let file = locked(".lock");
            (vec![send(replica, row()).await], file)
        }
        Wait::Sleep => (vec![send_sleeper(bench, replica, 60.0).await, send(replica, row()).await], None),
        Wait::BusyBeforeSleep => {
            let file = locked(".journal");
            (retried(replica.post(&json!({"data": "sleeps", "sleep": 60}))).await, file)
        }
        Wait::Busy => {
            let file = locked(".journal");
            (retried(row()).await, file)
        }
        Wait::BusyAfterSleep => (vec![send_sleeper(bench, replica, 2.0).await], locked(".journal")),
        Wait::Lock | Wait::Probe | Wait::Release | Wait::ForcedRelease | Wait::ForcedReleaseOfSleeper => {
            (make_wait_for_redis(wait, bench, replica).await, None)
        }
    }
}

/// The same on Redis, which stops answering.
async fn make_wait_for_redis(wait: Wait, bench: &Bench, replica: &Replica) -> Vec<Answer> {
    let stop = || bench.redis().signal("STOP");
    let mut answers = Vec::new();
    match wait {
        Wait::Lock => {
            bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
            answers.push(send(replica, replica.post(&json!({"data": "waits first"}))).await);
            until("the row waits", async || bench.redis().cli(&["llen", QUEUE_KEY]) == "1").await;
        }
        Wait::Probe => {
            stop();
            until("probes fail", async || replica.log().contains("the lock is unreachable")).await;
        }
        Wait::Release => {
            let slept = send_sleeper(bench, replica, 0.5).await;
            stop();
            assert_eq!(slept.await.expect("no panic").0, 201);
        }
        Wait::ForcedReleaseOfSleeper => {
            let sleeper = send_sleeper(bench, replica, 60.0).await;
            stop();
            answers.push(send(replica, replica.request(Method::DELETE, "/lock")).await);
            // It need not wait for Redis.
            let (status, problem) = sleeper.await.expect("no panic");
            let refusal = (status, &problem["code"], &problem["outcome"]);
            assert_eq!(refusal, (503, &json!("lock_lost"), &json!("not_written")), "{problem}");
        }
        _ => {
            stop();
            answers.push(send(replica, replica.request(Method::DELETE, "/lock")).await);
        }
    }
    answers.push(send(replica, replica.post(&json!({"data": "waits"}))).await);
    answers
}

#[tokio::test]
async fn request_that_waits_when_the_grace_time_ends_is_refused() {
    for (wait, on, rows) in [
        (Wait::Lock, On::Redis, 0),
        (Wait::LockFile, On::Embedded, 0),
        (Wait::Sleep, On::Redis, 0),
        (Wait::Sleep, On::Embedded, 0),
        (Wait::BusyBeforeSleep, On::Embedded, 0),
        (Wait::BusyBeforeSleep, On::Redis, 0),
        (Wait::Busy, On::Embedded, 0),
        (Wait::Busy, On::Redis, 0),
        (Wait::BusyAfterSleep, On::Embedded, 0),
        (Wait::BusyAfterSleep, On::Redis, 0),
        (Wait::Probe, On::Redis, 0),
        (Wait::Release, On::Redis, 1),
        (Wait::ForcedRelease, On::Redis, 0),
        (Wait::ForcedReleaseOfSleeper, On::Redis, 0),
    ] {
        let bench = Bench::new(on);
        // The row has slept when the grace time ends; a call to Redis has not timed out.
        let grace = if matches!(wait, Wait::BusyAfterSleep) { "4s" } else { "300ms" };
        let mut replica =
            bench.replica(&[("ROWLOCK_GRACE", grace), ("ROWLOCK_LOCK_TTL", "60s"), ("ROWLOCK_WAIT_TIMEOUT", "10m")]);
        let (answers, _locked) = make_wait(wait, &bench, &replica).await;
        replica.signal("TERM");
        for sent in answers {
            let (status, problem) =
                sent.await.unwrap_or_else(|e| panic!("{wait:?}: no answer: {e}; {}", replica.log()));
            let refusal = (status, &problem["code"], &problem["outcome"]);
            assert_eq!(refusal, (503, &json!("draining"), &json!("not_written")), "{wait:?}: {problem}");
        }
        assert_eq!(replica.end().code(), Some(0), "{wait:?}: {}", replica.log());
        assert_eq!(bench.rows().len(), rows, "{wait:?}");
    }
}

/// HAProxy in front of replicas on these ports.
struct Balancer {
    process: Child,
    port: u16,
    statistics: u16,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Balancer {
    fn start(bench: &Bench, ports: &[u16]) -> Self {
        let (port, statistics) = (free_port(), free_port());
        let servers: String = ports.iter().map(|port| format!("  server r{port} 127.0.0.1:{port} check\n")).collect();
        let config = format!(
            "defaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n  timeout server 30s\n  retries 3\n  option redispatch\n  retry-on conn-failure\n\
             frontend rows\n  bind 127.0.0.1:{port}\n  default_backend replicas\n\
             frontend statistics\n  bind 127.0.0.1:{statistics}\n  stats enable\n  stats uri /\n\
             backend replicas\n  balance roundrobin\n  option httpchk GET /readyz\n  default-server inter 100ms fall 1 rise 1\n{servers}"
        );
        let path = bench.folder().join("haproxy.cfg");
        fs::write(&path, config).expect("writable");
        let process = Command::new("haproxy").arg("-f").arg(path).stderr(Stdio::null()).spawn();
        Self { process: process.expect("haproxy is installed by make test"), port, statistics }
    }

    /// How many replicas it reports as ready.
    async fn ready(&self) -> usize {
        let table = reqwest::get(format!("http://127.0.0.1:{}/;csv", self.statistics)).await;
        let Ok(table) = table else { return 0 };
        let text = table.text().await.expect("text");
        text.lines().filter(|line| line.starts_with("replicas,r") && line.contains(",UP,")).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restart_behind_a_load_balancer_loses_no_request() {
    let bench = Bench::new(On::Redis);
    let ports = [(); 3].map(|()| free_port());
    let start = |port: u16| {
        let address = format!("127.0.0.1:{port}");
        Replica::start(bench.command(&[("ROWLOCK_LISTEN", &*address), ("ROWLOCK_DRAIN_DELAY", "500ms")]))
    };
    let mut replicas = ports.map(start);
    let balancer = Balancer::start(&bench, &ports);
    until("all are ready", async || balancer.ready().await == 3).await;
    let (done, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let url = format!("http://127.0.0.1:{}/append", balancer.port);
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (done, written, url) = (Arc::clone(&done), Arc::clone(&written), url.clone());
            tokio::spawn(async move {
                let client = reqwest::Client::new();
                while !done.load(Ordering::Relaxed) {
                    let sent = client.post(&url).json(&json!({"data": "x"})).send().await;
                    assert_eq!(sent.expect("an answer").status(), 201);
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for (replica, port) in replicas.iter_mut().zip(ports) {
        let before = written.load(Ordering::Relaxed);
        until("rows are written", async || written.load(Ordering::Relaxed) > before + 200).await;
        replica.signal("TERM");
        assert_eq!(replica.end().code(), Some(0), "{}", replica.log());
        *replica = start(port);
        until("all are ready again", async || balancer.ready().await == 3).await;
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no request was lost");
    }
    assert_eq!(bench.rows().len(), written.load(Ordering::Relaxed));
}
