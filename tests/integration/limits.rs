//! Limits of connections, request heads, bodies and requests per client, and the behaviour under overload.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bench, On, PATIENCE, Replica, answer, until};

fn connect(replica: &Replica) -> TcpStream {
    let stream = replica.connect();
    stream.set_read_timeout(Some(2 * PATIENCE)).expect("settable");
    stream
}

/// Everything that arrives until the service closes the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    // A reset ends the stream, too.
    let _ = stream.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn incomplete_head_and_idle_connection_are_closed() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let began = Instant::now();
    let waiting =
        ["", "GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ", "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"].map(|sent| {
            let mut stream = connect(&replica);
            stream.write_all(sent.as_bytes()).expect("sent");
            tokio::task::spawn_blocking(move || rest(stream))
        });
    for (number, closed) in waiting.into_iter().enumerate() {
        let text = closed.await.expect("no panic");
        assert_eq!(text.contains("200 OK"), number == 2, "{text}");
    }
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
}

#[tokio::test]
async fn too_large_head_is_refused() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    for head in [format!("x-long: {}\r\n", "y".repeat(1 << 20)), many] {
        let mut stream = connect(&replica);
        // The service may refuse the head before it has arrived completely.
        let _ = stream.write_all(format!("GET /livez HTTP/1.1\r\nhost: x\r\n{head}\r\n").as_bytes());
        let text = tokio::task::spawn_blocking(move || rest(stream)).await.expect("no panic");
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    }
    assert_eq!(answer(replica.request(Method::GET, "/livez")).await.0, 200);
}

#[tokio::test]
async fn connection_over_the_limit_is_refused_until_one_closes() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_MAX_CONNECTIONS", "3")]);
    let mut kept: Vec<TcpStream> = (0..3).map(|_| connect(&replica)).collect();
    for stream in &mut kept {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    let mut one_more = connect(&replica);
    one_more.write_all(b"POST /append HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\ndata=x").expect("sent");
    let text = rest(one_more);
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 1"), "{head}");
    let problem: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!((&problem["code"], &problem["outcome"]), (&json!("queue_full"), &json!("not_written")));
    assert!(body.ends_with("}\n") && head.contains(&format!("content-length: {}", body.len())), "{text:?}");
    kept.pop();
    until("a connection is accepted again", async || {
        let sent = replica.request(Method::GET, "/livez").send().await;
        sent.is_ok_and(|response| response.status() == 200)
    })
    .await;
    assert_eq!(bench.rows().len(), 0);
}

#[tokio::test]
async fn bodies_share_the_budget_of_queue_bytes() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_QUEUE_BYTES", "64KiB"), ("ROWLOCK_CSV_HEADER", "data")]);
    let body = format!("data\n{}", "x\n".repeat(20_000));
    let begin = || {
        let mut stream = connect(&replica);
        let head = "POST /append/batch HTTP/1.0\r\nhost: x\r\ncontent-type: text/csv\r\n";
        stream.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes()).expect("sent");
        stream.write_all(&body.as_bytes()[..39_000]).expect("sent");
        stream
    };
    let end = async |mut stream: TcpStream| {
        stream.write_all(&body.as_bytes()[39_000..]).expect("sent");
        tokio::task::spawn_blocking(move || rest(stream)).await.expect("no panic")
    };
    // How much of one body has arrived when the other one ends varies.
    let mut refused = None;
    for _ in 0..50 {
        let (first, second) = (begin(), begin());
        let answers = [end(first).await, end(second).await];
        refused = answers.into_iter().find(|answer| !answer.starts_with("HTTP/1.0 201"));
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("two bodies exceed the budget");
    assert!(refused.starts_with("HTTP/1.0 503") && refused.contains("queue_full"), "{refused}");
    let alone = end(begin()).await;
    assert!(alone.starts_with("HTTP/1.0 201"), "{alone}");
}

#[tokio::test]
async fn client_over_its_rate_limit_is_refused_with_a_delay() {
    let bench = Bench::new(On::Embedded);
    let settings = [
        ("ROWLOCK_RATE_LIMIT", "1:3"),
        ("ROWLOCK_API_TOKENS", "append:token-of-client-one,append:token-of-client-two"),
    ];
    let replica = bench.replica(&settings);
    let post = async |token: &str| {
        let request = replica.post(&json!({"data": "x"})).header("authorization", format!("Bearer {token}"));
        request.send().await.expect("an answer")
    };
    for left in [2, 1, 0] {
        let response = post("token-of-client-one").await;
        assert_eq!(response.status(), 201);
        assert_eq!(response.headers()["ratelimit-policy"], "\"client\";q=3;w=3");
        let sent = response.headers()["ratelimit"].to_str().expect("text").to_owned();
        assert!(sent.starts_with(&format!("\"client\";r={left};t=")), "{sent}");
    }
    let response = post("token-of-client-one").await;
    assert_eq!(response.status(), 429);
    assert_eq!(
        (&response.headers()["retry-after"], &response.headers()["ratelimit"]),
        (&"1".parse().expect("a header"), &"\"client\";r=0;t=1".parse().expect("a header"))
    );
    let problem: Value = response.json().await.expect("JSON");
    assert_eq!(
        (&problem["code"], &problem["outcome"], &problem["retryable"]),
        (&json!("rate_limited"), &json!("not_written"), &json!(true))
    );
    assert_eq!(post("token-of-client-two").await.status(), 201, "another token has its own limit");
    let statuses = [post("wrong").await, post("wrong").await, post("wrong").await, post("wrong").await];
    assert_eq!(
        statuses.map(|response| response.status().as_u16()),
        [401, 401, 401, 429],
        "guesses are limited by address"
    );
    assert_eq!(answer(replica.request(Method::GET, "/readyz")).await.0, 200, "a probe is never refused");
    until("a request is accepted again", async || post("token-of-client-one").await.status() == 201).await;
}

/// Sends requests without pauses. Returns how often each status came, and the milliseconds that each accepted row took.
async fn load(replica: &Arc<Replica>, clients: usize, requests: usize) -> (BTreeMap<u16, usize>, Vec<u64>) {
    let mut tasks = Vec::new();
    for client in 0..clients {
        let replica = Arc::clone(replica);
        tasks.push(tokio::spawn(async move {
            let (mut statuses, mut took) = (BTreeMap::new(), Vec::new());
            for n in 0..requests {
                let response = replica.post(&json!({"data": format!("{client}-{n}")})).send().await.expect("an answer");
                let status = response.status().as_u16();
                *statuses.entry(status).or_default() += 1;
                let retry_after = response.headers().get("retry-after").cloned();
                let body: Value = response.json().await.expect("JSON");
                if status == 201 {
                    took.push(body["waited_ms"].as_u64().expect("ms") + body["held_ms"].as_u64().expect("ms"));
                } else {
                    assert_eq!(
                        (&body["code"], &body["outcome"]),
                        (&json!("queue_full"), &json!("not_written")),
                        "{body}"
                    );
                    let seconds: u64 = retry_after.expect("a header").to_str().expect("text").parse().expect("seconds");
                    assert!((1..=60).contains(&seconds), "{seconds}");
                }
            }
            (statuses, took)
        }));
    }
    let (mut statuses, mut took) = (BTreeMap::new(), Vec::new());
    for task in tasks {
        let (some, more) = task.await.expect("no panic");
        some.into_iter().for_each(|(status, count): (u16, usize)| *statuses.entry(status).or_default() += count);
        took.extend(more);
    }
    took.sort_unstable();
    (statuses, took)
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_refused_early_and_loses_no_accepted_row() {
    let bench = Bench::new(On::Embedded);
    let settings = [("ROWLOCK_QUEUE_ROWS", "10"), ("RUST_LOG", "warn,rowlock::server=info")];
    let replica = Arc::new(bench.replica(&settings));
    let p99 = |took: &[u64]| took[took.len() * 99 / 100];
    let (mut at_capacity, mut overloaded, mut taken) = (Vec::new(), Vec::new(), 0);
    let mut before = None;
    // Both loads alternate, so that other work on the machine slows both.
    for _ in 0..3 {
        let (statuses, took) = load(&replica, 10, 160).await;
        assert_eq!(statuses, BTreeMap::from([(201, 1600)]), "within the capacity");
        at_capacity.push(p99(&took));
        before.get_or_insert_with(|| replica.resident_kib());
        let (statuses, took) = load(&replica, 60, 60).await;
        assert!(statuses.keys().all(|status| [201, 503].contains(status)), "{statuses:?}");
        assert!(statuses.get(&503).is_some_and(|&refused| refused > 100), "{statuses:?}");
        overloaded.push(p99(&took));
        taken += 1600 + statuses[&201];
    }
    at_capacity.sort_unstable();
    let least = overloaded.iter().min().expect("three");
    assert!(*least <= 3 * at_capacity[1].max(5), "{overloaded:?} ms, and {at_capacity:?} ms at capacity");
    let grown = replica.resident_kib().saturating_sub(before.expect("measured"));
    assert!(grown < 32 << 10, "{grown} KiB");
    assert_eq!(bench.rows().len(), taken);
}
