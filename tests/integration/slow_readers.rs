//! Clients that do not read their answers hold bounded memory, for a bounded time.

use std::io::Write;

use reqwest::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::support::{Bench, On, Replica, header, until};

/// A row as large as its JSON, nearly `ROWLOCK_BODY_LIMIT`.
const ROW_BYTES: usize = 800_000;

fn bench_of_large_rows(rows: usize) -> Bench {
    let row = "x".repeat(ROW_BYTES);
    let mut file = b"data\n".to_vec();
    for _ in 0..rows {
        writeln!(file, "{row}").expect("memory takes it");
    }
    Bench::with_file(On::Embedded, &file)
}

/// A replica that closes a connection soon after its client stopped reading.
fn impatient(bench: &Bench, settings: &[(&str, &str)]) -> Replica {
    let mut command = bench.command(settings);
    command.args(["--write-timeout", "1s"]);
    Replica::start(command)
}

/// Connects with a small buffer, sends a request, and waits until its answer has begun. Nothing of it is read.
async fn stalled(replica: &Replica, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let address = replica.url.trim_start_matches("http://").parse().expect("an address");
    let mut stream = socket.connect(address).await.expect("connects");
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("sent");
    let mut begin = [0; 12];
    stream.peek(&mut begin).await.expect("an answer");
    assert_eq!(&begin, b"HTTP/1.1 200");
    stream
}

/// Whether so many more connections are served at the same time.
async fn serves_at_once(replica: &Replica, connections: usize) -> bool {
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(replica.url.trim_start_matches("http://")).await.expect("connects");
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let mut begin = [0; 12];
        if stream.read_exact(&mut begin).await.is_err() || &begin != b"HTTP/1.1 200" {
            return false;
        }
        open.push(stream);
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_readers_of_large_answers_hold_little_memory() {
    let bench = bench_of_large_rows(20);
    let replica = bench.replica(&[]);
    let before = replica.peak_kib();
    let mut all = Vec::new();
    for path in ["/rows?last=10", "/rows?from=0&limit=10000", "/rows.csv", "/docs/swagger-ui-bundle.js"] {
        for _ in 0..60 {
            all.push(stalled(&replica, path).await);
        }
    }
    let page: Value = replica.get("/rows?last=3", &[]).await.json().await.expect("JSON");
    let rows = page["rows"].as_array().expect("rows");
    assert!(rows.len() == 3 && rows.iter().all(|row| row["fields"]["data"].as_str().map(str::len) == Some(ROW_BYTES)));
    let grown = replica.peak_kib() - before;
    assert!(grown < 96 << 10, "{grown} KiB for {} stalled readers", all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_stalled_readers_are_closed() {
    let bench = bench_of_large_rows(10);
    let replica = impatient(&bench, &[("ROWLOCK_MAX_CONNECTIONS", "4")]);
    let mut all = Vec::new();
    for path in ["/rows?last=10", "/rows.csv", "/rows.csv?formula_guard=on", "/docs/swagger-ui-bundle.js"] {
        all.push((path, stalled(&replica, path).await));
    }
    until("all connections are closed", async || serves_at_once(&replica, all.len()).await).await;
    for (path, mut stream) in all {
        let (mut read, mut chunk) = (0, vec![0; 64 << 10]);
        while let Ok(more @ 1..) = stream.read(&mut chunk).await {
            read += more;
        }
        let mut whole = 0;
        // The places of the connections before may not be free yet.
        until("the whole answer", async || {
            let Ok(response) = replica.request(Method::GET, path).send().await else { return false };
            let is_served = response.status() == 200;
            whole = response.bytes().await.map_or(0, |body| body.len());
            is_served && whole > 0
        })
        .await;
        assert!(read < whole, "{path}: {read} of {whole} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_subscriber_frees_its_place() {
    let bench = Bench::with_file(On::Embedded, format!("data\n{}", "0123456789\n".repeat(5000)).as_bytes());
    let replica = impatient(&bench, &[]);
    let mut all = Vec::new();
    for _ in 0..64 {
        // Much less than the kernel's send buffer takes.
        all.push(stalled(&replica, "/events?last=100").await);
    }
    until("a subscriber is accepted", async || replica.get("/events", &[]).await.status() == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_event_is_small_however_large_the_rows() {
    let bench = bench_of_large_rows(30);
    let replica = bench.replica(&[]);
    let end = bench.content().len() as u64;
    let mut response = replica.get("/events?last=30&rows=100", &[]).await;
    let (mut text, mut at, mut count) = (String::new(), 5, 0);
    while at < end {
        text.push_str(
            std::str::from_utf8(&response.chunk().await.expect("a stream").expect("an event")).expect("UTF-8"),
        );
        while let Some((event, rest)) = text.split_once("\n\n") {
            if let Some(data) = event.strip_prefix("event: rows\ndata: ") {
                assert!(data.len() < 64 << 10, "{} bytes", data.len());
                let data: Value = serde_json::from_str(data.lines().next().expect("a line")).expect("JSON");
                // A page of the newest rows, then nothing is left out.
                at = if at == 5 { data["offset"].as_u64().expect("an offset") } else { at };
                assert_eq!(data["offset"], at, "no gap");
                at = data["end"].as_u64().expect("an offset");
                count += data["count"].as_u64().expect("a number");
            }
            text = rest.to_owned();
        }
    }
    assert_eq!(count, 10, "as many as fit a page of 8 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_until_their_client_reads_answers() {
    const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.set_send_buffer_size(4096).expect("a small buffer");
    let address = replica.url.trim_start_matches("http://").parse().expect("an address");
    let stream = socket.connect(address).await.expect("connects");
    let (mut answers, mut requests) = stream.into_split();
    let before = replica.peak_kib();
    let many = REQUEST.repeat(100_000);
    let (all, half) = (100_000, many.len() / 2);
    let sending = tokio::spawn(async move {
        requests.write_all(&many[..half]).await.expect("sent");
        requests.write_all(&many[half..]).await.expect("sent");
        requests
    });
    // Other clients are served meanwhile.
    for _ in 0..200 {
        assert_eq!(replica.get("/livez", &[]).await.status(), 200);
    }
    assert!(!sending.is_finished(), "requests are read although no answer is");
    let grown = replica.peak_kib() - before;
    assert!(grown < 8 << 10, "{grown} KiB for one client");
    let (mut count, mut chunk, mut rest) = (0, vec![0; 256 << 10], Vec::new());
    while count < all {
        let read = answers.read(&mut chunk).await.expect("answers");
        assert!(read > 0, "the connection closed after {count} answers");
        rest.extend_from_slice(&chunk[..read]);
        // One answer ends with the body `ok`.
        let text = String::from_utf8_lossy(&rest);
        count += text.matches("\r\n\r\nok\n").count();
        let keep = rest.len().min(6);
        rest = rest.split_off(rest.len() - keep);
    }
    assert_eq!(count, all);
    sending.await.expect("no panic");
}

#[tokio::test]
async fn small_page_has_a_length_and_a_large_one_is_whole() {
    let bench = bench_of_large_rows(2);
    let replica = bench.replica(&[]);
    let large = replica.get("/rows?from=0", &[]).await;
    assert_eq!(header(&large, "content-length"), "", "written while it is sent");
    assert_eq!(header(&large, "content-type"), "application/json");
    let text = large.text().await.expect("text");
    assert!(text.len() > 2 * ROW_BYTES && text.ends_with("}}],\"next\":null}\n"));
    replica.append_text("small").await;
    let small = replica.get("/rows?last=1", &[]).await;
    assert_ne!(header(&small, "content-length"), "");
}
