//! A client whose upload is refused reads the refusal, not a broken pipe, and is not read from without end.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    client_recipes::is_here,
    support::{Bench, On, Replica, python_tool},
};

const BODY_BYTES: usize = 40 << 20;
/// What is wrong with an upload, its headers after the common ones, its path, and the status.
const REFUSALS: [(&str, &str, &str, u16); 5] = [
    ("a wrong first row", "/append/batch", "text/csv", 422),
    ("a wrong media type", "/append/batch", "image/png", 415),
    ("an unknown path", "/append/nothing", "text/csv", 404),
    ("a body that is too large", "/append", "application/json", 413),
    ("no token", "/rows", "text/csv", 401),
];

fn served(bench: &Bench) -> Replica {
    bench.replica(&[("ROWLOCK_API_TOKENS", "admin:a-secret-of-20-bytes"), ("ROWLOCK_CSV_HEADER", "data")])
}

fn head(path: &str, content_type: &str, more: &str) -> String {
    let token = if path == "/rows" { "" } else { "authorization: Bearer a-secret-of-20-bytes\r\n" };
    format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {content_type}\r\n{token}{more}\r\n")
}

/// A batch without a header line, whose first row is wrong.
fn body() -> Vec<u8> {
    let mut body = vec![b'x'; BODY_BYTES];
    body[..8].copy_from_slice(b"nothing\n");
    body
}

/// All of an answer and of what follows, to a clean end.
fn rest(mut stream: TcpStream, what: &str) -> String {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap_or_else(|e| panic!("{what}: {e}"));
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
fn slow_upload_is_sent_whole_before_its_refusal_is_read() {
    let bench = Bench::new(On::Embedded);
    let replica = served(&bench);
    thread::scope(|scope| {
        for (what, path, content_type, status) in REFUSALS {
            let replica = &replica;
            scope.spawn(move || {
                let mut stream = replica.connect();
                let head = head(path, content_type, &format!("content-length: {BODY_BYTES}\r\n"));
                stream.write_all(head.as_bytes()).expect("sent");
                for piece in body().chunks(1 << 20) {
                    stream.write_all(piece).unwrap_or_else(|e| panic!("{what}: {e}"));
                    thread::sleep(Duration::from_millis(100));
                }
                let answer = rest(stream, what);
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
                assert!(answer.contains("\r\nconnection: close\r\n"), "{what}: {answer}");
            });
        }
    });
    assert_eq!(bench.content(), "data\n");
}

#[test]
fn refusal_arrives_while_the_body_is_still_sent() {
    let bench = Bench::new(On::Embedded);
    let replica = served(&bench);
    for (what, path, content_type, status) in REFUSALS {
        let mut stream = replica.connect();
        let head = head(path, content_type, &format!("content-length: {BODY_BYTES}\r\n"));
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(b"nothing\n").expect("sent");
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(String::from_utf8_lossy(&start), format!("HTTP/1.1 {status}"), "{what}");
        stream.write_all(&body()[8..]).unwrap_or_else(|e| panic!("{what}: {e}"));
        rest(stream, what);
    }
}

#[test]
fn expected_continue_is_answered_without_the_body() {
    let bench = Bench::new(On::Embedded);
    let replica = served(&bench);
    for (what, path, content_type, status) in REFUSALS.into_iter().skip(1) {
        let mut stream = replica.connect();
        let more = format!("content-length: {BODY_BYTES}\r\nexpect: 100-continue\r\n");
        stream.write_all(head(path, content_type, &more).as_bytes()).expect("sent");
        let answer = rest(stream, what);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
    }
}

#[test]
fn small_refused_body_leaves_the_connection_open() {
    let bench = Bench::new(On::Embedded);
    let replica = served(&bench);
    let mut stream = replica.connect();
    for (what, path, content_type, status) in REFUSALS.into_iter().filter(|(.., status)| *status != 413) {
        for more in ["content-length: 8\r\n", "transfer-encoding: chunked\r\n"] {
            stream.write_all(head(path, content_type, more).as_bytes()).expect("sent");
            // The body arrives in a segment of its own.
            thread::sleep(Duration::from_millis(10));
            let body = if more.starts_with('c') { "nothing\n" } else { "8\r\nnothing\n\r\n0\r\n\r\n" };
            stream.write_all(body.as_bytes()).expect("sent");
            let mut answer = Vec::new();
            while !answer.ends_with(b"}\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap_or_else(|e| panic!("{what}: {e}"));
                answer.push(byte[0]);
            }
            let answer = String::from_utf8(answer).expect("UTF-8");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
            assert!(!answer.contains("connection: close"), "{what}: {answer}");
        }
    }
}

#[test]
fn endless_upload_is_cut_off() {
    let bench = Bench::new(On::Embedded);
    let settings = [("ROWLOCK_BATCH_LIMIT", "1MiB"), ("ROWLOCK_BODY_LIMIT", "1MiB")];
    let replica = bench.replica(&settings);
    let before = replica.resident_kib();
    let mut stream = replica.connect();
    stream.write_all(head("/nothing", "text/csv", "transfer-encoding: chunked\r\n").as_bytes()).expect("sent");
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    // Twice the limit, and what the system's buffers hold.
    let sent = (0..1024).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count() * chunk.len();
    assert!((2 << 20..32 << 20).contains(&sent), "{sent}");
    assert!(replica.resident_kib() < before + (16 << 10), "{before} KiB before, {} after", replica.resident_kib());
}

/// Runs a client with a wrong upload of each kind. It must print the statuses, one a line.
fn sees_refusals(bench: &Bench, mut command: Command, file: &str, script: &str) {
    let replica = served(bench);
    fs::write(bench.folder().join(file), script).expect("writable");
    fs::write(bench.folder().join("body"), body()).expect("writable");
    let uploads: Vec<_> = REFUSALS.iter().map(|(_, path, kind, _)| format!("{}{path} {kind}", replica.url)).collect();
    let output = command.arg(file).args(&uploads).current_dir(bench.folder()).stdin(Stdio::null()).output();
    let output = output.expect("the client runs");
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let statuses: Vec<_> = printed.lines().collect();
    assert_eq!(statuses, REFUSALS.map(|(.., status)| status.to_string()), "{file}: {said}");
}

#[test]
fn urllib_reads_the_refusal_of_an_upload() {
    const SCRIPT: &str = r#"
import sys, urllib.error, urllib.request
for upload in sys.argv[1:]:
    url, kind = upload.split(" ")
    headers = {"Content-Type": kind}
    if not url.endswith("/rows"):
        headers["Authorization"] = "Bearer a-secret-of-20-bytes"
    request = urllib.request.Request(url, open("body", "rb").read(), headers, method="POST")
    try:
        print(urllib.request.urlopen(request, timeout=30).status)
    except urllib.error.HTTPError as e:
        assert b"outcome" in e.read()
        print(e.code)
"#;
    sees_refusals(&Bench::new(On::Embedded), python_tool("python"), "upload.py", SCRIPT);
}

#[test]
fn node_reads_the_refusal_of_an_upload() {
    const SCRIPT: &str = r#"
import fs from "node:fs";
import http from "node:http";
for (const upload of process.argv.slice(2)) {
  const [url, kind] = upload.split(" ");
  const headers = { "Content-Type": kind, "Content-Length": fs.statSync("body").size };
  if (!url.endsWith("/rows")) headers.Authorization = "Bearer a-secret-of-20-bytes";
  console.log(await new Promise((resolve, reject) => {
    const request = http.request(url, { method: "POST", headers }, (answer) => {
      let text = "";
      answer.on("data", (piece) => (text += piece));
      answer.on("end", () => resolve(text.includes("outcome") ? answer.statusCode : text));
    });
    request.on("error", reject);
    fs.createReadStream("body").pipe(request);
  }));
}
process.exit(0);
"#;
    if is_here("JavaScript", &["node", "--version"], "v", 20) {
        sees_refusals(&Bench::new(On::Embedded), Command::new("node"), "upload.mjs", SCRIPT);
    }
}
