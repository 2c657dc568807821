//! Readers of the lock's status do not hinder its holder.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    redis_connections::calls_of,
    support::{Bench, On, Redis, Replica, answer, until_held},
};

const READERS: usize = 300;

/// Starts a proxy that delays all bytes to and from Redis, and returns its address. It ends with the test's runtime.
async fn slow_proxy(redis: &Redis, delay: Duration) -> String {
    let (listener, target) = (TcpListener::bind("127.0.0.1:0").await.expect("a free port"), redis.port());
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.expect("accepts");
            let server = TcpStream::connect(("127.0.0.1", target)).await.expect("Redis is there");
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::spawn(forward(from_client, to_server, delay));
            tokio::spawn(forward(from_server, to_client, delay));
        }
    });
    format!("redis://127.0.0.1:{port}")
}

async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let mut chunk = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        tokio::time::sleep(delay).await;
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}

/// Asks for the lock's status from many connections at once, again and again, until `done`. Returns how often it was answered.
async fn read_status(replica: &Replica, done: Arc<AtomicBool>) -> u64 {
    let answered = Arc::new(AtomicU64::new(0));
    let readers = (0..READERS).map(|_| {
        let (request, done, answered) =
            (replica.request(Method::GET, "/lock"), Arc::clone(&done), Arc::clone(&answered));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let (status, body) = answer(request.try_clone().expect("no stream")).await;
                assert_eq!(status, 200, "{body}");
                answered.fetch_add(1, Ordering::Relaxed);
                // Room for the other processes of this machine.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.expect("no panic");
    }
    answered.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_the_status_do_not_cost_the_holder_its_lease() {
    let bench = Bench::new(On::Redis);
    let url = slow_proxy(bench.redis(), Duration::from_millis(10)).await;
    let replica = bench.replica(&[("REDIS_CONN_STR", &url), ("ROWLOCK_LOCK_TTL", "3s")]);
    replica.append_text("first").await;
    let done = Arc::new(AtomicBool::new(false));
    let holding = async {
        let (status, ack) = replica.append(json!({"data": "held", "sleep": 7})).await;
        done.store(true, Ordering::Relaxed);
        assert_eq!(status, 201, "{ack}; {}", replica.log());
    };
    let reading = async {
        until_held(&bench).await;
        bench.redis().cli(&["config", "resetstat"]);
        read_status(&replica, Arc::clone(&done)).await
    };
    let ((), answered) = tokio::join!(holding, reading);
    // With those of renewals and of the release.
    let calls = calls_of("evalsha", bench.redis());
    assert!(calls * 5 < answered, "{calls} calls to Redis for {answered} answers");
    assert!(!replica.log().contains("the lock was lost"), "{}", replica.log());
    assert_eq!(bench.rows().len(), 2);
}
