//! Media types, character sets and codings of bodies, and what a refusal of one says.

use std::io::Write;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, answer, header};

/// Sends a body with these headers. Returns the answer and its problem or acknowledgement.
async fn send(replica: &Replica, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String, String, Value) {
    let request = replica.request(Method::POST, path).body(body);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.send().await.expect("an answer");
    let accepted = ["accept", "accept-encoding"].map(|name| header(&response, name).to_owned());
    let status = response.status().as_u16();
    let [media_types, codings] = accepted;
    (status, media_types, codings, response.json().await.expect("JSON"))
}

fn gzip(text: &str) -> Vec<u8> {
    let mut child = std::process::Command::new("gzip")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("gzip runs");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    child.wait_with_output().expect("ends").stdout
}

fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 3).expect("packs")
}

#[tokio::test]
async fn each_type_and_coding_of_append_writes_its_row() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "data,n")]);
    let json = "{\"data\": \"é\"}";
    let cases: [(&str, &str, Vec<u8>, &str); 16] = [
        ("application/json ; charset=utf-8", "", json.into(), "é,"),
        ("application/json;charset=utf8", "", json.into(), "é,"),
        ("application/json; charset=us-ascii", "", "{\"data\": \"\\u00e9\"}".into(), "é,"),
        ("application/json; charset=\"UTF-8\"", "", json.into(), "é,"),
        ("application/json", "", format!("\u{feff}{json}").into(), "é,"),
        ("application/json", "GZIP", gzip(json), "é,"),
        ("application/json", "x-gzip", gzip(json), "é,"),
        ("application/json", "gzip", [gzip("{\"data\": "), gzip("[1,2]}")].concat(), "1,2"),
        ("application/json; charset=utf-8", "zstd", zstd(json), "é,"),
        ("application/json", "identity", json.into(), "é,"),
        ("application/x-www-form-urlencoded", "gzip", gzip("data=a+b"), "a b,"),
        ("text/plain;charset=UTF-8", "", "data=a&b".into(), "data=a&b,"),
        ("text/plain", "", "\u{feff}{\"data\": \"x\"}".into(), "\"{\"\"data\"\": \"\"x\"\"}\","),
        ("text/plain", "gzip", gzip("two\nlines\n"), "\"two\nlines\n\","),
        ("text/plain", "", "".into(), ","),
        ("text/plain", "", "\u{feff}\u{feff}x".into(), "\"\u{feff}x\","),
    ];
    let mut expected = "data,n\n".to_owned();
    for (content_type, coding, body, row) in cases {
        let mut headers = vec![("content-type", content_type)];
        headers.extend((!coding.is_empty()).then_some(("content-encoding", coding)));
        let (status, _, _, ack) = send(&replica, "/append", &headers, body).await;
        assert_eq!(status, 201, "{content_type} {coding}: {ack}");
        expected += &format!("{row}\n");
        assert_eq!(bench.content(), expected, "{content_type} {coding}");
    }
}

#[tokio::test]
async fn refused_type_or_coding_says_what_is_accepted() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let types = [
        ("/append", "application/json, application/x-www-form-urlencoded, text/plain"),
        ("/append/batch", "text/csv, application/x-ndjson, application/json"),
    ];
    for (path, accepted) in types {
        for content_type in ["application/xml", "application/json; charset=latin1", "json", ""] {
            let (status, media_types, codings, problem) =
                send(&replica, path, &[("content-type", content_type)], b"x".to_vec()).await;
            assert_eq!((status, &problem["code"]), (415, &json!("unsupported_media_type")), "{path} {content_type}");
            assert_eq!((&*media_types, &*codings), (accepted, ""), "{path} {content_type}");
        }
        for coding in ["br", "deflate", "gzip, gzip", "gzip, zstd"] {
            let headers = [("content-type", "application/json"), ("content-encoding", coding)];
            let (status, media_types, codings, problem) = send(&replica, path, &headers, b"x".to_vec()).await;
            assert_eq!((status, &problem["code"]), (415, &json!("unsupported_media_type")), "{path} {coding}");
            assert_eq!((&*media_types, &*codings), ("", "gzip, zstd, identity"), "{path} {coding}");
        }
    }
    let refused = [
        ("gzip", gzip(&format!("{{\"data\": \"{}\"}}", "x".repeat(1 << 20))), 413, "body_too_large"),
        ("zstd", zstd(&" ".repeat(256 << 20)), 413, "body_too_large"),
        ("gzip", gzip("{\"data\": \"x\"}")[..20].to_vec(), 400, "broken_body"),
        ("zstd", gzip("{\"data\": \"x\"}"), 400, "broken_body"),
        ("gzip", b"{\"data\": \"x\"}".to_vec(), 400, "broken_body"),
    ];
    for (coding, body, expected, code) in refused {
        let headers = [("content-type", "application/json"), ("content-encoding", coding)];
        let (status, _, _, problem) = send(&replica, "/append", &headers, body).await;
        assert_eq!((status, &problem["code"]), (expected, &json!(code)), "{coding}: {problem}");
    }
    for (body, code) in [("a\0b", "invalid_field"), ("\u{fffd}", "")] {
        let (_, _, _, problem) = send(&replica, "/append", &[("content-type", "text/plain")], body.into()).await;
        assert_eq!(problem["code"].as_str().unwrap_or_default(), code, "{body:?}");
    }
    assert_eq!(bench.rows().len(), 1);
}

/// Appends a batch, and returns the answer's `rows` and `skipped_lines`, and what was added to the file.
async fn batch(bench: &Bench, replica: &Replica, content_type: &str, body: &str) -> (Value, Value, String) {
    let before = bench.content().len();
    let request = replica.request(Method::POST, "/append/batch").header("content-type", content_type);
    let (status, ack) = answer(request.body(body.to_owned())).await;
    assert_eq!(status, 201, "{body:?}: {ack}");
    (ack["rows"].clone(), ack["skipped_lines"].clone(), bench.content()[before..].to_owned())
}

#[tokio::test]
async fn blank_lines_are_rows_of_one_column_or_counted() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "city,people")]);
    let absent = "text/csv; header=absent";
    let lines = "application/x-ndjson";
    let cases = [
        ("text/csv", "city\na\n\nb\n", 3, None, "a,\n,\nb,\n"),
        ("text/csv", "\r\ncity\r\n\r\na\r\n\n\r\nb\r\n\r\n\r\n", 5, Some(3), ",\na,\n,\n,\nb,\n"),
        ("text/csv", "city\n\"\"\n\"\"\n", 2, None, ",\n,\n"),
        ("text/csv", "city,people\na,1\n\n\nb,2\n", 2, Some(2), "a,1\nb,2\n"),
        (absent, "\na\n\nb\n\n", 3, Some(2), "a,\n,\nb,\n"),
        (absent, "a,1\n\nb,2\n", 2, Some(1), "a,1\nb,2\n"),
        (lines, "\n\"a\"\n \r\n\"b\"\n\n", 2, Some(3), "a,\nb,\n"),
        (lines, "\"a\"\n\"b\"\n  ", 2, None, "a,\nb,\n"),
        ("application/json", "\n[\n\"a\"\n]\n", 1, None, "a,\n"),
    ];
    for (content_type, body, rows, skipped, added) in cases {
        let found = batch(&bench, &replica, content_type, body).await;
        assert_eq!(
            found,
            (json!(rows), skipped.map_or(Value::Null, |lines: u64| json!(lines)), added.to_owned()),
            "{body:?}"
        );
    }
}

#[tokio::test]
async fn lone_carriage_return_is_refused_with_its_line() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "data")]);
    let cases = [
        ("data\r\"Os\"lo\r", 1),
        ("data\na\r\"b\rc\r", 2),
        ("data\nx\ry\n", 2),
        ("data\nx\r", 2),
        ("data\n\"x\"\r\"y\"\n", 2),
        ("data\n\"a\nb\"\n\r\rc\n", 4),
        ("data\r\r\n\"x\"\r\n", 1),
    ];
    for (body, line) in cases {
        let request = replica.request(Method::POST, "/append/batch").header("content-type", "text/csv");
        let (status, problem) = answer(request.body(body)).await;
        assert_eq!((status, &problem["code"]), (400, &json!("broken_body")), "{body:?}: {problem}");
        let detail = problem["detail"].as_str().expect("text");
        assert!(
            detail.starts_with(&format!("line {line}: a carriage return without a line feed")),
            "{body:?}: {detail}"
        );
    }
    assert_eq!(bench.content(), "data\n");
    let within_quotes = batch(&bench, &replica, "text/csv", "data\r\n\"x\ry\"\r\n").await.2;
    assert_eq!(within_quotes, "\"x\ry\"\n");
}
