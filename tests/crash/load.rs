//! Clients that retry each key until it is acknowledged, and the look at the file that must hold each exactly once.

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

/// The header that these rows are made for.
pub(crate) const HEADER: &str = "token,key,data";
/// A stopped replica answers nobody: after so long another one is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Where the replicas are now; a place stays empty while nobody serves there.
pub(crate) type Addresses = Arc<RwLock<Vec<Option<String>>>>;

/// A row that was acknowledged, and where.
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

/// How often each status was answered that is no success.
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

    /// How often this status was answered by now.
    pub(crate) fn refused(&self, status: u16) -> u64 {
        self.refused.lock().expect("not poisoned").get(&status).copied().unwrap_or_default()
    }

    /// How many rows were acknowledged by now.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Lets every client settle the key that it has in hand, and answers all that was acknowledged.
    pub(crate) async fn end(self) -> Vec<Acked> {
        self.ended.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in self.clients {
            all.extend(client.await.expect("a client knows of each of its keys"));
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
                None => Err("nobody serves".to_owned()),
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

/// Of many lengths, with all that needs quoting.
fn data_of(client: usize, number: usize) -> String {
    let mut data = format!("{client}-{number}: ");
    let long = (client * 7919 + number * 104_729) % 2500;
    while data.len() < long {
        write!(data, "\"{}\",\r\n", data.len()).expect("memory writes");
    }
    data
}

/// Holds the file against what was acknowledged. All that was sent was acknowledged in the end, so nothing else may stand.
pub(crate) fn verify(csv: &Path, all: &[Acked]) {
    let text = std::fs::read(csv).expect("a readable CSV");
    verify_text(&text, all);
}

/// As `verify`.
pub(crate) fn verify_text(text: &[u8], all: &[Acked]) {
    assert_eq!(text.iter().position(|&byte| byte == 0), None, "a hole, in {} bytes", text.len());
    assert!(
        text.ends_with(b"\n"),
        "a torn end: {:?}",
        String::from_utf8_lossy(&text[text.len().saturating_sub(200)..])
    );
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text);
    let mut records = reader.records().map(|record| record.expect("a whole row"));
    let header = records.next().expect("a header");
    assert_eq!(header.iter().collect::<Vec<_>>().join(","), HEADER);
    let (mut rows, mut newest) = (HashMap::new(), 0);
    for record in records {
        let (token, place) = (record[0].parse::<u64>().expect("a token"), record.position().expect("a place").byte());
        assert!(token >= newest, "token {token} after {newest}");
        newest = token;
        let before = rows.insert(record[1].to_owned(), (record[2].to_owned(), place));
        assert!(before.is_none(), "key {} stands twice, at {before:?} and {place}", &record[1]);
    }
    for Acked { key, data, offset, bytes } in all {
        let (found, place) = rows.remove(key).unwrap_or_else(|| panic!("acknowledged {key} is lost"));
        assert_eq!((&found, place), (data, *offset), "{key} stands otherwise than was answered");
        let end = usize::try_from(offset + bytes).expect("fits");
        assert_eq!(text[end - 1], b'\n', "{key} does not end where was answered");
    }
    assert!(rows.is_empty(), "never sent: {:?}", rows.keys());
}
