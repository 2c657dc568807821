//! `GET /events`: each replica sends the events of all replicas, within bounds for slow subscribers.

use std::{
    fs,
    time::{Duration, Instant},
};

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::support::{Bench, On, PATIENCE, Replica, answer, until, until_free};

/// One event: name, id, data.
type Event = (String, Option<u64>, Value);

/// A subscriber.
struct Subscriber {
    response: Response,
    text: String,
    /// The data of the first event.
    hello: Value,
}

impl Subscriber {
    async fn open(replica: &Replica, query: &str, last_event_id: Option<u64>) -> Self {
        let mut request = replica.request(Method::GET, &format!("/events{query}"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id.to_string());
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let mut subscriber = Self { response, text: String::new(), hello: Value::Null };
        let (name, id, hello) = subscriber.next().await.expect("an event");
        assert_eq!((name.as_str(), id), ("hello", None));
        subscriber.hello = hello;
        subscriber
    }

    /// Waits for the stats of all replicas, so that each knows of the subscriber.
    async fn settled(replica: &Replica, others: usize) -> Self {
        let mut subscriber = Self::open(replica, "", None).await;
        subscriber
            .find(|(name, _, data)| name == "stats" && data["replicas"].as_array().map(Vec::len) == Some(others))
            .await;
        subscriber
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (parse(event), rest.to_owned());
                self.text = rest;
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("an event in time");
            self.text.push_str(std::str::from_utf8(&chunk.expect("a stream")?).expect("UTF-8"));
        }
    }

    async fn find(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next().await.expect("the stream continues");
            if wanted(&event) {
                return event;
            }
        }
    }

    /// The next lock changes as `change replica token other`.
    async fn changes(&mut self, count: usize) -> Vec<String> {
        let mut changes = Vec::new();
        while changes.len() < count {
            let (_, _, change) = self.find(|(name, ..)| name == "lock").await;
            let text = |name: &str| change[name].as_str().unwrap_or("-").to_owned();
            changes.push(format!("{} {} {} {}", text("change"), text("replica"), change["token"], text("other")));
        }
        changes
    }
}

/// `None` for a comment.
fn parse(text: &str) -> Option<Event> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data")?).expect("JSON");
    Some((field("event")?.to_owned(), field("id").map(|id| id.parse().expect("an offset")), data))
}

fn named(bench: &Bench, name: &str) -> Replica {
    bench.replica(&[("ROWLOCK_REPLICA", name), ("ROWLOCK_CSV_HEADER", "token,data")])
}

/// The column `data` of an event's rows.
fn data_cells(event: &Value) -> Vec<String> {
    let rows = event["rows"].as_array().expect("rows");
    rows.iter().map(|row| row["fields"]["data"].as_str().expect("text").to_owned()).collect()
}

/// Receives rows up to the end of the file, and checks that there is no gap.
async fn rows_up_to(subscriber: &mut Subscriber, mut at: u64, end: u64) -> (u64, Vec<String>) {
    let (mut count, mut rows) = (0, Vec::new());
    while at < end {
        let (_, id, event) = subscriber.find(|(name, ..)| name == "rows").await;
        assert_eq!(event["offset"], at, "no gap and no repetition");
        at = event["end"].as_u64().expect("an offset");
        assert_eq!(id, Some(at), "the id is the offset to resume at");
        count += event["count"].as_u64().expect("a number");
        rows.extend(data_cells(&event));
    }
    (count, rows)
}

#[tokio::test]
async fn hello_reports_roles_and_accepted_settings() {
    let bench = Bench::new(On::Embedded);
    let replica =
        bench.replica(&[("ROWLOCK_REPLICA", "one"), ("ROWLOCK_LOCK_TTL", "3s"), ("ROWLOCK_MAX_SLEEP", "1500ms")]);
    let open = json!({
        "replica": "one", "roles": ["append", "read", "admin"], "by_token": false, "simulation": true, "sleep_max_ms": 1500,
        "lock_ttl_ms": 3000, "columns": ["timestamp", "replica", "token", "data"],
    });
    assert_eq!(Subscriber::open(&replica, "", None).await.hello, open);

    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[
        (
            "ROWLOCK_API_TOKENS",
            "read:token-that-reads,append:token-that-does-both,read:token-that-does-both,admin:token-that-does-all",
        ),
        ("ROWLOCK_SIMULATION", "off"),
        ("ROWLOCK_CSV_HEADER", "none"),
    ]);
    for (token, roles) in [
        ("token-that-reads", json!(["read"])),
        ("token-that-does-both", json!(["append", "read"])),
        ("token-that-does-all", json!(["append", "read", "admin"])),
    ] {
        let request = replica.request(Method::GET, "/events").bearer_auth(token);
        let mut response = request.send().await.expect("an answer");
        let chunk = response.chunk().await.expect("a stream").expect("an event");
        let text = String::from_utf8(chunk.to_vec()).expect("UTF-8");
        let (name, _, hello) = parse(text.split("\n\n").next().expect("an event")).expect("an event");
        assert_eq!((&*name, &hello["roles"], &hello["by_token"]), ("hello", &roles, &json!(true)), "{hello}");
        assert_eq!((&hello["simulation"], &hello["columns"]), (&json!(false), &Value::Null), "{hello}");
    }
}

#[tokio::test]
async fn rows_of_all_replicas_reach_every_subscriber() {
    for on in [On::Redis, On::Embedded] {
        let bench = Bench::new(on);
        let replicas = ["one", "two", "three"].map(|name| named(&bench, name));
        let mut subscriber = Subscriber::open(&replicas[2], "?rows=100&last=5", None).await;
        let (name, id, first) = subscriber.next().await.expect("an event");
        assert_eq!((name.as_str(), id), ("rows", Some(11)));
        assert_eq!(first, json!({"offset": 11, "end": 11, "count": 0, "rows": []}));
        let all: Vec<String> = (0..60).map(|n| format!("{n}\n\"row\"")).collect();
        for (n, text) in all.iter().enumerate() {
            replicas[n % 2].append_text(text).await;
        }
        let (count, rows) = rows_up_to(&mut subscriber, 11, bench.content().len() as u64).await;
        assert_eq!((count, rows), (60, all));
    }
}

#[tokio::test]
async fn leading_bom_of_a_cell_reaches_subscribers() {
    // Another program appended the first row.
    let bench = Bench::with_file(On::Embedded, "data\n\u{feff}old\n".as_bytes());
    let replica = bench.replica(&[]);
    let mut subscriber = Subscriber::open(&replica, "?rows=100&last=5", None).await;
    let (_, _, first) = subscriber.find(|(name, ..)| name == "rows").await;
    assert_eq!(data_cells(&first), ["\u{feff}old"]);
    replica.append_text("\u{feff}new").await;
    let (_, _, next) = subscriber.find(|(name, ..)| name == "rows").await;
    assert_eq!(data_cells(&next), ["\u{feff}new"]);
}

#[tokio::test]
async fn lock_changes_of_all_replicas_are_sent() {
    let bench = Bench::new(On::Redis);
    let replicas = ["one", "two"].map(|name| named(&bench, name));
    let mut subscriber = Subscriber::settled(&replicas[1], 2).await;
    let first = replicas[0].append(json!({"data": "a", "sleep": 0.5}));
    let second = async {
        crate::support::until_held(&bench).await;
        replicas[1].append(json!({"data": "b", "skip_release": true})).await
    };
    let ((status, _), (_, ack)) = tokio::join!(first, second);
    assert_eq!((status, &ack["released"]), (201, &json!(false)));
    // Each replica sends its own changes, so the order between them varies.
    let mut changes = subscriber.changes(4).await;
    changes.sort();
    assert_eq!(changes, ["abandoned two 2 -", "acquired one 1 -", "acquired two 2 -", "handed_over one 1 two"]);

    let (status, forced) = answer(replicas[0].request(Method::DELETE, "/lock")).await;
    assert_eq!((status, &forced["released"]), (200, &json!(true)), "{forced}");
    assert_eq!(subscriber.changes(1).await, ["forced one 3 two"]);
    until_free(&bench).await;
    replicas[0].append_text("c").await;
    assert_eq!(subscriber.changes(2).await, ["acquired one 4 -", "released one 4 -"]);

    let settings = [("ROWLOCK_REPLICA", "brief"), ("ROWLOCK_LOCK_TTL", "300ms"), ("ROWLOCK_CSV_HEADER", "token,data")];
    let brief = bench.replica(&settings);
    subscriber.find(|(name, _, data)| name == "stats" && data["replicas"].as_array().map(Vec::len) == Some(3)).await;
    let (sleeping, taken) = (brief.append(json!({"data": "d", "sleep": 20})), async {
        crate::support::until_held(&bench).await;
        bench.redis().cli(&["set", crate::support::LOCK_KEY, "foreign"]);
    });
    let ((status, problem), ()) = tokio::join!(sleeping, taken);
    assert_eq!((status, &problem["code"]), (503, &json!("lock_lost")), "{problem}");
    assert_eq!(subscriber.changes(2).await, ["acquired brief 5 -", "lost brief 5 -"]);
}

#[tokio::test]
async fn changes_before_the_first_subscriber_are_sent_to_it() {
    for on in [On::Redis, On::Embedded] {
        let bench = Bench::new(on);
        let replicas = ["one", "two"].map(|name| named(&bench, name));
        replicas[0].append_text("a").await;
        until_free(&bench).await;
        let sleeping = replicas[0].append(json!({"data": "b", "sleep": 3}));
        let subscribing = async {
            crate::support::until_held(&bench).await;
            // Nothing else happens to the lock until the sleep ends.
            let mut first = Subscriber::open(&replicas[1], "", None).await;
            let known = ["acquired one 1 -", "released one 1 -", "acquired one 2 -"];
            assert_eq!(first.changes(3).await, known, "on the other replica");
            // For later ones all of it comes before anything new, in the same order.
            let mut second = Subscriber::open(&replicas[1], "", None).await;
            for expected in known {
                let (name, _, change) = second.next().await.expect("an event");
                assert_eq!(
                    (&*name, &change["token"]),
                    ("lock", &json!(expected.split(' ').nth(2).map(str::parse::<u64>).and_then(Result::ok)))
                );
            }
            [first, second]
        };
        let ((status, ack), subscribers) = tokio::join!(sleeping, subscribing);
        assert_eq!((status, &ack["token"]), (201, &json!(2)), "{ack}");
        for mut subscriber in subscribers {
            assert_eq!(subscriber.changes(1).await, ["released one 2 -"], "each change once");
        }
    }
}

#[tokio::test]
async fn stats_of_all_replicas_are_sent_every_second() {
    let bench = Bench::new(On::Redis);
    let replicas = ["one", "two"].map(|name| named(&bench, name));
    let mut subscriber = Subscriber::settled(&replicas[0], 2).await;
    for n in 0..10 {
        replicas[1].append_text(&n.to_string()).await;
    }
    let (status, _) = replicas[1].append(json!({"data": 1})).await;
    assert_eq!(status, 422);
    let of = |stats: &Value, name: &str| {
        stats["replicas"].as_array()?.iter().find(|known| known["replica"] == name).cloned()
    };
    let (_, _, stats) = subscriber
        .find(|(name, _, data)| {
            let two = of(data, "two").unwrap_or_default();
            name == "stats" && two["rows"] == 10 && two["errors"]["invalid_field"] == 1
        })
        .await;
    let two = of(&stats, "two").expect("listed");
    assert_eq!((&two["state"], &two["version"]), (&json!("ready"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!((&two["lock"], &two["lock_in_reach"], &two["queue_rows"]), (&json!("redis"), &json!(true), &json!(0)));
    for figure in ["uptime_s", "rows_per_s", "queue_bytes", "queue_age_ms", "seen_ms_ago"] {
        assert!(two[figure].is_number(), "{figure}: {two}");
    }
    assert_eq!(stats["file"]["csv_bytes"], bench.content().len());
    assert_eq!(stats["file"]["journal_bytes"], 1 << 20);
    assert!(stats["file"]["free_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
    replicas[1].signal("STOP");
    subscriber.find(|(_, _, data)| of(data, "two").is_some_and(|two| two["seen_ms_ago"].as_u64() > Some(2000))).await;
    replicas[1].signal("CONT");
    subscriber.find(|(_, _, data)| of(data, "two").is_some_and(|two| two["seen_ms_ago"].as_u64() < Some(1500))).await;
}

#[tokio::test]
async fn returning_subscriber_misses_no_row() {
    let bench = Bench::new(On::Embedded);
    let mut replica = named(&bench, "one");
    let mut subscriber = Subscriber::open(&replica, "?rows=100", None).await;
    subscriber.find(|(name, ..)| name == "stats").await;
    replica.append_text("first").await;
    let (_, id, event) = subscriber.find(|(name, ..)| name == "rows").await;
    assert_eq!(data_cells(&event), ["first"]);
    drop(subscriber);
    for n in 0..5 {
        replica.append_text(&format!("missed {n}")).await;
    }
    replica.signal("TERM");
    assert!(replica.end().success());
    let replica = named(&bench, "again");
    let mut subscriber = Subscriber::open(&replica, "?rows=3", id).await;
    let (_, _, event) = subscriber.find(|(name, ..)| name == "rows").await;
    assert_eq!((&event["offset"], &event["count"]), (&json!(id), &json!(5)));
    assert_eq!(data_cells(&event), ["missed 2", "missed 3", "missed 4"], "the newest rows");
    let at = event["end"].as_u64().expect("an offset");
    replica.append_text("live").await;
    let (count, rows) = rows_up_to(&mut subscriber, at, bench.content().len() as u64).await;
    assert_eq!((count, rows), (1, vec!["live".to_owned()]));

    for (query, header, offset) in [
        (format!("?lastEventId={}", id.expect("an id")), None, json!(id)),
        ("?lastEventId=x".to_owned(), id, json!(id)),
    ] {
        let mut subscriber = Subscriber::open(&replica, &query, header).await;
        let (_, _, event) = subscriber.find(|(name, ..)| name == "rows").await;
        assert_eq!(event["offset"], offset, "{query}");
    }

    for id in [id.expect("an id") + 1, 1, u64::MAX] {
        let mut subscriber = Subscriber::open(&replica, "", Some(id)).await;
        // Stats may arrive in between.
        let (first, ..) = subscriber.find(|(name, ..)| name == "lagged" || name == "rows").await;
        assert_eq!(first, "lagged", "{id}");
    }
    for (query, id, field) in [
        ("?last=101", "", "last"),
        ("?rows=-1", "", "rows"),
        ("?from=0", "", "from"),
        ("?lastEventId=x", "", "lastEventId"),
        ("?lastEventId=-1", "", "lastEventId"),
        ("", "x", "Last-Event-ID"),
        ("", "-1", "Last-Event-ID"),
        ("", "99999999999999999999", "Last-Event-ID"),
    ] {
        let mut request = replica.request(Method::GET, &format!("/events{query}"));
        if !id.is_empty() {
            request = request.header("last-event-id", id);
        }
        let (status, problem) = answer(request).await;
        assert_eq!((status, &problem["field"]), (422, &json!(field)), "{query} {id}: {problem}");
    }
}

#[tokio::test]
async fn slow_subscriber_loses_events_but_no_rows() {
    let bench = Bench::new(On::Embedded);
    let replica = named(&bench, "one");
    let socket = TcpSocket::new_v4().expect("a socket");
    // With a much smaller buffer, the kernel resumes only slowly after the buffer was full.
    socket.set_recv_buffer_size(16 << 10).expect("a small buffer");
    let address = replica.url.trim_start_matches("http://").parse().expect("an address");
    let mut slow = socket.connect(address).await.expect("connects");
    slow.write_all(b"GET /events?rows=100&last=1 HTTP/1.0\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut subscriber = Subscriber::settled(&replica, 1).await;
    let (mut lagged, before) = (false, replica.resident_kib());
    let began = Instant::now();
    let mut rows = 0;
    // Until the fast subscriber has received more events than the slow one can have buffered.
    let mut seen = 0;
    while seen < 1000 {
        assert!(began.elapsed() < PATIENCE, "{seen} events");
        // As JSON, such text is six times as long.
        for _ in 0..20 {
            replica.append_text(&"\u{1}".repeat(2000)).await;
            rows += 1;
        }
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(1), subscriber.next()).await {
            seen += 1;
        }
    }
    let grown = replica.resident_kib().saturating_sub(before);
    assert!(grown < 48 << 10, "{grown} KiB for one slow subscriber");
    let (mut text, mut chunk, end) = (String::new(), vec![0; 64 << 10], bench.content().len() as u64);
    let (mut at, mut count) = (11, 0);
    while at < end {
        let read = tokio::time::timeout(PATIENCE, slow.read(&mut chunk)).await.expect("in time").expect("a stream");
        assert!(read > 0, "the stream continues");
        text.push_str(std::str::from_utf8(&chunk[..read]).expect("ASCII"));
        while let Some((event, rest)) = text.split_once("\n\n") {
            let (event, rest) = (parse(event), rest.to_owned());
            text = rest;
            match event {
                Some((name, _, data)) if name == "rows" => {
                    assert_eq!(data["offset"], at, "no gap");
                    at = data["end"].as_u64().expect("an offset");
                    count += data["count"].as_u64().expect("a number");
                }
                Some((name, _, data)) if name == "lagged" => lagged = data["events"].as_u64() > Some(0),
                _ => {}
            }
        }
    }
    assert_eq!((count, lagged), (rows, true));
}

#[tokio::test]
async fn subscribers_are_bounded_and_disconnected_at_shutdown() {
    let bench = Bench::new(On::Embedded);
    let mut replica = named(&bench, "one");
    let mut all = Vec::new();
    for _ in 0..64 {
        all.push(Subscriber::open(&replica, "", None).await);
    }
    let (status, problem) = answer(replica.request(Method::GET, "/events")).await;
    assert_eq!(
        (status, &problem["code"], &problem["retryable"]),
        (503, &json!("queue_full"), &json!(true)),
        "{problem}"
    );
    all.pop();
    until("a subscriber is accepted again", async || {
        replica.request(Method::GET, "/events").send().await.expect("an answer").status() == 200
    })
    .await;
    replica.signal("TERM");
    for mut subscriber in all {
        while subscriber.next().await.is_some() {}
    }
    assert!(replica.end().success());
}

#[tokio::test]
async fn events_file_needs_a_subscriber_and_may_be_unwritable() {
    let bench = Bench::new(On::Embedded);
    let replica = named(&bench, "one");
    replica.append_text("without subscriber").await;
    until_free(&bench).await;
    let events_file = format!("{}.events", bench.csv.display());
    assert!(!fs::exists(&events_file).expect("readable"));
    fs::create_dir(&events_file).expect("writable");
    let mut subscriber = Subscriber::settled(&replica, 1).await;
    replica.append_text("with subscriber").await;
    assert_eq!(subscriber.changes(2).await, ["acquired one 2 -", "released one 2 -"]);
    assert!(replica.log().contains("events cannot be exchanged with other replicas"), "{}", replica.log());
}
