//! `POST /append/batch`: batches of each media type, all rows or none.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bench, On, PATIENCE, Replica, answer};

const SETTINGS: [(&str, &str); 1] = [("ROWLOCK_CSV_HEADER", "token,city,people")];
/// Content type and body; then status, code, field and a part of the detail.
type BadBatch<'a> = (&'a str, Vec<u8>, u16, &'a str, &'a str, &'a str);

const CSV: &str = "text/csv";
const LINES: &str = "application/x-ndjson";
const JSON: &str = "application/json";

async fn post(replica: &Replica, content_type: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    answer(replica.request(Method::POST, "/append/batch").header("content-type", content_type).body(body)).await
}

/// Sends the head of a request with a chunked body.
fn begin(replica: &Replica, content_type: &str) -> TcpStream {
    let mut stream = TcpStream::connect(replica.url.trim_start_matches("http://")).expect("connects");
    let head = "POST /append/batch HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked";
    stream.write_all(format!("{head}\r\nContent-Type: {content_type}\r\n\r\n").as_bytes()).expect("written");
    stream
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn read_answer(mut stream: TcpStream) -> (u16, Value) {
    let mut text = String::new();
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
    (head[9..12].parse().expect("a status"), serde_json::from_str(body).expect("JSON"))
}

/// Sends a body in chunks. Each chunk reaches the parser by itself, however the kernel cuts the stream.
fn post_in_chunks(replica: &Replica, content_type: &str, body: &[u8], chunk_bytes: usize) -> (u16, Value) {
    let mut stream = begin(replica, content_type);
    let mut text: Vec<u8> = body.chunks(chunk_bytes).flat_map(chunk).collect();
    text.extend_from_slice(b"0\r\n\r\n");
    stream.write_all(&text).expect("written");
    read_answer(stream)
}

/// The output of a Python script for this input.
fn filtered(script: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let (mut stdin, input) = (child.stdin.take().expect("piped"), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("ends");
    writer.join().expect("no panic").expect("written");
    output.stdout
}

fn gzip(input: &[u8]) -> Vec<u8> {
    filtered("import gzip,sys; sys.stdout.buffer.write(gzip.compress(sys.stdin.buffer.read()))", input)
}

#[tokio::test]
async fn each_media_type_writes_its_rows_and_returns_their_offset() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    let bodies = [
        (CSV, "people,city\n709037,Oslo\n,\"Bergen, \"\"the\"\" rainy\"\n"),
        ("text/csv; header=present; charset=utf-8", "\u{feff}city\r\nOslo\r\nBergen"),
        ("text/csv; header=absent", "Oslo,709037\n\"two\nlines\",1\n"),
        ("TEXT/CSV;Header=Absent", "Oslo\nBergen\n"),
        (LINES, "\"Oslo\"\n[\"Bergen\",1.10]\n\n{\"people\":null,\"city\":\"\\u00e5s\"}\r\n"),
        (JSON, " [\"Oslo\", [\"Bergen\", true], {\"people\": 12345678901234567890}] "),
    ];
    let mut offset = "token,city,people\n".len();
    for (nth, (content_type, body)) in bodies.into_iter().enumerate() {
        let (status, ack) = post(&replica, content_type, body).await;
        assert_eq!(status, 201, "{body:?}: {ack}");
        assert_eq!((&ack["offset"], &ack["token"]), (&json!(offset), &json!(nth + 1)));
        assert!(ack["rows"] == if nth > 3 { 3 } else { 2 } && ack["released"] == true, "{ack}");
        offset += ack["bytes"].as_u64().expect("a number") as usize;
    }
    let expected = "token,city,people\n1,Oslo,709037\n1,\"Bergen, \"\"the\"\" rainy\",\n2,Oslo,\n2,Bergen,\n3,Oslo,709037\n3,\"two\nlines\",1\n4,Oslo,\n4,Bergen,\n5,Oslo,\n5,Bergen,1.10\n5,ås,\n6,Oslo,\n6,Bergen,true\n6,,12345678901234567890\n";
    assert_eq!(bench.content(), expected);
}

#[tokio::test]
async fn chunk_boundaries_do_not_change_the_rows() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "city,people")]);
    let bodies = [
        (CSV, "\u{feff}people,city\r\n709037,\"Tromsø\r\n\"\"north\"\"\"\r\n\r\n,\u{1f600}"),
        ("text/csv; header=absent", "Oslo,709037\n\"two\r\nlines, \",\"\"\r\n"),
        (LINES, "\"Troms\\u00f8\\n\\ud83d\\ude00\"\r\n\n[\"ø,\\\"\",1.10]\n{\"people\":\"\\\\\"}"),
        (JSON, " [\"]\\\"[\\\\\" , [\"ø\", true],\n{\"people\": \"},{\\u00e5\"}\r\n] "),
    ];
    for (content_type, body) in bodies {
        let start = bench.content().len();
        assert_eq!(post(&replica, content_type, body).await.0, 201);
        let whole = bench.content()[start..].to_owned();
        for chunk_bytes in 1..12 {
            let start = bench.content().len();
            let (status, ack) = post_in_chunks(&replica, content_type, body.as_bytes(), chunk_bytes);
            assert_eq!(status, 201, "{body:?} in chunks of {chunk_bytes}: {ack}");
            assert_eq!(&bench.content()[start..], whole);
        }
    }
}

#[tokio::test]
async fn wrong_line_is_refused_before_the_rest_arrives() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[SETTINGS[0], ("ROWLOCK_JOURNAL_BYTES", "64MiB")]);
    let sound = |line: &str| line.repeat((1 << 20) / line.len());
    let bodies = [
        (CSV, format!("city\n{}a,b\n", sound("Oslo\n")), "line 209717: 2 cells"),
        (LINES, format!("{}7\n", sound("\"Oslo\"\n")), "line 149797: accepted"),
        (JSON, format!("[{}7,", sound("\"Oslo\",")), "row 149797: accepted"),
    ];
    for (content_type, body, detail) in bodies {
        let mut stream = begin(&replica, content_type);
        let began = Instant::now();
        stream.write_all(&chunk(body.as_bytes())).expect("written");
        let (status, problem) = read_answer(stream);
        assert!(status == 422 && problem["detail"].as_str().is_some_and(|text| text.contains(detail)), "{problem}");
        assert!(began.elapsed() < Duration::from_secs(10), "it waited for the rest");
    }
    // A client that sends its whole body gets the answer, too.
    let body = "town\n".to_owned() + &sound("Oslo\n").repeat(40);
    let (status, problem) = post(&replica, CSV, body).await;
    assert_eq!((status, &problem["field"]), (422, &json!("data.town")));
    assert_eq!(bench.content(), "token,city,people\n");
}

/// How much memory a batch takes in a new replica, in multiples of its body.
async fn growth(content_type: &str, body: String) -> f64 {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_JOURNAL_BYTES", "64MiB"), ("ROWLOCK_REPLICA", "one")]);
    let (before, bytes) = (replica.resident_kib(), body.len() as f64);
    let (status, ack) = post(&replica, content_type, body).await;
    assert_eq!((status, &ack["rows"]), (201, &json!(200_000)), "{ack}");
    (replica.peak_kib() - before) as f64 * 1024.0 / bytes
}

#[tokio::test]
async fn large_batch_needs_less_than_three_times_its_size() {
    let table: String = (0..200_000).map(|n| format!("{n:099}\n")).collect();
    let rows = growth(CSV, format!("data\n{table}")).await;
    assert!(rows < 3.0, "{rows:.2} times the body");
    // With small rows in a large body, the growth shows whether the body is kept.
    let rows = growth(LINES, (0..200_000).map(|n| format!("{{\"data\":{n}}}{:85}\n", "")).collect()).await;
    assert!(rows < 1.0, "{rows:.2} times the body");
}

#[tokio::test]
async fn compressed_body_is_decoded() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    let body = b"city,people\nOslo,1\n";
    let packed = [("gzip", gzip(body)), ("zstd", zstd::encode_all(&body[..], 3).expect("packs"))];
    for (encoding, packed) in packed {
        let request = replica.request(Method::POST, "/append/batch").header("content-type", CSV);
        assert_eq!(answer(request.header("content-encoding", encoding).body(packed)).await.0, 201, "{encoding}");
    }
    assert_eq!(bench.content(), "token,city,people\n1,Oslo,1\n2,Oslo,1\n");
}

/// A member as `bgzip` writes it, with its size in an extra field.
fn bgzip(input: &[u8]) -> Vec<u8> {
    let mut member = gzip(input);
    member[3] |= 4;
    let size = u16::try_from(member.len() + 7).expect("small").to_le_bytes();
    member.splice(10..10, [8 - 2, 0, b'B', b'C', 2, 0, size[0], size[1]]);
    member
}

fn zstd_frame(input: &[u8]) -> Vec<u8> {
    zstd::encode_all(input, 3).expect("packs")
}

/// Sends a CSV body with this `Content-Encoding` at once, and then in chunks of these sizes.
async fn post_encoded(replica: &Replica, encoding: &str, body: &[u8], chunk_bytes: &[usize]) -> Vec<(u16, Value)> {
    let request = replica.request(Method::POST, "/append/batch").header("content-type", CSV);
    let mut answers = vec![answer(request.header("content-encoding", encoding).body(body.to_vec())).await];
    let headers = format!("{CSV}\r\nContent-Encoding: {encoding}");
    answers.extend(chunk_bytes.iter().map(|&bytes| post_in_chunks(replica, &headers, body, bytes)));
    answers
}

#[tokio::test]
async fn all_members_of_a_compressed_body_are_decoded() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "data")]);
    let long = "x".repeat(150_000);
    let long_rows = [format!("data\n{long}\n"), format!("{long}y\n")];
    let skippable = [0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3].to_vec();
    let bodies = [
        ("gzip", vec![gzip(b"data\na\n"), gzip(b"b\nc\n")], "a\nb\nc\n".to_owned()),
        ("gzip", vec![gzip(b"da"), gzip(b"ta\n\"a\n"), gzip(b"\xc3"), gzip(b"\xa5\"")], "\"a\nå\"\n".to_owned()),
        ("gzip", vec![gzip(b""), gzip(b"data\na\n"), gzip(b""), gzip(b"b\n"), gzip(b"")], "a\nb\n".to_owned()),
        ("gzip", vec![bgzip(b"data\na\n"), bgzip(b"b\n"), bgzip(b"")], "a\nb\n".to_owned()),
        ("gzip", long_rows.iter().map(|text| gzip(text.as_bytes())).collect(), format!("{long}\n{long}y\n")),
        ("GZIP", vec![gzip(b"data\na\n")], "a\n".to_owned()),
        ("X-Gzip", vec![gzip(b"data\na\n")], "a\n".to_owned()),
        ("zstd", vec![zstd_frame(b"data\na\n"), zstd_frame(b"b\n")], "a\nb\n".to_owned()),
        ("zstd", vec![skippable.clone(), zstd_frame(b"data\na\n"), zstd_frame(b""), skippable], "a\n".to_owned()),
        ("Zstd", long_rows.iter().map(|text| zstd_frame(text.as_bytes())).collect(), format!("{long}\n{long}y\n")),
        ("identity", vec![b"data\na\n".to_vec()], "a\n".to_owned()),
        ("Identity", vec![b"data\na\n".to_vec()], "a\n".to_owned()),
    ];
    let mut expected = "data\n".to_owned();
    for (encoding, members, rows) in bodies {
        let answers = post_encoded(&replica, encoding, &members.concat(), &[1, 2, 7, 64, 1000]).await;
        for (status, ack) in answers {
            assert_eq!(status, 201, "{encoding} {rows:.20}: {ack}");
            expected += &rows;
        }
        assert!(bench.content() == expected, "{encoding} {rows:.20}");
    }
}

#[tokio::test]
async fn incomplete_member_or_bytes_behind_the_last_are_refused() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    let mut bodies = Vec::new();
    for (encoding, members) in [
        ("gzip", [gzip(b"city\nOslo\n"), gzip(b"Bergen\n")]),
        ("gzip", [bgzip(b"city\nOslo\n"), bgzip(b"")]),
        ("zstd", [zstd_frame(b"city\nOslo\n"), zstd_frame(b"Bergen\n")]),
    ] {
        let (whole, boundary) = (members.concat(), members[0].len());
        bodies.extend((0..whole.len()).filter(|&cut| cut != boundary).map(|cut| (encoding, whole[..cut].to_vec())));
        let zeros = [0; 512];
        let behind: [&[u8]; 8] = [b"x", b"\0", b"\n", b"\x1f", b"\x1f\x8b", b"\x28\xb5\x2f", b"city\nOslo\n", &zeros];
        bodies.extend(behind.map(|bytes| (encoding, [&whole, bytes].concat())));
        bodies.push((encoding, [&members[0], b"\n".as_slice(), &members[1]].concat()));
    }
    // The trailer holds the checksum and the length.
    for from_end in [1, 8] {
        let mut damaged = gzip(b"Bergen\n");
        let at = damaged.len() - from_end;
        damaged[at] ^= 1;
        bodies.push(("gzip", [gzip(b"city\nOslo\n"), damaged].concat()));
    }
    bodies.push(("gzip", [gzip(b"city\nOslo\n"), vec![b'x'; 8 << 20]].concat()));
    for (encoding, body) in bodies {
        let chunks: &[usize] = if body.len() < 1000 { &[1, 5] } else { &[] };
        for (status, problem) in post_encoded(&replica, encoding, &body, chunks).await {
            let found = (status, &problem["code"], &problem["outcome"]);
            assert_eq!(
                found,
                (400, &json!("broken_body"), &json!("not_written")),
                "{encoding} {:?}: {problem}",
                &body[..body.len().min(90)]
            );
        }
    }
    for encoding in ["br", "deflate", "gzip, gzip", "gzip,identity", "gzipped", ""] {
        for (status, problem) in post_encoded(&replica, encoding, b"city\nOslo\n", &[3]).await {
            assert_eq!((status, &problem["code"]), (415, &json!("unsupported_media_type")), "{encoding}: {problem}");
        }
    }
    assert_eq!(bench.content(), "token,city,people\n");
}

#[tokio::test]
async fn idempotency_key_covers_the_whole_batch() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 2].map(|()| bench.replica(&SETTINGS));
    let send = async |replica: &Replica, body: &'static str| {
        let request = replica.request(Method::POST, "/append/batch").header("content-type", LINES);
        let response = request.header("idempotency-key", "b-1").body(body).send().await.expect("an answer");
        let replayed = response.headers().contains_key("idempotent-replayed");
        (response.status().as_u16(), replayed, response.json::<Value>().await.expect("JSON"))
    };
    let (status, replayed, first) = send(&replicas[0], "\"a\"\n\"b\"\n").await;
    assert_eq!((status, replayed, &first["rows"]), (201, false, &json!(2)));
    assert_eq!(send(&replicas[1], "[\"a\"]\n[\"b\"]").await, (201, true, first));
    assert_eq!(send(&replicas[1], "\"a\"\n\"c\"\n").await.2["code"], "key_reused");
    assert_eq!(bench.rows().len(), 2);
}

#[tokio::test]
async fn batches_of_log_shippers_are_accepted() {
    let bench = Bench::with_file(On::Embedded, b"timestamp,token,message,host,level\n");
    let replica = bench.replica(&[]);
    // The `http` sink of Vector sends compressed JSON lines, the `http` output of Fluent Bit JSON lines or an array.
    let lines = "{\"host\":\"a\",\"level\":\"info\",\"message\":\"up\"}\n{\"host\":\"b\",\"message\":\"down\"}\n";
    let request = replica.request(Method::POST, "/append/batch").header("content-type", LINES);
    let request = request.header("content-encoding", "gzip").header("user-agent", "Vector/0.50");
    assert_eq!(answer(request.body(gzip(lines.as_bytes()))).await.0, 201);
    assert_eq!(post(&replica, LINES, lines).await.0, 201);
    assert_eq!(post(&replica, JSON, "[{\"message\":\"array\",\"level\":3}]").await.0, 201);
    let rows = bench.rows();
    let cells: Vec<_> = rows.iter().map(|row| ["message", "host", "level"].map(|name| row[name].as_str())).collect();
    let sent = [["up", "a", "info"], ["down", "b", ""]];
    assert_eq!(cells, [sent[0], sent[1], sent[0], sent[1], ["array", "", "3"]]);
}

#[tokio::test]
async fn curl_posts_a_csv_file() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    let table = "city,people\nOslo,709037\n\"Bergen, rainy\",291940\n";
    std::fs::write(bench.folder().join("table.csv"), table).expect("writable");
    let mut curl = Command::new("curl");
    curl.current_dir(bench.folder()).args(["-sS", "--data-binary", "@table.csv", "-H", "Content-Type: text/csv"]);
    let output = curl.arg(format!("{}/append/batch", replica.url)).output().expect("curl runs");
    let ack: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(ack["rows"], 2);
    assert_eq!(bench.content(), "token,city,people\n1,Oslo,709037\n1,\"Bergen, rainy\",291940\n");
}

#[tokio::test]
async fn batch_larger_than_the_queue_is_written_whole() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[SETTINGS[0], ("ROWLOCK_JOURNAL_BYTES", "32MiB"), ("ROWLOCK_QUEUE_ROWS", "10")]);
    let body: String =
        std::iter::once("city,people\n".to_owned()).chain((0..100_000).map(|n| format!("city {n},{n}\n"))).collect();
    let (status, ack) = post(&replica, CSV, body).await;
    assert_eq!((status, &ack["rows"]), (201, &json!(100_000)), "{ack}");
    let rows = bench.rows();
    assert!(rows.len() == 100_000 && rows.iter().enumerate().all(|(n, row)| row["people"] == n.to_string()));
}

fn wrong_csv() -> Vec<BadBatch<'static>> {
    let long = "x".repeat(70_000);
    let many = "city\n".to_owned() + &"x\n".repeat(40_000);
    let absent = "text/csv; header=absent";
    vec![
        (CSV, b"".to_vec(), 422, "invalid_field", "body", "no rows"),
        (CSV, b"city,people\n".to_vec(), 422, "invalid_field", "body", "no rows"),
        (CSV, b"town\nOslo\n".to_vec(), 422, "invalid_field", "data.town", "line 1: no such column"),
        (CSV, b"city,city\na,b\n".to_vec(), 422, "invalid_field", "data.city", "line 1: named twice"),
        (CSV, b"city,token\na,1\n".to_vec(), 422, "invalid_field", "data.token", "line 1: the service fills"),
        (CSV, b"City\nOslo\n".to_vec(), 422, "invalid_field", "data.City", "line 1: no such column"),
        (CSV, b"city,\na,b\n".to_vec(), 422, "invalid_field", "data.", "line 1: no such column"),
        (CSV, b"city,people\nOslo,1\nBergen\n".to_vec(), 422, "invalid_field", "body", "line 3: 1 cells"),
        (CSV, b"city,people\nOslo,1,2\n".to_vec(), 422, "invalid_field", "body", "line 2: 3 cells"),
        (CSV, b"city\n\"a\nb\"\nc,d\n".to_vec(), 422, "invalid_field", "body", "line 4: 2 cells"),
        (CSV, b"city\nOs\0lo\n".to_vec(), 422, "invalid_field", "data.city", "line 2:"),
        (CSV, b"city\n\"Oslo\n".to_vec(), 400, "broken_body", "", "line 2: a quote that is not closed"),
        (CSV, b"city\na\n\"b\"c\n".to_vec(), 400, "broken_body", "", "line 3: text after a closing quote"),
        (CSV, b"city\n\"a\" \n".to_vec(), 400, "broken_body", "", "line 2: text after"),
        (CSV, b"city\nx\ry\n".to_vec(), 400, "broken_body", "", "line 2: a carriage return"),
        (CSV, b"city\na\n\xff\n".to_vec(), 400, "broken_body", "", "line 3: not UTF-8"),
        (CSV, long.into_bytes(), 413, "batch_too_large", "", "larger than 65536 bytes"),
        (CSV, many.into_bytes(), 413, "batch_too_large", "", "larger than 65536 bytes"),
        (absent, b"a,b,c\n".to_vec(), 422, "invalid_field", "data", "line 1:"),
        (absent, b"a,b\nc\n".to_vec(), 422, "invalid_field", "body", "line 2: 1 cells"),
        (absent, b"a\n\nb,c\n".to_vec(), 422, "invalid_field", "body", "line 3: 2 cells"),
        (absent, b"\n\n".to_vec(), 422, "invalid_field", "body", "no rows"),
        ("text/csv; header=maybe", b"a\n".to_vec(), 415, "unsupported_media_type", "", "header=present"),
        ("text/csv; charset=latin1", b"a\n".to_vec(), 415, "unsupported_media_type", "", "UTF-8"),
        ("text/plain", b"a\n".to_vec(), 415, "unsupported_media_type", "", "text/csv"),
        ("application/x-www-form-urlencoded", b"data=a".to_vec(), 415, "unsupported_media_type", "", "text/csv"),
        ("nonsense", b"a".to_vec(), 415, "unsupported_media_type", "", "text/csv"),
    ]
}

fn wrong_json() -> Vec<BadBatch<'static>> {
    let long = "x".repeat(70_000);
    vec![
        (LINES, b"".to_vec(), 422, "invalid_field", "body", "no rows"),
        (LINES, b"\n \n".to_vec(), 422, "invalid_field", "body", "no rows"),
        (LINES, b"\"a\"\nb\n".to_vec(), 400, "broken_body", "", "line 2: not JSON"),
        (LINES, b"\"a\"\n\"b\n".to_vec(), 400, "broken_body", "", "line 2: not JSON"),
        (LINES, b"\"a\" \"b\"\n".to_vec(), 400, "broken_body", "", "line 1: not JSON"),
        (LINES, b"\"a\"\n1\n".to_vec(), 422, "invalid_field", "data", "line 2: accepted: a string"),
        (LINES, b"null\n".to_vec(), 422, "invalid_field", "data", "line 1: accepted: a string"),
        (LINES, b"{\"city\":{}}\n".to_vec(), 422, "invalid_field", "data.city", "line 1: nested"),
        (
            LINES,
            b"{\"city\":\"a\",\"city\":\"b\"}\n".to_vec(),
            422,
            "invalid_field",
            "data.city",
            "line 1: named twice",
        ),
        (LINES, b"{\"data\":\"a\"}\n".to_vec(), 422, "invalid_field", "data.data", "line 1: no such column"),
        (LINES, b"[1,2,3]\n".to_vec(), 422, "invalid_field", "data", "line 1:"),
        (LINES, b"\"\\ud800\"\n".to_vec(), 400, "broken_body", "", "line 1: not JSON"),
        (JSON, b"".to_vec(), 400, "broken_body", "", "not JSON"),
        (JSON, b"[]".to_vec(), 422, "invalid_field", "body", "no rows"),
        (JSON, b"{\"data\":\"a\"}".to_vec(), 422, "invalid_field", "body", "accepted: an array"),
        (JSON, b"\"a\"".to_vec(), 422, "invalid_field", "body", "accepted: an array"),
        (JSON, b"[\"a\",]".to_vec(), 400, "broken_body", "", "not JSON"),
        (JSON, b"[\"a\"".to_vec(), 400, "broken_body", "", "not JSON"),
        (JSON, b"[\"a\", 7]".to_vec(), 422, "invalid_field", "data", "row 2: accepted: a string"),
        (JSON, b"[\"a\", {\"x\": 1}]".to_vec(), 422, "invalid_field", "data.x", "row 2: no such column"),
        (JSON, format!("[\"{long}\"]").into_bytes(), 413, "batch_too_large", "", "larger than 65536 bytes"),
    ]
}

#[tokio::test]
async fn wrong_batch_is_refused_with_its_line_and_not_written() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[SETTINGS[0], ("ROWLOCK_BATCH_LIMIT", "64KiB")]);
    let cases = [wrong_csv(), wrong_json()].concat();
    assert!(cases.len() >= 40);
    for (content_type, body, status, code, field, detail) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        for chunk_bytes in [1, 3, 7] {
            let (found, problem) = post_in_chunks(&replica, content_type, &body, chunk_bytes);
            assert_eq!((found, &problem["code"]), (status, &json!(code)), "{shown} in chunks: {problem}");
            assert_eq!(problem["field"].as_str().unwrap_or_default(), field, "{shown} in chunks: {problem}");
            assert!(problem["detail"].as_str().is_some_and(|text| text.contains(detail)), "{shown}: {problem}");
        }
        let (found, problem) = post(&replica, content_type, body).await;
        assert_eq!(
            (found, &problem["code"], &problem["outcome"]),
            (status, &json!(code), &json!("not_written")),
            "{shown}: {problem}"
        );
        assert_eq!(problem["field"].as_str().unwrap_or_default(), field, "{shown}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains(detail)), "{shown}: {problem}");
    }
    assert_eq!(bench.content(), "token,city,people\n");
}

#[tokio::test]
async fn decompression_bomb_and_incomplete_body_are_refused() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[SETTINGS[0], ("ROWLOCK_BATCH_LIMIT", "64KiB")]);
    let send = async |encoding: &str, body: Vec<u8>| {
        let request = replica.request(Method::POST, "/append/batch").header("content-type", CSV);
        let (status, problem) = answer(request.header("content-encoding", encoding).body(body)).await;
        (status, problem["code"].as_str().unwrap_or_default().to_owned())
    };
    let refused = |status, code: &str| (status, code.to_owned());
    let bomb = |mib: u32| {
        let script =
            format!("import gzip,sys; sys.stdout.buffer.write(gzip.compress(b'city\\n' + b'x' * ({mib} << 20)))");
        filtered(&script, b"")
    };
    assert_eq!(send("gzip", bomb(8)).await, refused(413, "batch_too_large"));
    assert_eq!(send("gzip", bomb(256)).await, refused(413, "batch_too_large"));
    let half = gzip(b"city\nOslo\n");
    assert_eq!(send("gzip", half[..half.len() - 6].to_vec()).await, refused(400, "broken_body"));
    assert_eq!(send("gzip", b"city\nOslo\n".to_vec()).await, refused(400, "broken_body"));
    assert_eq!(send("zstd", gzip(b"city\nOslo\n")).await, refused(400, "broken_body"));
    assert_eq!(send("br", b"city\nOslo\n".to_vec()).await, refused(415, "unsupported_media_type"));

    // A body that ends early.
    let address = replica.url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).expect("connects");
    let head =
        "POST /append/batch HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 100\r\n\r\ncity\nOslo\n";
    stream.write_all(head.as_bytes()).expect("written");
    stream.shutdown(std::net::Shutdown::Write).expect("shut");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).expect("a clean end");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(bench.content(), "token,city,people\n");
    assert_eq!(post(&replica, CSV, "city\nOslo\n").await.0, 201);
}
