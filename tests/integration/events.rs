//! Events: what any replica tells of all of them, and to whom it does not listen too long.

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

/// One event: its name, its id, what it says.
type Event = (String, Option<u64>, Value);

/// A reader of events.
struct Watching {
    response: Response,
    text: String,
    /// What it was greeted with.
    hello: Value,
}

impl Watching {
    async fn open(replica: &Replica, query: &str, last_event_id: Option<u64>) -> Self {
        let mut request = replica.request(Method::GET, &format!("/events{query}"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id.to_string());
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let mut watching = Self { response, text: String::new(), hello: Value::Null };
        let (name, id, hello) = watching.next().await.expect("an event");
        assert_eq!((name.as_str(), id), ("hello", None));
        watching.hello = hello;
        watching
    }

    /// On a replica that told of itself, so that others know that somebody watches.
    async fn settled(replica: &Replica, others: usize) -> Self {
        let mut watching = Self::open(replica, "", None).await;
        watching
            .find(|(name, _, data)| name == "stats" && data["replicas"].as_array().map(Vec::len) == Some(others))
            .await;
        watching
    }

    /// None at the stream's end.
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
            let event = self.next().await.expect("the stream goes on");
            if wanted(&event) {
                return event;
            }
        }
    }

    /// The next changes of the lock, as `change replica token other`.
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

/// A comment is no event.
fn parse(text: &str) -> Option<Event> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = serde_json::from_str(field("data")?).expect("JSON");
    Some((field("event")?.to_owned(), field("id").map(|id| id.parse().expect("an offset")), data))
}

fn named(bench: &Bench, name: &str) -> Replica {
    bench.replica(&[("ROWLOCK_REPLICA", name), ("ROWLOCK_CSV_HEADER", "token,data")])
}

/// The column `data` of an event's rows.
fn told(event: &Value) -> Vec<String> {
    let rows = event["rows"].as_array().expect("rows");
    rows.iter().map(|row| row["fields"]["data"].as_str().expect("text").to_owned()).collect()
}

/// Follows rows up to the end of the file: they are told without a gap.
async fn rows_up_to(watching: &mut Watching, mut at: u64, end: u64) -> (u64, Vec<String>) {
    let (mut count, mut rows) = (0, Vec::new());
    while at < end {
        let (_, id, event) = watching.find(|(name, ..)| name == "rows").await;
        assert_eq!(event["offset"], at, "no gap, and nothing twice");
        at = event["end"].as_u64().expect("an offset");
        assert_eq!(id, Some(at), "the id is where to go on");
        count += event["count"].as_u64().expect("a number");
        rows.extend(told(&event));
    }
    (count, rows)
}

#[tokio::test]
async fn who_comes_is_told_first_what_it_may_and_what_is_accepted() {
    let bench = Bench::new(On::Embedded);
    let replica =
        bench.replica(&[("ROWLOCK_REPLICA", "one"), ("ROWLOCK_LOCK_TTL", "3s"), ("ROWLOCK_MAX_SLEEP", "1500ms")]);
    let open = json!({
        "replica": "one", "roles": ["append", "read", "admin"], "by_token": false, "simulation": true, "sleep_max_ms": 1500,
        "lock_ttl_ms": 3000, "columns": ["timestamp", "replica", "token", "data"],
    });
    assert_eq!(Watching::open(&replica, "", None).await.hello, open);

    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[
        ("ROWLOCK_API_TOKENS", "read:reads,append:both,read:both,admin:all"),
        ("ROWLOCK_SIMULATION", "off"),
        ("ROWLOCK_CSV_HEADER", "none"),
    ]);
    for (token, roles) in
        [("reads", json!(["read"])), ("both", json!(["append", "read"])), ("all", json!(["append", "read", "admin"]))]
    {
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
async fn rows_of_all_replicas_are_told_by_each_as_they_arrive() {
    for on in [On::Redis, On::Embedded] {
        let bench = Bench::new(on);
        let replicas = ["one", "two", "three"].map(|name| named(&bench, name));
        let mut watching = Watching::open(&replicas[2], "?rows=100&last=5", None).await;
        let (name, id, first) = watching.next().await.expect("an event");
        assert_eq!((name.as_str(), id), ("rows", Some(11)));
        assert_eq!(first, json!({"offset": 11, "end": 11, "count": 0, "rows": []}));
        let all: Vec<String> = (0..60).map(|n| format!("{n}\n\"row\"")).collect();
        for (n, text) in all.iter().enumerate() {
            replicas[n % 2].append_text(text).await;
        }
        let (count, rows) = rows_up_to(&mut watching, 11, bench.content().len() as u64).await;
        assert_eq!((count, rows), (60, all));
    }
}

#[tokio::test]
async fn the_lock_is_seen_to_pass_from_replica_to_replica() {
    let bench = Bench::new(On::Redis);
    let replicas = ["one", "two"].map(|name| named(&bench, name));
    let mut watching = Watching::settled(&replicas[1], 2).await;
    let first = replicas[0].append(json!({"data": "a", "sleep": 0.5}));
    let second = async {
        crate::support::until_held(&bench).await;
        replicas[1].append(json!({"data": "b", "skip_release": true})).await
    };
    let ((status, _), (_, ack)) = tokio::join!(first, second);
    assert_eq!((status, &ack["released"]), (201, &json!(false)));
    // Two replicas tell their own part each, so that the order between them is by chance.
    let mut changes = watching.changes(4).await;
    changes.sort();
    assert_eq!(changes, ["abandoned two 2 -", "acquired one 1 -", "acquired two 2 -", "handed_over one 1 two"]);

    let (status, forced) = answer(replicas[0].request(Method::DELETE, "/lock")).await;
    assert_eq!((status, &forced["released"]), (200, &json!(true)), "{forced}");
    assert_eq!(watching.changes(1).await, ["forced one 3 two"]);
    until_free(&bench).await;
    replicas[0].append_text("c").await;
    assert_eq!(watching.changes(2).await, ["acquired one 4 -", "released one 4 -"]);

    let settings = [("ROWLOCK_REPLICA", "brief"), ("ROWLOCK_LOCK_TTL", "300ms"), ("ROWLOCK_CSV_HEADER", "token,data")];
    let brief = bench.replica(&settings);
    watching.find(|(name, _, data)| name == "stats" && data["replicas"].as_array().map(Vec::len) == Some(3)).await;
    let (sleeping, taken) = (brief.append(json!({"data": "d", "sleep": 20})), async {
        crate::support::until_held(&bench).await;
        bench.redis().cli(&["set", crate::support::LOCK_KEY, "foreign"]);
    });
    let ((status, problem), ()) = tokio::join!(sleeping, taken);
    assert_eq!((status, &problem["code"]), (503, &json!("lock_lost")), "{problem}");
    assert_eq!(watching.changes(2).await, ["acquired brief 5 -", "lost brief 5 -"]);
}

#[tokio::test]
async fn figures_of_every_replica_come_once_a_second_and_one_that_is_silent_grows_old() {
    let bench = Bench::new(On::Redis);
    let replicas = ["one", "two"].map(|name| named(&bench, name));
    let mut watching = Watching::settled(&replicas[0], 2).await;
    for n in 0..10 {
        replicas[1].append_text(&n.to_string()).await;
    }
    let (status, _) = replicas[1].append(json!({"data": 1})).await;
    assert_eq!(status, 422);
    let of = |stats: &Value, name: &str| {
        stats["replicas"].as_array()?.iter().find(|known| known["replica"] == name).cloned()
    };
    let (_, _, stats) = watching
        .find(|(name, _, data)| {
            let two = of(data, "two").unwrap_or_default();
            name == "stats" && two["rows"] == 10 && two["errors"]["invalid_field"] == 1
        })
        .await;
    let two = of(&stats, "two").expect("told of");
    assert_eq!((&two["state"], &two["version"]), (&json!("ready"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!((&two["lock"], &two["lock_in_reach"], &two["queue_rows"]), (&json!("redis"), &json!(true), &json!(0)));
    for figure in ["uptime_s", "rows_per_s", "queue_bytes", "queue_age_ms", "seen_ms_ago"] {
        assert!(two[figure].is_number(), "{figure}: {two}");
    }
    assert_eq!(stats["file"]["csv_bytes"], bench.content().len());
    assert_eq!(stats["file"]["journal_bytes"], 1 << 20);
    assert!(stats["file"]["free_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
    replicas[1].signal("STOP");
    watching.find(|(_, _, data)| of(data, "two").is_some_and(|two| two["seen_ms_ago"].as_u64() > Some(2000))).await;
    replicas[1].signal("CONT");
    watching.find(|(_, _, data)| of(data, "two").is_some_and(|two| two["seen_ms_ago"].as_u64() < Some(1500))).await;
}

#[tokio::test]
async fn a_reader_that_comes_back_misses_no_row() {
    let bench = Bench::new(On::Embedded);
    let mut replica = named(&bench, "one");
    let mut watching = Watching::open(&replica, "?rows=100", None).await;
    watching.find(|(name, ..)| name == "stats").await;
    replica.append_text("first").await;
    let (_, id, event) = watching.find(|(name, ..)| name == "rows").await;
    assert_eq!(told(&event), ["first"]);
    drop(watching);
    for n in 0..5 {
        replica.append_text(&format!("missed {n}")).await;
    }
    replica.signal("TERM");
    assert!(replica.end().success());
    let replica = named(&bench, "again");
    let mut watching = Watching::open(&replica, "?rows=3", id).await;
    let (_, _, event) = watching.find(|(name, ..)| name == "rows").await;
    assert_eq!((&event["offset"], &event["count"]), (&json!(id), &json!(5)));
    assert_eq!(told(&event), ["missed 2", "missed 3", "missed 4"], "the newest of them");
    let at = event["end"].as_u64().expect("an offset");
    replica.append_text("live").await;
    let (count, rows) = rows_up_to(&mut watching, at, bench.content().len() as u64).await;
    assert_eq!((count, rows), (1, vec!["live".to_owned()]));

    for id in [id.expect("an id") + 1, 1, u64::MAX] {
        let mut watching = Watching::open(&replica, "", Some(id)).await;
        // Figures may come in between.
        let (first, ..) = watching.find(|(name, ..)| name == "lagged" || name == "rows").await;
        assert_eq!(first, "lagged", "{id}");
    }
    for (query, id, field) in [
        ("?last=101", "", "last"),
        ("?rows=-1", "", "rows"),
        ("?from=0", "", "from"),
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
async fn a_reader_that_is_slow_loses_events_and_is_told_so_but_no_rows() {
    let bench = Bench::new(On::Embedded);
    let replica = named(&bench, "one");
    let socket = TcpSocket::new_v4().expect("a socket");
    // Much smaller, and the system sends into it in its own slow time once it was full.
    socket.set_recv_buffer_size(16 << 10).expect("a small buffer");
    let address = replica.url.trim_start_matches("http://").parse().expect("an address");
    let mut slow = socket.connect(address).await.expect("connects");
    slow.write_all(b"GET /events?rows=100&last=1 HTTP/1.0\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut watching = Watching::settled(&replica, 1).await;
    let (mut lagged, before) = (false, replica.resident_kib());
    let began = Instant::now();
    let mut rows = 0;
    // Until the quick reader has seen so much that the slow one must be behind.
    let mut seen = 0;
    while seen < 1000 {
        assert!(began.elapsed() < PATIENCE, "{seen} events");
        // As JSON, such text is six times as long.
        for _ in 0..20 {
            replica.append_text(&"\u{1}".repeat(2000)).await;
            rows += 1;
        }
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(1), watching.next()).await {
            seen += 1;
        }
    }
    let grown = replica.resident_kib().saturating_sub(before);
    assert!(grown < 48 << 10, "{grown} KiB for one slow reader");
    let (mut text, mut chunk, end) = (String::new(), vec![0; 64 << 10], bench.content().len() as u64);
    let (mut at, mut count) = (11, 0);
    while at < end {
        let read = tokio::time::timeout(PATIENCE, slow.read(&mut chunk)).await.expect("in time").expect("a stream");
        assert!(read > 0, "the stream goes on");
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
async fn readers_are_bounded_and_a_replica_that_leaves_sends_them_away() {
    let bench = Bench::new(On::Embedded);
    let mut replica = named(&bench, "one");
    let mut all = Vec::new();
    for _ in 0..64 {
        all.push(Watching::open(&replica, "", None).await);
    }
    let (status, problem) = answer(replica.request(Method::GET, "/events")).await;
    assert_eq!(
        (status, &problem["code"], &problem["retryable"]),
        (503, &json!("queue_full"), &json!(true)),
        "{problem}"
    );
    all.pop();
    until("there is room again", async || {
        replica.request(Method::GET, "/events").send().await.expect("an answer").status() == 200
    })
    .await;
    replica.signal("TERM");
    for mut watching in all {
        while watching.next().await.is_some() {}
    }
    assert!(replica.end().success());
}

#[tokio::test]
async fn nothing_is_written_while_nobody_watches_and_what_cannot_be_written_keeps_nobody_from_watching() {
    let bench = Bench::new(On::Embedded);
    let replica = named(&bench, "one");
    replica.append_text("unwatched").await;
    until_free(&bench).await;
    let bulletin = format!("{}.events", bench.csv.display());
    assert!(!fs::exists(&bulletin).expect("readable"));
    fs::create_dir(&bulletin).expect("writable");
    let mut watching = Watching::settled(&replica, 1).await;
    replica.append_text("watched").await;
    assert_eq!(watching.changes(2).await, ["acquired one 2 -", "released one 2 -"]);
    assert!(replica.log().contains("events cannot be exchanged with other replicas"), "{}", replica.log());
}
