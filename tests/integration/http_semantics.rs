//! HTTP manners: what a path can do, who may use it from a page of his own, how long it took.

use reqwest::Method;
use serde_json::json;

use crate::support::{Bench, On, Replica};

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
async fn options_tells_what_a_path_can_do_and_of_an_unknown_one_that_it_is() {
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
        let (status, told) = headers(&replica, Method::OPTIONS, path, &[]).await;
        assert_eq!((status, told["allow"].to_str().expect("text")), (204, allow), "{path}");
        let (status, told) = headers(&replica, Method::PATCH, path, &[]).await;
        assert_eq!((status, told["allow"].to_str().expect("text")), (405, allow), "{path}");
    }
    assert_eq!(headers(&replica, Method::OPTIONS, "/nothing", &[]).await.0, 404);
}

#[tokio::test]
async fn pages_of_other_origins_may_only_where_the_configuration_says_so() {
    let asked = [("origin", "https://a.example"), ("access-control-request-method", "POST")];
    let bench = Bench::new(On::Embedded);
    let closed = bench.replica(&[]);
    for method in [Method::OPTIONS, Method::GET] {
        let (_, told) = headers(&closed, method, "/rows", &asked).await;
        assert!(!told.contains_key("access-control-allow-origin"), "{told:?}");
    }
    let origins = "https://a.example,http://localhost:3000";
    let some = bench.replica(&[("ROWLOCK_CORS_ORIGINS", origins)]);
    let (status, told) = headers(&some, Method::OPTIONS, "/append", &asked).await;
    assert_eq!((status, &told["access-control-allow-origin"]), (200, &"https://a.example".parse().expect("a header")));
    assert!(told["access-control-allow-headers"].to_str().expect("text").contains("idempotency-key"));
    let (_, told) = headers(&some, Method::GET, "/rows", &asked).await;
    assert_eq!(told["access-control-allow-origin"], "https://a.example");
    assert!(told["access-control-expose-headers"].to_str().expect("text").contains("retry-after"));
    let (_, told) = headers(&some, Method::GET, "/nothing", &asked).await;
    assert_eq!(told["access-control-allow-origin"], "https://a.example", "a page may read what is wrong, too");
    let (_, told) = headers(&some, Method::GET, "/rows", &[("origin", "https://b.example")]).await;
    assert!(!told.contains_key("access-control-allow-origin"), "{told:?}");
    let any = bench.replica(&[("ROWLOCK_CORS_ORIGINS", "*")]);
    let (_, told) = headers(&any, Method::GET, "/rows", &asked).await;
    assert_eq!(told["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn an_answer_tells_how_long_its_wait_its_hold_and_its_sync_took() {
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
    assert!(!repeated.headers().contains_key("server-timing"), "those times were another request's");
}

#[tokio::test]
async fn a_log_line_names_the_request_and_the_trace_that_it_belongs_to() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let request = replica.post(&json!({"data": "x"})).header("traceparent", &parent).header("x-request-id", "order-17");
    let response = request.send().await.expect("an answer");
    assert_eq!(response.headers()["traceparent"], parent.as_str());
    crate::support::until("it is logged", async || replica.log().contains("order-17")).await;
    let log = replica.log();
    let line = log.lines().find(|line| line.contains("order-17")).expect("a line");
    assert!(line.contains(trace) && line.contains("outcome=\"written\""), "{line}");
}
