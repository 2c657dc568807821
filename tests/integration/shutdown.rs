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

use reqwest::Method;
use serde_json::json;

use crate::support::{Bench, On, QUEUE_KEY, Replica, answer, free_port, until, until_held};

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
    assert_eq!(bench.redis().cli(&["exists", crate::support::LOCK_KEY, QUEUE_KEY]), "0");
    assert!(bench.rows().is_empty());
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
