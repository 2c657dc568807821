//! HTTP semantics: methods, CORS, timing headers, log lines, and the form of JSON answers.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, header, until};

async fn headers(
    replica: &Replica,
    method: Method,
    path: &str,
    sent: &[(&str, &str)],
) -> (u16, reqwest::header::HeaderMap) {
    let request =
        sent.iter().fold(replica.request(method, path), |request, (name, value)| request.header(*name, *value));
    let response = request.send().await.expect("an answer");
    (response.status().as_u16(), response.headers().clone())
}

#[tokio::test]
async fn options_lists_the_methods_of_a_path() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    for (path, allow) in [
        ("/append", "POST"),
        ("/append/batch", "POST"),
        ("/rows", "GET,HEAD"),
        ("/rows.csv", "GET,HEAD"),
        ("/events", "GET,HEAD"),
        ("/lock", "GET,HEAD,DELETE"),
        ("/livez", "GET,HEAD"),
    ] {
        let (status, answered) = headers(&replica, Method::OPTIONS, path, &[]).await;
        assert_eq!((status, answered["allow"].to_str().expect("text")), (204, allow), "{path}");
        let (status, answered) = headers(&replica, Method::PATCH, path, &[]).await;
        assert_eq!((status, answered["allow"].to_str().expect("text")), (405, allow), "{path}");
    }
    assert_eq!(headers(&replica, Method::OPTIONS, "/nothing", &[]).await.0, 404);
}

#[tokio::test]
async fn cors_allows_the_configured_origins_only() {
    let preflight = [("origin", "https://a.example"), ("access-control-request-method", "POST")];
    let bench = Bench::new(On::Embedded);
    let closed = bench.replica(&[]);
    for method in [Method::OPTIONS, Method::GET] {
        let (_, answered) = headers(&closed, method, "/rows", &preflight).await;
        assert!(!answered.contains_key("access-control-allow-origin"), "{answered:?}");
    }
    let origins = "https://a.example,http://localhost:3000";
    let some = bench.replica(&[("ROWLOCK_CORS_ORIGINS", origins)]);
    let (status, answered) = headers(&some, Method::OPTIONS, "/append", &preflight).await;
    assert_eq!(
        (status, &answered["access-control-allow-origin"]),
        (200, &"https://a.example".parse().expect("a header"))
    );
    let allowed = answered["access-control-allow-headers"].to_str().expect("text").to_owned();
    for name in ["authorization", "content-encoding", "content-type", "idempotency-key", "if-match", "last-event-id"] {
        assert!(allowed.split(',').any(|allowed| allowed == name), "{name}: {allowed}");
    }
    let (_, answered) = headers(&some, Method::GET, "/rows", &preflight).await;
    assert_eq!(answered["access-control-allow-origin"], "https://a.example");
    assert!(answered["access-control-expose-headers"].to_str().expect("text").contains("retry-after"));
    let (_, answered) = headers(&some, Method::GET, "/nothing", &preflight).await;
    assert_eq!(answered["access-control-allow-origin"], "https://a.example", "a page can read refusals, too");
    let (_, answered) = headers(&some, Method::GET, "/rows", &[("origin", "https://b.example")]).await;
    assert!(!answered.contains_key("access-control-allow-origin"), "{answered:?}");
    let any = bench.replica(&[("ROWLOCK_CORS_ORIGINS", "*")]);
    let (_, answered) = headers(&any, Method::GET, "/rows", &preflight).await;
    assert_eq!(answered["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn server_timing_reports_wait_hold_and_sync() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let request = || replica.post(&json!({"data": "x", "sleep": 0.05})).header("idempotency-key", "k");
    let response = request().send().await.expect("an answer");
    let timing = response.headers()["server-timing"].to_str().expect("text").to_owned();
    let ms: Vec<(String, f64)> = timing
        .split(", ")
        .map(|part| part.split_once(";dur=").expect("a duration"))
        .map(|(name, ms)| (name.to_owned(), ms.parse().expect("a number")))
        .collect();
    let names: Vec<_> = ms.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["wait", "hold", "sync"]);
    assert!(ms[1].1 >= 50.0 && ms[2].1 > 0.0 && ms[2].1 < ms[1].1 + 1.0, "{timing}");
    let repeated = request().send().await.expect("an answer");
    assert!(repeated.headers().contains_key("idempotent-replayed"));
    assert!(!repeated.headers().contains_key("server-timing"), "the times belong to the first request");
}

#[tokio::test]
async fn log_line_names_request_and_trace() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let request = replica.post(&json!({"data": "x"})).header("traceparent", &parent).header("x-request-id", "order-17");
    let response = request.send().await.expect("an answer");
    assert_eq!(response.headers()["traceparent"], parent.as_str());
    until("it is logged", async || replica.log().contains("order-17")).await;
    let log = replica.log();
    let line = log.lines().find(|line| line.contains("order-17")).expect("a line");
    assert!(line.contains(trace) && line.contains("outcome=\"written\""), "{line}");
}

#[tokio::test]
async fn traceparent_is_continued_only_if_it_is_valid() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
    let valid = format!("00-{ids}-01");
    for (sent, is_continued) in [
        (vec![valid.clone()], true),
        (vec![format!("01-{ids}-01-extra")], true),
        (vec![format!("00-{ids}-01-extra")], false),
        (vec![format!("ff-{ids}-01")], false),
        (vec![format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32))], false),
        (vec![valid.clone(), valid.clone()], false),
    ] {
        let request = replica.request(Method::GET, "/livez");
        let request = sent.iter().fold(request, |request, value| request.header("traceparent", value));
        let response = request.send().await.expect("an answer");
        let answered = header(&response, "traceparent");
        assert_eq!((answered == valid, answered.len()), (is_continued, 55), "{sent:?}: {answered}");
    }
}

/// Sends a request whose answer must be JSON with a newline at its end, and a `Content-Length` that counts it.
async fn check_json_line(request: RequestBuilder, status: u16, content_type: &str) {
    let response = request.send().await.expect("an answer");
    let context = response.url().to_string();
    assert_eq!((response.status().as_u16(), header(&response, "content-type")), (status, content_type), "{context}");
    let length: usize = header(&response, "content-length").parse().expect("a length");
    let text = response.text().await.expect("text");
    assert!(text.ends_with("}\n") && length == text.len(), "{context}: {length} {text:?}");
    serde_json::from_str::<Value>(&text).expect("JSON");
}

#[tokio::test]
async fn json_answers_end_with_a_newline() {
    const JSON: &str = "application/json";
    const PROBLEM: &str = "application/problem+json";
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_API_TOKENS", "admin:token-of-an-admin,read:token-of-a-reader")]);
    let request = |method: Method, path: &str| replica.request(method, path).bearer_auth("token-of-an-admin");
    let post = |path: &str, content_type: &str, body: &'static str| {
        request(Method::POST, path).header("content-type", content_type).body(body)
    };
    for (content_type, body) in [(JSON, r#"{"data":"x"}"#), ("application/x-www-form-urlencoded", "data=x")] {
        check_json_line(post("/append", content_type, body), 201, JSON).await;
    }
    for _ in ["first", "replayed"] {
        let keyed = post("/append", JSON, r#"{"data":"y"}"#).header("idempotency-key", "k");
        check_json_line(keyed, 201, JSON).await;
    }
    check_json_line(post("/append/batch", "text/csv", "data\nx\n"), 201, JSON).await;
    check_json_line(request(Method::GET, "/rows"), 200, JSON).await;
    check_json_line(request(Method::GET, "/lock"), 200, JSON).await;
    check_json_line(request(Method::DELETE, "/lock"), 200, JSON).await;

    check_json_line(post("/append", JSON, "{}"), 422, PROBLEM).await;
    check_json_line(post("/append/batch", "text/csv", ""), 422, PROBLEM).await;
    check_json_line(request(Method::GET, "/rows?from=1"), 422, PROBLEM).await;
    check_json_line(request(Method::GET, "/rows.csv").header("range", "bytes=9999-"), 416, PROBLEM).await;
    check_json_line(request(Method::GET, "/events?rows=x"), 422, PROBLEM).await;
    check_json_line(request(Method::GET, "/nothing"), 404, PROBLEM).await;
    check_json_line(request(Method::PUT, "/lock"), 405, PROBLEM).await;
    check_json_line(replica.request(Method::GET, "/rows"), 401, PROBLEM).await;
    check_json_line(replica.request(Method::DELETE, "/lock").bearer_auth("token-of-a-reader"), 403, PROBLEM).await;
}
