//! A service to compare with: each request takes the lock in Redis by polling, appends one row, syncs, and releases.
//!
//! `lock-per-request ADDRESS REDIS CSV`

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    sync::Arc,
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use rslock::LockManager;
use serde::{Deserialize, Serialize};

const LEASE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);

struct Peer {
    locks: LockManager,
    csv: File,
}

#[derive(Deserialize)]
struct Row {
    data: String,
}

#[derive(Serialize)]
struct Written {
    offset: u64,
}

async fn append(State(peer): State<Arc<Peer>>, Json(row): Json<Row>) -> Result<(StatusCode, Json<Written>), StatusCode> {
    let lock = loop {
        match peer.locks.lock(b"rows.csv", LEASE).await {
            Ok(lock) => break lock,
            Err(_) => tokio::time::sleep(POLL).await,
        }
    };
    let writer = Arc::clone(&peer);
    let written = tokio::task::spawn_blocking(move || write(&writer.csv, &row.data)).await;
    peer.locks.unlock(&lock).await;
    match written {
        Ok(Ok(offset)) => Ok((StatusCode::CREATED, Json(Written { offset }))),
        _ => Err(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn write(mut csv: &File, data: &str) -> std::io::Result<u64> {
    let mut line = csv::Writer::from_writer(Vec::new());
    line.write_record([data])?;
    let line = line.into_inner().map_err(|e| e.into_error())?;
    let offset = csv.seek(SeekFrom::End(0))?;
    csv.write_all(&line)?;
    csv.sync_data()?;
    Ok(offset)
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, redis, csv] = &args[..] else { panic!("lock-per-request ADDRESS REDIS CSV") };
    let mut locks = LockManager::new(vec![redis.as_str()]);
    // The default delay between attempts is 200 ms, which would make it slower.
    locks.set_retry(1, Duration::from_millis(1));
    let csv = OpenOptions::new().create(true).append(true).open(csv).expect("a file");
    let router = Router::new().route("/append", post(append)).with_state(Arc::new(Peer { locks, csv }));
    let listener = tokio::net::TcpListener::bind(address).await.expect("a free port");
    axum::serve(listener, router).await.expect("serves");
}
