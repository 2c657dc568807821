//! HTTP to the letter, sent as raw bytes: heads, framing of bodies, and connections that are closed on one side.

use std::{
    io::{Read, Write},
    net::Shutdown,
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, answer, until, until_held};

const FORM: &str = "content-type: application/x-www-form-urlencoded\r\n";
const CHUNKS: &str = "6\r\ndata=x\r\n0\r\n\r\n";

/// Sends the bytes, and with `Shutdown::Write` nothing more. Returns all that is answered, to a clean end.
fn exchange(replica: &Replica, bytes: &[u8], half_closes: bool) -> String {
    let mut stream = replica.connect();
    stream.write_all(bytes).expect("sent");
    if half_closes {
        stream.shutdown(Shutdown::Write).expect("half closed");
    }
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(bytes)));
    String::from_utf8(all).expect("UTF-8")
}

fn post(version: &str, headers: &str, body: &str) -> String {
    format!("POST /append HTTP/{version}\r\n{FORM}{headers}connection: close\r\n\r\n{body}")
}

/// What is wrong, the request, its status and its code.
fn malformed() -> Vec<(&'static str, String, u16, &'static str)> {
    let bad = |what, request: String| (what, request, 400, "bad_request");
    let framed =
        |what, version: &str, framing: &str| bad(what, post(version, &format!("host: a\r\n{framing}"), CHUNKS));
    let hosts = |what, hosts: &str| bad(what, post("1.1", &format!("{hosts}content-length: 6\r\n"), "data=x"));
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    vec![
        hosts("no host", ""),
        hosts("two hosts", "host: a\r\nhost: b\r\n"),
        hosts("the same host twice", "host: a\r\nhost: a\r\n"),
        hosts("white space in the host", "host: a b\r\n"),
        hosts("a path in the host", "host: a/b\r\n"),
        hosts("a user in the host", "host: me@a\r\n"),
        hosts("a list of hosts", "host: a, b\r\n"),
        hosts("a port that is none", "host: a:http\r\n"),
        hosts("an open bracket", "host: [::1\r\n"),
        bad("two hosts in HTTP/1.0", post("1.0", "host: a\r\nhost: b\r\ncontent-length: 6\r\n", "data=x")),
        framed("two codings in two lines", "1.1", "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n"),
        framed("chunked in two lines", "1.1", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"),
        framed("chunked twice", "1.1", "transfer-encoding: chunked, chunked\r\n"),
        framed("chunked, then another", "1.1", "transfer-encoding: chunked, gzip\r\n"),
        framed("another, then chunked", "1.1", "transfer-encoding: gzip, chunked\r\n"),
        framed("identity", "1.1", "transfer-encoding: identity\r\n"),
        framed("identity, then chunked", "1.1", "transfer-encoding: identity, chunked\r\n"),
        framed("an unknown coding", "1.1", "transfer-encoding: x\r\n"),
        framed("an empty coding", "1.1", "transfer-encoding: \r\n"),
        framed("a parameter", "1.1", "transfer-encoding: chunked;q=1\r\n"),
        framed("a coding in HTTP/1.0", "1.0", "transfer-encoding: chunked\r\n"),
        framed("a length, then a coding", "1.1", "content-length: 6\r\ntransfer-encoding: chunked\r\n"),
        framed("a coding, then a length", "1.1", "transfer-encoding: chunked\r\nContent-Length: 6\r\n"),
        framed("two lengths", "1.1", "content-length: 6\r\ncontent-length: 7\r\n"),
        framed("a length with a sign", "1.1", "content-length: +6\r\n"),
        framed("a length that is too large", "1.1", "content-length: 99999999999999999999\r\n"),
        bad("a method that is no token", "G@T / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
        bad("an unknown version", "GET / HTTP/3.1\r\nhost: a\r\n\r\n".to_owned()),
        bad("white space in a name", get("/", "x y: z\r\n")),
        bad("white space before a colon", get("/", "x : z\r\n")),
        bad("a NUL in a value", get("/", "x: \0\r\n")),
        ("a long target", get(&format!("/{}", "a".repeat(65_600)), ""), 414, "uri_too_long"),
        ("a long header", get("/", &format!("x: {}", "y".repeat(200_000))), 431, "head_too_large"),
        ("many headers", get("/", &many), 431, "head_too_large"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_request_is_refused_with_a_problem() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let before = bench.content();
    for (what, request, status, code) in malformed() {
        let text = exchange(&replica, request.as_bytes(), false);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{what}: {text:?}"));
        assert!(head.get(8..).is_some_and(|head| head.starts_with(&format!(" {status} "))), "{what}: {head}");
        let problem: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{what}: {e}: {text}"));
        assert_eq!(
            (&problem["code"], &problem["status"], &problem["outcome"], &problem["retryable"]),
            (&json!(code), &json!(status), &json!("not_written"), &json!(false)),
            "{what}"
        );
        let id = problem["request_id"].as_str().expect("an id");
        let length = body.len().to_string();
        for (name, value) in [
            ("x-request-id", id),
            ("content-length", &length),
            ("content-type", "application/problem+json"),
            ("cache-control", "no-store"),
            ("connection", "close"),
            ("date", ""),
        ] {
            assert_eq!(head.matches(&format!("\r\n{name}: {value}")).count(), 1, "{what}: {name}: {head}");
        }
        until("it is logged", async || replica.log().contains(id)).await;
    }
    assert_eq!(bench.content(), before);
    replica.append_text("still served").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_but_valid_framing_is_accepted() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let absolute = format!(
        "POST http://a.example/append HTTP/1.1\r\n{FORM}host: a.example\r\ncontent-length: 6\r\nconnection: close\r\n\r\ndata=x"
    );
    let cases = [
        post("1.0", "content-length: 6\r\n", "data=x"),
        post("1.1", "host:\r\ncontent-length: 6\r\n", "data=x"),
        post("1.1", "host: [::1]:8080\r\ncontent-length: 6\r\n", "data=x"),
        post("1.1", "host: a\r\ncontent-length: 6\r\ncontent-length: 6\r\n", "data=x"),
        post("1.1", "host: a\r\ntransfer-encoding: CHUNKED\r\n", CHUNKS),
        post("1.1", "host: a\r\ntransfer-encoding:  chunked \r\n", "6;x=y\r\ndata=x\r\n0\r\ntrailer: z\r\n\r\n"),
        // The body looks like a head with two framings.
        post("1.1", "host: a\r\ntransfer-encoding: chunked\r\n", "19\r\ndata=content-length%3A+6\n\r\n0\r\n\r\n"),
        absolute,
    ];
    for request in &cases {
        let text = exchange(&replica, request.as_bytes(), false);
        assert_eq!(text.get(9..12), Some("201"), "{request}: {text}");
    }
    assert_eq!(bench.rows().len(), cases.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closed_connection_gets_its_answer() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let form = |version: &str, body: &str| {
        let length = body.len();
        format!("POST /append HTTP/{version}\r\n{FORM}host: a\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let [quick, slow] = ["data=x", "data=x&sleep=0.7"].map(|body| form("1.1", body));
    let get = "GET /rows HTTP/1.1\r\nhost: a\r\n\r\n".to_owned();
    let cut = quick.replace("content-length: 6", "content-length: 7");
    let chunked = format!("POST /append HTTP/1.1\r\n{FORM}host: a\r\ntransfer-encoding: chunked\r\n\r\n{CHUNKS}");
    let cases: [(&str, &[&str]); 8] = [
        (&quick, &["201"]),
        (&chunked, &["201"]),
        (&form("1.0", "data=x"), &["201"]),
        // A wait of some length is answered with `100 Continue` first: this is how a client that has gone is found out.
        (&slow, &["100", "201"]),
        (&form("1.0", "data=x&sleep=0.7"), &["201"]),
        (&format!("{quick}{get}{slow}"), &["201", "200", "100", "201"]),
        (&cut, &["400"]),
        ("GET /li", &[]),
    ];
    for (request, expected) in cases {
        let text = exchange(&replica, request.as_bytes(), true);
        let statuses: Vec<_> = text.split("HTTP/1.").skip(1).filter_map(|answer| answer.get(2..5)).collect();
        assert_eq!(statuses, expected, "{request}: {text}");
    }
    assert_eq!(bench.rows().len(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_connection_withdraws_its_queued_request() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    let holding = tokio::spawn(answer(replica.post(&json!({"data": "holds", "sleep": 3}))));
    until_held(&bench).await;
    let [gone, half_closed] = ["gone", "half"].map(|data| {
        let mut stream = replica.connect();
        let request = format!("POST /append HTTP/1.1\r\n{FORM}host: a\r\ncontent-length: 9\r\n\r\ndata={data:<4}");
        stream.write_all(request.as_bytes()).expect("sent");
        stream
    });
    half_closed.shutdown(Shutdown::Write).expect("half closed");
    let queued = async || {
        let metrics = replica.get("/metrics", &[]).await.text().await.expect("text");
        metrics.lines().find_map(|line| line.strip_prefix("rowlock_queue_rows ")?.parse::<usize>().ok())
    };
    until("both wait", async || queued().await == Some(2)).await;
    drop(gone);
    until("one has gone", async || queued().await == Some(1)).await;
    assert!(!holding.is_finished(), "found out while it waits");
    assert_eq!(holding.await.expect("no panic").0, 201);
    let mut text = String::new();
    (&half_closed).read_to_string(&mut text).expect("a clean end");
    assert!(text.contains("HTTP/1.1 201"), "{text}");
    assert_eq!(bench.rows().iter().map(|row| row["data"].as_str()).collect::<Vec<_>>(), ["holds", "half"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_subscriber_is_gone_before_the_next_event() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let subscribers = async || {
        let metrics = replica.get("/metrics", &[]).await.text().await.expect("text");
        metrics.lines().find_map(|line| line.strip_prefix("rowlock_event_subscribers ")?.parse::<usize>().ok())
    };
    let mut stream = replica.connect();
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n").expect("sent");
    until("it has subscribed", async || subscribers().await == Some(1)).await;
    stream.shutdown(Shutdown::Write).expect("half closed");
    until("a stream without an end is no answer to wait for", async || subscribers().await == Some(0)).await;
    let mut rest = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
    // Unread events may make this end a reset.
    let _ = stream.read_to_end(&mut rest);
}
