//! Every bad request gets its status and code, and does not change a byte of the file.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, answer, header};

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

struct Bad {
    what: &'static str,
    method: &'static str,
    path: &'static str,
    content_type: Option<&'static str>,
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    field: Option<&'static str>,
}

fn bad(
    what: &'static str,
    content_type: &'static str,
    body: impl Into<Vec<u8>>,
    status: u16,
    code: &'static str,
) -> Bad {
    let content_type = Some(content_type);
    Bad { what, method: "POST", path: "/append", content_type, body: body.into(), status, code, field: None }
}

/// A wrong field, which the answer must name.
fn wrong(content_type: &'static str, body: impl Into<Vec<u8>>, field: &'static str) -> Bad {
    Bad { field: Some(field), ..bad(field, content_type, body, 422, "invalid_field") }
}

fn broken_bodies() -> Vec<Bad> {
    let broken = |what, body: &[u8]| bad(what, JSON, body, 400, "broken_body");
    vec![
        broken("an empty body", b""),
        broken("white space", b"  \n"),
        broken("half an object", b"{\"data\": \"x\""),
        broken("no JSON", b"hello"),
        broken("single quotes", b"{'data': 'x'}"),
        broken("a trailing comma", b"{\"data\": \"x\",}"),
        broken("two documents", b"{\"data\": \"x\"} {}"),
        broken("NaN", b"{\"data\": \"x\", \"sleep\": NaN}"),
        broken("Infinity", b"{\"data\": \"x\", \"sleep\": Infinity}"),
        broken("a raw line break in a string", b"{\"data\": \"a\nb\"}"),
        broken("invalid UTF-8", b"{\"data\": \"\xff\xfe\"}"),
        broken("half a surrogate pair", b"{\"data\": \"\\ud800\"}"),
        bad("invalid UTF-8 in a form", FORM, b"data=%FF", 400, "broken_body"),
        bad("raw invalid UTF-8 in a form", FORM, b"data=\xff", 400, "broken_body"),
    ]
}

fn wrong_fields_in_json() -> Vec<Bad> {
    let deep = format!("{{\"data\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    vec![
        wrong(JSON, "[]", "body"),
        wrong(JSON, "\"data\"", "body"),
        wrong(JSON, "null", "body"),
        wrong(JSON, "{}", "data"),
        wrong(JSON, r#"{"data": null}"#, "data"),
        wrong(JSON, r#"{"data": 1}"#, "data"),
        wrong(JSON, r#"{"data": true}"#, "data"),
        wrong(JSON, r#"{"data": "x", "data": "y"}"#, "data"),
        wrong(JSON, r#"{"data": "x", "extra": 1}"#, "extra"),
        wrong(JSON, r#"{"Data": "x"}"#, "Data"),
        wrong(JSON, r#"{"data": "x", "sleep": -1}"#, "sleep"),
        wrong(JSON, r#"{"data": "x", "sleep": 60.001}"#, "sleep"),
        wrong(JSON, r#"{"data": "x", "sleep": 1e300}"#, "sleep"),
        wrong(JSON, r#"{"data": "x", "sleep": 1e999}"#, "sleep"),
        wrong(JSON, r#"{"data": "x", "sleep": "1"}"#, "sleep"),
        wrong(JSON, r#"{"data": "x", "sleep": null}"#, "sleep"),
        wrong(JSON, r#"{"data": "x", "sleep": [1]}"#, "sleep"),
        wrong(JSON, r#"{"data": "x", "skip_release": 1}"#, "skip_release"),
        wrong(JSON, r#"{"data": "x", "skip_release": "true"}"#, "skip_release"),
        wrong(JSON, r#"{"data": "x", "skip_release": null}"#, "skip_release"),
        wrong(JSON, r#"{"data": ["a", ["b"]]}"#, "data[1]"),
        wrong(JSON, r#"{"data": ["a", {"b": 1}]}"#, "data[1]"),
        wrong(JSON, r#"{"data": {"a": [1]}}"#, "data.a"),
        wrong(JSON, r#"{"data": ["1", "2", "3"]}"#, "data"),
        wrong(JSON, r#"{"data": {"c": 1}}"#, "data.c"),
        wrong(JSON, r#"{"data": {"a": 1, "a": 2}}"#, "data.a"),
        wrong(JSON, r#"{"data": {"token": 1}}"#, "data.token"),
        wrong(JSON, r#"{"data": {"timestamp": "now"}}"#, "data.timestamp"),
        wrong(JSON, r#"{"data": "a\u0000b"}"#, "data"),
        wrong(JSON, r#"{"data": ["a", "\u0000"]}"#, "data[1]"),
        wrong(JSON, r#"{"data": {"a": "\u0000"}}"#, "data.a"),
        wrong(JSON, deep, "data[0]"),
    ]
}

fn wrong_fields_in_forms() -> Vec<Bad> {
    vec![
        wrong(FORM, "", "data"),
        wrong(FORM, "sleep=1", "data"),
        wrong(FORM, "data=a&data=b", "data"),
        wrong(FORM, "data=a&extra=b", "extra"),
        wrong(FORM, "data=a%00b", "data"),
        wrong(FORM, "data=a&sleep=NaN", "sleep"),
        wrong(FORM, "data=a&sleep=inf", "sleep"),
        wrong(FORM, "data=a&sleep=-1", "sleep"),
        wrong(FORM, "data=a&sleep=", "sleep"),
        wrong(FORM, "data=a&sleep=1s", "sleep"),
        wrong(FORM, "data=a&skip_release=yes", "skip_release"),
        wrong(FORM, r#"{"data": "x"}"#, "data"),
    ]
}

/// Wrong sizes, media types, methods and paths.
fn wrong_requests() -> Vec<Bad> {
    let mut cases = vec![
        bad("a body over the limit", JSON, format!("{{\"data\": \"{}\"}}", "x".repeat(1 << 20)), 413, "body_too_large"),
        bad("a body far over the limit", JSON, "x".repeat(8 << 20), 413, "body_too_large"),
        bad("a large body of a wrong type", "text/html", "x".repeat(8 << 20), 415, "unsupported_media_type"),
        bad("a text of another kind", "text/html", "hello", 415, "unsupported_media_type"),
        bad("multipart", "multipart/form-data; boundary=x", "--x--", 415, "unsupported_media_type"),
        bad(
            "another character set",
            "application/json; charset=latin1",
            "{\"data\": \"x\"}",
            415,
            "unsupported_media_type",
        ),
        bad("no media type", "json", "{\"data\": \"x\"}", 415, "unsupported_media_type"),
    ];
    let ok = || bad("", JSON, r#"{"data": "x"}"#, 0, "");
    cases.push(Bad { what: "no type", content_type: None, status: 415, code: "unsupported_media_type", ..ok() });
    for method in ["GET", "PUT", "DELETE", "PATCH", "HEAD", "BREW"] {
        cases.push(Bad { what: "a wrong method", method, status: 405, code: "method_not_allowed", ..ok() });
    }
    for path in ["/x", "/Append", "/append/", "/append/x", "//append", "/append%00", "/..%2fappend"] {
        cases.push(Bad { what: "an unknown path", path, status: 404, code: "not_found", ..ok() });
    }
    cases
}

async fn refused(replica: &Replica, case: Bad) {
    let Bad { what, method, path, content_type, body, status, code, field } = case;
    let context = format!("{what}: {method} {path} {:.80}", String::from_utf8_lossy(&body));
    let mut request = replica.request(method.parse().expect("a method"), path).body(body);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let response = request.header("x-request-id", "mine").send().await.unwrap_or_else(|e| panic!("{context}: {e}"));
    assert_eq!(response.status().as_u16(), status, "{context}");
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{context}");
    assert_eq!(response.headers()["x-request-id"], "mine", "{context}");
    assert_eq!(response.headers()["cache-control"], "no-store", "{context}");
    if status == 405 {
        assert_eq!(response.headers()["allow"], "POST", "{context}");
    }
    if method == "HEAD" {
        return;
    }
    let length = header(&response, "content-length").to_owned();
    let text = response.text().await.expect("text");
    assert!(text.ends_with("}\n") && length == text.len().to_string(), "{context}: {length} {text:?}");
    let problem: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(problem["code"], code, "{context}: {problem}");
    assert_eq!(problem["status"], status, "{context}");
    assert_eq!(problem["outcome"], "not_written", "{context}");
    assert_eq!(problem["retryable"], false, "{context}");
    assert_eq!(problem["request_id"], "mine", "{context}");
    assert_eq!(problem["field"].as_str(), field, "{context}: {problem}");
    for text in ["type", "title", "detail"] {
        assert!(problem[text].as_str().is_some_and(|text| !text.is_empty()), "{context}: {problem}");
    }
}

#[tokio::test]
async fn bad_request_gets_its_code_and_leaves_the_file_unchanged() {
    let before = b"timestamp,a,token,b\n2026-01-01T00:00:00.000Z,x,1,y\n";
    let bench = Bench::with_file(On::Embedded, before);
    let replica = bench.replica(&[]);
    let cases = [broken_bodies(), wrong_fields_in_json(), wrong_fields_in_forms(), wrong_requests()];
    for case in cases.into_iter().flatten() {
        refused(&replica, case).await;
        assert_eq!(bench.content().as_bytes(), before);
    }
    replica.append_text("still served").await;
}

#[tokio::test]
async fn json_sent_as_a_form_is_told_the_header_to_add() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let request = replica.request(reqwest::Method::POST, "/append").header("content-type", FORM);
    let problem: Value = request.body(r#"{"data":"x"}"#).send().await.expect("an answer").json().await.expect("JSON");
    assert!(problem["detail"].as_str().expect("text").contains("Content-Type: application/json"), "{problem}");
}

#[tokio::test]
async fn simulation_off_refuses_sleep_and_skip_release() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_SIMULATION", "off")]);
    for body in [json!({"data": "x", "sleep": 0.1}), json!({"data": "x", "skip_release": true})] {
        let (status, problem) = replica.append(body).await;
        assert_eq!((status, &problem["code"]), (403, &json!("simulation_off")));
    }
    let (status, _) = replica.append(json!({"data": "x", "sleep": 0, "skip_release": false})).await;
    assert_eq!(status, 201);
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test]
async fn malformed_idempotency_key_is_refused() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    for key in ["", "\"\"", "\"open", "é", &"k".repeat(256)] {
        let request = replica.post(&json!({"data": "x"})).header("idempotency-key", key);
        let (status, problem) = answer(request).await;
        assert_eq!((status, &problem["code"], &problem["outcome"]), (400, &json!("bad_key"), &json!("not_written")));
    }
    let twice = replica.post(&json!({"data": "x"})).header("idempotency-key", "a").header("idempotency-key", "b");
    assert_eq!(answer(twice).await.0, 400);
    assert!(bench.rows().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_body_writes_nothing() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let address = replica.url.strip_prefix("http://").expect("a URL");
    let mut stream = TcpStream::connect(address).expect("connects");
    let head = "POST /append HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"data\": \"x\"}";
    stream.write_all(head.as_bytes()).expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("half closed");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("a clean end");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("broken_body"), "{answer}");
    replica.append_text("next").await;
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test]
async fn request_ids_are_returned_or_made() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = replica.post(&json!({"data": "x"})).header("x-request-id", "mine").header("traceparent", given);
    let response = request.send().await.expect("an answer");
    assert_eq!(
        (&response.headers()["x-request-id"], &response.headers()["traceparent"]),
        (&"mine".parse().expect("a value"), &given.parse().expect("a value"))
    );
    let response =
        replica.post(&json!({"data": "x"})).header("x-request-id", "not a token").send().await.expect("an answer");
    assert_eq!(response.headers()["x-request-id"].len(), 36);
    assert_eq!(response.headers()["traceparent"].len(), 55);
}
