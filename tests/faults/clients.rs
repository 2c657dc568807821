//! Clients that append and read in every way, and record each request and its response.

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{RequestBuilder, Response, header::CONTENT_TYPE};
use rowlock::random::Random;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    history::{Acknowledgement, Attempt, AttemptResult, History, Op, Snapshot, row},
    sandbox::HOSTS,
    support::{PATIENCE, header},
};

/// Each client prefers one replica, so that a stopped replica blocks only its own clients.
const CLIENTS: usize = 3 * HOSTS;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// After an attempt without an acknowledgement.
const PAUSE: Duration = Duration::from_millis(5);
/// How many times a run reads the whole file.
const SNAPSHOTS_MAX: u64 = 12;
const BATCH_ROWS_MAX: usize = 40;
const LARGE_BATCH_ROWS_MAX: usize = 400;

/// The URL of each slot's replica; none where no replica serves.
pub(crate) type Addresses = Arc<RwLock<Vec<Option<String>>>>;

pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<History>>,
}

struct Shared {
    start: Instant,
    seed: u64,
    addresses: Addresses,
    ended: AtomicBool,
    rows: AtomicU64,
    acked_rows: AtomicU64,
    snapshots: AtomicU64,
    /// The latest send time of an acknowledged append.
    acked_sent_us: watch::Sender<u64>,
}

impl Load {
    pub(crate) fn start(seed: u64, addresses: &Addresses) -> Self {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            seed,
            addresses: Arc::clone(addresses),
            ended: AtomicBool::default(),
            rows: AtomicU64::default(),
            acked_rows: AtomicU64::default(),
            snapshots: AtomicU64::default(),
            acked_sent_us: watch::Sender::new(0),
        });
        let client = |number| Client {
            number,
            random: Random(seed ^ (number as u64) << 32),
            shared: Arc::clone(&shared),
            http: reqwest::Client::builder().timeout(RESPONSE_TIMEOUT).build().expect("a client"),
            history: History::default(),
        };
        let clients = (0..CLIENTS).map(|number| tokio::spawn(client(number).run())).collect();
        Self { shared, clients }
    }

    pub(crate) fn acked_rows(&self) -> u64 {
        self.shared.acked_rows.load(Ordering::Relaxed)
    }

    /// The clock of the history, in microseconds.
    pub(crate) fn now_us(&self) -> u64 {
        self.shared.now_us()
    }

    /// Waits for an acknowledgement of an append that was sent after `then_us`. Returns whether one arrived.
    pub(crate) async fn acked_since(&self, then_us: u64, patience: Duration) -> bool {
        let mut acked_sent_us = self.shared.acked_sent_us.subscribe();
        tokio::time::timeout(patience, acked_sent_us.wait_for(|&sent_us| sent_us > then_us)).await.is_ok()
    }

    /// Waits for every client to finish its append, and returns the history of all.
    pub(crate) async fn end(self) -> History {
        self.shared.ended.store(true, Ordering::Relaxed);
        let mut all = History { seed: self.shared.seed, ..History::default() };
        for client in self.clients {
            let more = client.await.expect("a client does not panic");
            all.ops.extend(more.ops);
            all.snapshots.extend(more.snapshots);
            all.wrong_reads.extend(more.wrong_reads);
        }
        all
    }
}

impl Shared {
    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("a run is short")
    }

    /// The preferred replica if it serves, or else another one.
    fn address(&self, preferred: usize) -> Option<(usize, String)> {
        let addresses = self.addresses.read().expect("not poisoned");
        let serving: Vec<_> =
            addresses.iter().enumerate().filter_map(|(slot, url)| Some((slot, url.clone()?))).collect();
        (!serving.is_empty()).then(|| serving[preferred % serving.len()].clone())
    }
}

struct Client {
    number: usize,
    random: Random,
    shared: Arc<Shared>,
    http: reqwest::Client,
    history: History,
}

/// What every attempt of an append sends.
struct Request {
    path: &'static str,
    content_type: &'static str,
    body: String,
    key: Option<String>,
}

impl Client {
    async fn run(mut self) -> History {
        while !self.shared.ended.load(Ordering::Relaxed) {
            let sleep_ms = 20 * self.random.below(40);
            match (self.number, self.random.below(100)) {
                // With `skip_release` all clients wait until the lock expires: one client uses it, rarely.
                (0, 0..20) => self.append(true, json!({"skip_release": true})).await,
                (0, 20..50) => self.append(false, json!({"sleep": sleep_ms as f64 / 1000.0})).await,
                (0, _) => tokio::time::sleep(Duration::from_millis(100)).await,
                (_, 0..40) => self.append(false, json!({})).await,
                (_, 40..65) => self.append(true, json!({})).await,
                (_, 65..92) => self.append_batch().await,
                (_, 92..98) => self.read_own_row().await,
                _ => self.read_all().await,
            }
        }
        self.history
    }

    fn key(first: u64, is_keyed: bool) -> Option<String> {
        is_keyed.then(|| format!("key-{first}"))
    }

    async fn append(&mut self, is_keyed: bool, mut fields: Value) {
        let first = self.shared.rows.fetch_add(1, Ordering::Relaxed);
        fields["data"] = row(self.shared.seed, first).into();
        let key = Self::key(first, is_keyed);
        let request = Request { path: "/append", content_type: "application/json", body: fields.to_string(), key };
        self.send(first, 1, request).await;
    }

    async fn append_batch(&mut self) {
        let rows_max = if self.random.chance(20) { LARGE_BATCH_ROWS_MAX } else { BATCH_ROWS_MAX };
        let rows = 1 + self.random.below(rows_max) as u64;
        let first = self.shared.rows.fetch_add(rows, Ordering::Relaxed);
        let data: Vec<_> = (first..first + rows).map(|number| row(self.shared.seed, number)).collect();
        let (content_type, body) = match self.random.below(3) {
            0 => ("application/json", json!(data).to_string()),
            1 => ("application/x-ndjson", data.iter().map(|row| format!("{}\n", json!(row))).collect()),
            _ => {
                let quoted = |row: &String| format!("\"{}\"\n", row.replace('"', "\"\""));
                ("text/csv", format!("data\n{}", data.iter().map(quoted).collect::<String>()))
            }
        };
        let is_keyed = self.random.chance(40);
        let key = Self::key(first, is_keyed);
        self.send(first, rows, Request { path: "/append/batch", content_type, body, key }).await;
    }

    /// Without a key, sends the request once. With a key, retries until it is acknowledged, and sometimes sends it once more.
    async fn send(&mut self, first: u64, rows: u64, request: Request) {
        let mut op = Op { first, rows, key: request.key.clone(), attempts: Vec::new() };
        let (mut deadline, mut preferred) = (None, self.number);
        loop {
            let is_acked = self.attempt(preferred, &request, &mut op).await;
            if is_acked {
                let sent_us = op.attempts.last().expect("just now").sent_us;
                self.shared.acked_sent_us.send_if_modified(|acked_sent_us| {
                    let is_newer = sent_us > *acked_sent_us;
                    *acked_sent_us = sent_us.max(*acked_sent_us);
                    is_newer
                });
            }
            if request.key.is_none() || is_acked {
                break;
            }
            // The deadline counts from the end of the run: a fault may last until then.
            if self.shared.ended.load(Ordering::Relaxed) {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
                if Instant::now() > deadline {
                    break;
                }
            }
            preferred += 1;
        }
        if op.acknowledgement().is_some() {
            self.shared.acked_rows.fetch_add(rows, Ordering::Relaxed);
            if request.key.is_some() && self.random.chance(5) {
                self.attempt(preferred + 1, &request, &mut op).await;
            }
        }
        self.history.ops.push(op);
    }

    /// Sends the request once and records the result. Returns whether it was acknowledged.
    async fn attempt(&mut self, preferred: usize, request: &Request, op: &mut Op) -> bool {
        let Some((slot, url)) = self.shared.address(preferred) else {
            tokio::time::sleep(PAUSE).await;
            return false;
        };
        let mut post = self.http.post(format!("{url}{}", request.path)).header(CONTENT_TYPE, request.content_type);
        if let Some(key) = &request.key {
            post = post.header("idempotency-key", key);
        }
        let sent_us = self.shared.now_us();
        let result = response_of(post.body(request.body.clone())).await;
        let ended_us = self.shared.now_us();
        let is_acked = matches!(result, AttemptResult::Acknowledged(_));
        op.attempts.push(Attempt { slot, sent_us, ended_us, result });
        if !is_acked {
            tokio::time::sleep(PAUSE).await;
        }
        is_acked
    }

    /// Reads the row at the offset of the last acknowledgement.
    async fn read_own_row(&mut self) {
        let Some((first, offset)) =
            self.history.ops.iter().rev().find_map(|op| Some((op.first, op.acknowledgement()?.0.offset)))
        else {
            return;
        };
        let Some((_, url)) = self.shared.address(self.number) else { return };
        let request = self.http.get(format!("{url}/rows?from={offset}&limit=1"));
        let Some(response) = send(request).await else { return };
        let status = response.status().as_u16();
        // A replica may not have read so far yet if a stopped process keeps the files locked.
        if matches!(status, 500 | 503) {
            return;
        }
        let body = response.json::<Value>().await.unwrap_or_default();
        let found = &body["rows"][0]["fields"]["data"];
        if status == 422 || found.as_str().is_some_and(|data| data != row(self.shared.seed, first)) {
            self.history.wrong_reads.push(format!("row {first} at {offset}: {status} {body}"));
        }
    }

    async fn read_all(&mut self) {
        let Some((slot, url)) = self.shared.address(self.number) else { return };
        if self.shared.snapshots.fetch_add(1, Ordering::Relaxed) >= SNAPSHOTS_MAX {
            return tokio::time::sleep(PAUSE).await;
        }
        let sent_us = self.shared.now_us();
        let Some(response) = send(self.http.get(format!("{url}/rows.csv"))).await else { return };
        // A truncated response is no snapshot.
        if let (200, Ok(text)) = (response.status().as_u16(), response.text().await) {
            self.history.snapshots.push(Snapshot { sent_us, slot, text });
        }
    }
}

/// None: the request failed, after a pause.
async fn send(request: RequestBuilder) -> Option<Response> {
    match request.send().await {
        Ok(response) => Some(response),
        Err(_) => {
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

async fn response_of(request: RequestBuilder) -> AttemptResult {
    let response = match request.send().await {
        Ok(response) => response,
        Err(e) if e.is_connect() => return AttemptResult::NotSent(format!("{e:?}")),
        Err(e) => return AttemptResult::NoResponse(format!("{e:?}")),
    };
    let status = response.status().as_u16();
    let replayed = header(&response, "idempotent-replayed") == "true";
    let Ok(body) = response.json::<Value>().await else {
        return AttemptResult::NoResponse(format!("an incomplete response, {status}"));
    };
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    if status == 201 {
        let number = |name: &str| body[name].as_u64().expect("a number");
        let (offset, bytes, token) = (number("offset"), number("bytes"), number("token"));
        return AttemptResult::Acknowledged(Acknowledgement {
            offset,
            bytes,
            token,
            replica: text("replica"),
            replayed,
        });
    }
    match body["outcome"].as_str() {
        Some("not_written") => AttemptResult::NotWritten(status, text("code")),
        _ => AttemptResult::Unknown(status, text("code")),
    }
}
