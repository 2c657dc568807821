//! Clients that retry each key until it is acknowledged, and the check that the file has each key exactly once.

use std::{
    collections::HashMap,
    fmt::Write,
    path::Path,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::PATIENCE;

/// The header for these rows.
pub(crate) const HEADER: &str = "token,key,data";
/// A stopped replica does not answer: after this time the client tries another one.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// The URLs of the replicas; `None` for one that is not running.
pub(crate) type Addresses = Arc<RwLock<Vec<Option<String>>>>;

/// An acknowledged row.
#[derive(Debug)]
pub(crate) struct Acked {
    key: String,
    data: String,
    offset: u64,
    bytes: u64,
}

pub(crate) struct Load {
    clients: Vec<JoinHandle<Vec<Acked>>>,
    ended: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    refused: Refused,
}

/// How often each status other than 201 was answered.
type Refused = Arc<Mutex<HashMap<u16, u64>>>;

impl Load {
    pub(crate) fn start(clients: usize, addresses: &Addresses) -> Self {
        let (ended, acked, refused) = (Arc::default(), Arc::default(), Refused::default());
        let client = |number| Client {
            number,
            addresses: Arc::clone(addresses),
            acked: Arc::clone(&acked),
            refused: Arc::clone(&refused),
            http: reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build().expect("a client"),
        };
        let clients = (0..clients).map(|number| tokio::spawn(client(number).run(Arc::clone(&ended)))).collect();
        Self { clients, ended, acked, refused }
    }

    /// How often this status was answered so far.
    pub(crate) fn refused(&self, status: u16) -> u64 {
        self.refused.lock().expect("not poisoned").get(&status).copied().unwrap_or_default()
    }

    /// How many rows were acknowledged so far.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Lets each client finish its current key, and returns all acknowledged rows.
    pub(crate) async fn end(self) -> Vec<Acked> {
        self.ended.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in self.clients {
            all.extend(client.await.expect("a client gets each of its keys acknowledged"));
        }
        all
    }
}

struct Client {
    number: usize,
    addresses: Addresses,
    acked: Arc<AtomicU64>,
    refused: Refused,
    http: reqwest::Client,
}

impl Client {
    async fn run(self, ended: Arc<AtomicBool>) -> Vec<Acked> {
        let mut all = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            let key = format!("{}-{}", self.number, all.len());
            let data = data_of(self.number, all.len());
            let (offset, bytes) = self.until_acknowledged(&key, &data).await;
            self.acked.fetch_add(1, Ordering::Relaxed);
            all.push(Acked { key, data, offset, bytes });
        }
        all
    }

    async fn until_acknowledged(&self, key: &str, data: &str) -> (u64, u64) {
        let (deadline, mut last) = (Instant::now() + 2 * PATIENCE, String::new());
        for tries in self.number.. {
            assert!(Instant::now() < deadline, "{key} was never acknowledged: {last}");
            let address = {
                let addresses = self.addresses.read().expect("not poisoned");
                addresses[tries % addresses.len()].clone()
            };
            let answer = match address {
                Some(address) => self.post(&address, key, data).await,
                None => Err("the replica is not running".to_owned()),
            };
            match answer {
                Ok((201, ack)) => {
                    let number = |name: &str| ack[name].as_u64().expect("a number");
                    return (number("offset"), number("bytes"));
                }
                Ok((status, problem)) => {
                    assert!(matches!(status, 409 | 500 | 503 | 507), "{key}: {status} {problem}");
                    *self.refused.lock().expect("not poisoned").entry(status).or_default() += 1;
                    last = problem.to_string();
                }
                Err(e) => last = e,
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        unreachable!("there is always one more try")
    }

    async fn post(&self, address: &str, key: &str, data: &str) -> Result<(u16, Value), String> {
        let request = self.http.post(format!("{address}/append")).header("idempotency-key", key);
        let response = request.json(&json!({ "data": data })).send().await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        Ok((status, response.json().await.map_err(|e| e.to_string())?))
    }
}

/// Data of many lengths, with quotes, commas and line breaks.
fn data_of(client: usize, number: usize) -> String {
    let mut data = format!("{client}-{number}: ");
    let long = (client * 7919 + number * 104_729) % 2500;
    while data.len() < long {
        write!(data, "\"{}\",\r\n", data.len()).expect("memory writes");
    }
    data
}

/// Compares the file with the acknowledged rows. Each sent row was acknowledged in the end, so there must be no other rows.
pub(crate) fn verify(csv: &Path, all: &[Acked]) {
    let text = std::fs::read(csv).expect("a readable CSV");
    verify_text(&text, all);
}

/// Like `verify`, for the file's content.
pub(crate) fn verify_text(text: &[u8], all: &[Acked]) {
    assert_eq!(text.iter().position(|&byte| byte == 0), None, "a hole, in {} bytes", text.len());
    assert!(
        text.ends_with(b"\n"),
        "an incomplete last line: {:?}",
        String::from_utf8_lossy(&text[text.len().saturating_sub(200)..])
    );
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text);
    let mut records = reader.records().map(|record| record.expect("a whole row"));
    let header = records.next().expect("a header");
    assert_eq!(header.iter().collect::<Vec<_>>().join(","), HEADER);
    let (mut rows, mut newest) = (HashMap::new(), 0);
    for record in records {
        let (token, position) =
            (record[0].parse::<u64>().expect("a token"), record.position().expect("a position").byte());
        assert!(token >= newest, "token {token} after {newest}");
        newest = token;
        let before = rows.insert(record[1].to_owned(), (record[2].to_owned(), position));
        assert!(before.is_none(), "key {} is repeated, at {before:?} and {position}", &record[1]);
    }
    for Acked { key, data, offset, bytes } in all {
        let (found, position) = rows.remove(key).unwrap_or_else(|| panic!("acknowledged {key} is lost"));
        assert_eq!((&found, position), (data, *offset), "{key} differs from its acknowledgement");
        let end = usize::try_from(offset + bytes).expect("fits");
        assert_eq!(text[end - 1], b'\n', "{key} does not end at the acknowledged offset");
    }
    assert!(rows.is_empty(), "never sent: {:?}", rows.keys());
}
