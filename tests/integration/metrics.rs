//! Metrics: a replica counts what happened, and Prometheus can read it.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    process::{Command, Stdio},
};

use reqwest::Method;
use serde_json::json;

use crate::{
    journal::{damage_journal, killed_after},
    support::{Bench, LOCK_KEY, On, QUEUE_KEY, Replica, answer, until, until_checkpointed, until_free, until_held},
};

/// The result of one scrape: each series as written, and its value.
struct Scrape {
    text: String,
    values: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(replica: &Replica) -> Self {
        let response = replica.request(Method::GET, "/metrics").send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4");
        let text = response.text().await.expect("text");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let values = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            (series.to_owned(), value.parse().expect("a number"))
        });
        Self { values: values.collect(), text }
    }

    /// The value of a series, named without `rowlock_`.
    fn get(&self, series: &str) -> f64 {
        *self.values.get(&format!("rowlock_{series}")).unwrap_or_else(|| panic!("no {series} in {}", self.text))
    }

    /// The sum of all series of a metric that have these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let wanted = |series: &str| {
            series.starts_with(&format!("rowlock_{name}{{")) && labels.iter().all(|label| series.contains(label))
        };
        self.values.iter().filter(|(series, _)| wanted(series)).map(|(_, value)| value).sum()
    }

    /// The metrics whose help text says that they are shared.
    fn shared(&self) -> Vec<&str> {
        let helps = self.text.lines().filter_map(|line| line.strip_prefix("# HELP "));
        helps.filter(|help| help.contains("Shared")).filter_map(|help| help.split(' ').next()).collect()
    }
}

fn named(bench: &Bench, name: &str) -> Replica {
    bench.replica(&[("ROWLOCK_REPLICA", name), ("ROWLOCK_CSV_HEADER", "token,data"), ("ROWLOCK_LOCK_TTL", "60s")])
}

/// Runs promtool, which must succeed, and returns its output.
fn promtool(args: &[&str], input: &str) -> String {
    let mut command = Command::new("promtool");
    let command = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is installed by make test");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
    assert!(output.status.success(), "promtool {args:?}: {text}");
    text
}

/// Waits until a series has a value.
async fn until_is(replica: &Replica, series: &str, value: f64) {
    until(&format!("{series} is {value}"), async || Scrape::of(replica).await.get(series) == value).await;
}

#[tokio::test]
async fn every_metric_exists_from_the_start_and_passes_promtool() {
    for on in [On::Redis, On::Embedded] {
        let bench = Bench::new(on);
        let replica = named(&bench, "one");
        let scrape = Scrape::of(&replica).await;
        for name in rowlock::metrics::names() {
            let exists = |end: &str| scrape.values.keys().any(|series| series.starts_with(&format!("{name}{end}")));
            assert!(exists("{") || exists("_bucket{") || scrape.values.contains_key(name), "{name} is missing");
            let help = format!("# HELP {name} ");
            let help = scrape.text.lines().find(|line| line.starts_with(&help)).expect("help");
            assert!(help.contains("This replica's own.") != help.contains("Shared"), "{help}");
        }
        assert_eq!(scrape.get(r#"build_info{version="0.1.0",replica="one"}"#), 1.0);
        assert!(scrape.values.values().all(|value| value.is_finite()), "{}", scrape.text);
        replica.append_text("x").await;
        let text = Scrape::of(&replica).await.text;
        assert_eq!(promtool(&["check", "metrics"], &text), "");
    }
}

#[tokio::test]
async fn rows_batches_replays_and_refusals_are_counted() {
    for on in [On::Redis, On::Embedded] {
        let bench = Bench::new(on);
        let replica = named(&bench, "one");
        for _ in 0..5 {
            replica.append_text("row").await;
        }
        let batch = replica.request(Method::POST, "/append/batch").header("content-type", "application/x-ndjson");
        assert_eq!(answer(batch.body("\"a\"\n\"b\"\n\"c\"\n")).await.0, 201);
        for _ in 0..3 {
            let keyed = replica.post(&json!({"data": "once"})).header("idempotency-key", "k");
            assert_eq!(answer(keyed).await.0, 201);
        }
        for (body, status) in [("{\"data\": 1", 400), ("{}", 422), ("{\"data\": [1, 2, 3]}", 422)] {
            let post = replica.request(Method::POST, "/append").header("content-type", "application/json");
            assert_eq!(answer(post.body(body)).await.0, status, "{body}");
        }
        assert_eq!(answer(replica.request(Method::POST, "/append").body("x")).await.0, 415);
        assert_eq!(answer(replica.request(Method::GET, "/append")).await.0, 405);
        until_free(&bench).await;
        until_is(&replica, "lock_held", 0.0).await;

        let scrape = Scrape::of(&replica).await;
        let requests = |labels: &[(&str, &str)]| scrape.sum("http_requests_total", labels);
        assert_eq!((scrape.get("appended_rows_total"), scrape.get("replays_total")), (9.0, 2.0));
        let csv = fs::metadata(&bench.csv).expect("a CSV").len() as f64;
        assert_eq!(scrape.get("appended_bytes_total"), csv - "token,data\n".len() as f64);
        assert_eq!(scrape.get("file_bytes"), csv);
        assert_eq!((scrape.get("batch_rows_sum"), scrape.get("batch_rows_count")), (9.0, 7.0));
        assert_eq!(
            (scrape.get(r#"batch_rows_bucket{le="1"}"#), scrape.get(r#"batch_rows_bucket{le="4"}"#)),
            (6.0, 7.0)
        );
        assert_eq!((scrape.get("lock_wait_seconds_count"), scrape.get("sync_seconds_count")), (7.0, 7.0));
        assert!((50e-9..1.0).contains(&scrape.get("sync_seconds_sum")), "seconds: {}", scrape.get("sync_seconds_sum"));
        assert_eq!((scrape.get("lock_acquired_total"), scrape.get("lock_hold_seconds_count")), (9.0, 9.0));
        assert_eq!((scrape.get("queue_rows"), scrape.get("queue_rows_limit")), (0.0, 65536.0));
        assert_eq!((scrape.get("lock_backend_up"), scrape.get("ready"), scrape.get("file_readable")), (1.0, 1.0, 1.0));
        let written = [("method", "POST"), ("route", "/append"), ("status", "201"), ("outcome", "written")];
        assert_eq!(requests(&written), 6.0);
        assert_eq!(requests(&[("outcome", "replayed")]), 2.0);
        assert_eq!(requests(&[("route", "/append/batch"), ("outcome", "written")]), 1.0);
        for (code, count) in
            [("broken_body", 1.0), ("invalid_field", 2.0), ("unsupported_media_type", 1.0), ("method_not_allowed", 1.0)]
        {
            assert_eq!(requests(&[("code", code), ("outcome", "not_written")]), count, "{code}");
        }
        assert_eq!(requests(&[("outcome", "unknown")]), 0.0);
        let seconds = r#"http_request_duration_seconds_count{method="POST",route="/append"}"#;
        assert_eq!(scrape.get(seconds), 12.0);
    }
}

#[tokio::test]
async fn lock_changes_are_counted_by_the_replica_that_made_them() {
    let bench = Bench::new(On::Redis);
    let (one, two) = (named(&bench, "one"), named(&bench, "two"));
    let waiting = async {
        until_held(&bench).await;
        until_is(&one, "lock_held", 1.0).await;
        assert_eq!(Scrape::of(&two).await.get("lock_held"), 0.0);
        let waiting = two.append_text("waits");
        let observed = async {
            until("it is queued", async || bench.redis().cli(&["llen", QUEUE_KEY]) == "1").await;
            let scrape = Scrape::of(&two).await;
            assert_eq!(scrape.get("queue_rows"), 1.0);
            assert!(scrape.get("queue_bytes") > 0.0 && scrape.get("queue_oldest_age_seconds") > 0.0);
            let shared = ["lock_has_holder", "lock_waiters", "lock_holder_token"].map(|name| scrape.get(name));
            assert_eq!(shared, [1.0, 1.0, 1.0]);
        };
        tokio::join!(waiting, observed)
    };
    let ((status, _), _) = tokio::join!(one.append(json!({"data": "slow", "sleep": 3})), waiting);
    assert_eq!(status, 201);
    until_is(&one, "lock_handed_over_total", 1.0).await;
    until_free(&bench).await;
    assert_eq!(Scrape::of(&two).await.get("lock_handed_over_total"), 0.0);

    assert_eq!(one.append(json!({"data": "x", "skip_release": true})).await.0, 201);
    until_is(&one, "lock_abandoned_total", 1.0).await;
    assert_eq!(answer(two.request(Method::DELETE, "/lock")).await.0, 200);
    assert_eq!(bench.redis().cli(&["exists", LOCK_KEY]), "0");
    let (one, two) = (Scrape::of(&one).await, Scrape::of(&two).await);
    assert_eq!((one.get("lock_forced_releases_total"), two.get("lock_forced_releases_total")), (0.0, 1.0));
    assert_eq!((one.get("lock_held"), one.get("lock_lost_total")), (0.0, 0.0));
    assert_eq!(two.get("lock_abandoned_total"), 0.0);
}

#[tokio::test]
async fn renewals_and_lost_leases_are_counted() {
    let bench = Bench::new(On::Redis);
    let settings = [("ROWLOCK_CSV_HEADER", "token,data"), ("ROWLOCK_LOCK_TTL", "300ms")];
    let replica = bench.replica(&settings);
    let stolen = async {
        until("it is renewed", async || Scrape::of(&replica).await.get("lock_renewals_total") >= 2.0).await;
        bench.redis().cli(&["set", LOCK_KEY, "a foreign client"]);
    };
    let ((status, _), ()) = tokio::join!(replica.append(json!({"data": "x", "sleep": 30})), stolen);
    assert_eq!(status, 503);
    until_is(&replica, "lock_lost_total", 1.0).await;
    let scrape = Scrape::of(&replica).await;
    assert_eq!((scrape.get("lock_renewal_failures_total"), scrape.get("lock_held")), (1.0, 0.0));
    assert_eq!(scrape.sum("http_requests_total", &[("code", "lock_lost")]), 1.0);
    assert_eq!(scrape.get("appended_rows_total"), 0.0);
}

#[tokio::test]
async fn fenced_batch_is_counted_once_and_its_retry_once() {
    let bench = Bench::new(On::Redis);
    let replica = named(&bench, "one");
    bench.redis().cli(&["set", "{rowlock:rows.csv}:token", "41"]);
    assert_eq!(answer(replica.request(Method::DELETE, "/lock")).await.0, 200);
    // This replica uses another lock on the same file. Its first token is 1, which is older than the recorded one.
    let stale = bench.replica(&[("ROWLOCK_LOCK_KEY", "another"), ("ROWLOCK_CSV_HEADER", "token,data")]);
    stale.append_text("x").await;
    let (stale, replica) = (Scrape::of(&stale).await, Scrape::of(&replica).await);
    let counted = |scrape: &Scrape| {
        ["fenced_writes_total", "batch_retries_total", "appended_rows_total"].map(|name| scrape.get(name))
    };
    assert_eq!((counted(&stale), counted(&replica)), ([1.0, 1.0, 1.0], [0.0; 3]));
}

#[tokio::test]
async fn recoveries_are_counted_by_kind() {
    let bench = Bench::with_file(On::Embedded, b"token,data\n1,one\n2,\"torn");
    let replica = named(&bench, "one");
    replica.append_text("two").await;
    let scrape = Scrape::of(&replica).await;
    assert_eq!((scrape.get("quarantined_lines_total"), scrape.get("quarantined_bytes_total")), (1.0, 7.0));
    assert_eq!((scrape.get("recovery_rebuilds_total"), scrape.get("recovery_completed_batches_total")), (0.0, 0.0));
    until_checkpointed(&bench).await;
    until("a checkpoint is counted", async || Scrape::of(&replica).await.get("checkpoints_total") >= 1.0).await;

    for (csv, rebuilds, batches) in
        [("token,data\n1,one\n2,t", 0.0, 1.0), ("token,data\n1,\0\0\0\0\0\0\0\0\n", 1.0, 0.0)]
    {
        let bench = Bench::new(On::Embedded);
        killed_after(&bench, &["one", "two"]).await;
        fs::write(&bench.csv, csv).expect("writable");
        let replica = named(&bench, "one");
        until("the rows are back", async || bench.content() == "token,data\n1,one\n2,two\n").await;
        until_is(&replica, "recovery_rebuilds_total", rebuilds).await;
        until_is(&replica, "recovery_completed_batches_total", batches).await;
        assert_eq!(Scrape::of(&replica).await.get("quarantined_bytes_total"), if rebuilds > 0.0 { 11.0 } else { 0.0 });
    }
}

#[tokio::test]
async fn failed_sync_is_counted_by_the_replica_that_recovers() {
    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one"]).await;
    // The flag that a failed sync sets, after both headers.
    damage_journal(&bench, &[(8192, &[1])]);
    let replica = named(&bench, "one");
    until_is(&replica, "recovery_failed_syncs_total", 1.0).await;
    replica.append_text("two").await;
    assert_eq!(bench.content(), "token,data\n1,one\n3,two\n", "the repair took token 2");
    let scrape = Scrape::of(&replica).await;
    assert_eq!((scrape.get("recovery_rebuilds_total"), scrape.get("sync_failures_total")), (1.0, 0.0));
}

#[tokio::test]
async fn redis_outage_sets_backend_down_until_reconnected() {
    let mut bench = Bench::new(On::Redis);
    let replica = named(&bench, "one");
    replica.append_text("before").await;
    let before = Scrape::of(&replica).await;
    assert!(before.get("redis_connections_opened_total") >= 1.0);
    assert_eq!((before.get("redis_connections_discarded_total"), before.get("lock_backend_up")), (0.0, 1.0));
    bench.redis.as_mut().expect("a Redis").stop();
    until_is(&replica, "lock_backend_up", 0.0).await;
    assert!(Scrape::of(&replica).await.get("redis_connections_discarded_total") >= 1.0);
    bench.redis.as_mut().expect("a Redis").restart();
    until_is(&replica, "lock_backend_up", 1.0).await;
    replica.append_text("after").await;
    let after = Scrape::of(&replica).await;
    let opened = |scrape: &Scrape| scrape.get("redis_connections_opened_total");
    assert!(opened(&after) > opened(&before), "{}", after.text);
    assert_eq!((after.get("ready"), after.get("appended_rows_total")), (1.0, 2.0));
}

#[tokio::test]
async fn shared_metrics_agree_and_other_metrics_are_per_replica() {
    let bench = Bench::new(On::Redis);
    let (one, two) = (named(&bench, "one"), named(&bench, "two"));
    for _ in 0..3 {
        one.append_text("row").await;
    }
    let _subscriber = two.request(Method::GET, "/events").send().await.expect("an answer");
    // Other programs use the volume, too: its free space changes between two scrapes.
    until("both report the same", async || {
        let (one, two) = (Scrape::of(&one).await, Scrape::of(&two).await);
        assert_eq!(one.shared().len(), 8);
        one.shared().iter().all(|name| one.values[*name] == two.values[*name])
    })
    .await;
    let (one, two) = (Scrape::of(&one).await, Scrape::of(&two).await);
    assert_eq!((one.get("appended_rows_total"), two.get("appended_rows_total")), (3.0, 0.0));
    assert_eq!((one.get("event_subscribers"), two.get("event_subscribers")), (0.0, 1.0));
    assert_eq!(two.get("file_bytes"), fs::metadata(&bench.csv).expect("a CSV").len() as f64);
    assert_eq!(two.get("journal_bytes"), f64::from(1 << 20));
    assert!(two.get("volume_free_bytes") < two.get("volume_size_bytes"));
}

#[tokio::test]
async fn unknown_paths_and_methods_add_no_series() {
    let bench = Bench::new(On::Embedded);
    let replica = named(&bench, "one");
    let request_all = async |n: u32| {
        for (method, path) in [
            ("GET", format!("/rows{n}")),
            (&format!("M{n}"), "/append".to_owned()),
            (&format!("M{n}"), format!("/{n}")),
            ("GET", format!("/rows?from={n}")),
            ("HEAD", format!("/livez?{n}")),
        ] {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            replica.request(method, &path).send().await.expect("an answer");
        }
    };
    request_all(1).await;
    let before = Scrape::of(&replica).await;
    for n in 2..50 {
        request_all(n).await;
    }
    let after = Scrape::of(&replica).await;
    assert!(before.values.keys().eq(after.values.keys()), "more series than before");
    assert_eq!(after.sum("http_requests_total", &[("route", "other"), ("method", "other")]), 49.0);
    assert_eq!(after.sum("http_requests_total", &[("route", "/append"), ("method", "other")]), 49.0);
    assert!(after.values.len() < 1000, "{}", after.values.len());
}

#[tokio::test]
async fn unreadable_file_is_reported_and_the_scrape_succeeds() {
    let bench = Bench::new(On::Embedded);
    let replica = named(&bench, "one");
    replica.append_text("row").await;
    let bytes = Scrape::of(&replica).await.get("file_bytes");
    fs::rename(&bench.csv, bench.folder().join("away.csv")).expect("renamed");
    let away = Scrape::of(&replica).await;
    assert_eq!((away.get("file_readable"), away.get("file_bytes")), (0.0, bytes));
    fs::rename(bench.folder().join("away.csv"), &bench.csv).expect("renamed");
    assert_eq!(Scrape::of(&replica).await.get("file_readable"), 1.0);
}

#[test]
fn deployed_alerts_pass_promtool_and_each_has_two_tests() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |name: &str| {
        let text = fs::read_to_string(format!("{}/deploy/prometheus/{name}", env!("CARGO_MANIFEST_DIR")));
        let text = text.expect("readable");
        fs::write(folder.path().join(name), &text).expect("writable");
        text
    };
    let (rules, tests, _, _) = (read("rules.yml"), read("rules_test.yml"), read("prometheus.yml"), read("compose.yml"));
    fs::write(folder.path().join("rowlock.token"), "secret").expect("writable");
    let path = |name: &str| folder.path().join(name).display().to_string();
    promtool(&["check", "config", &path("prometheus.yml")], "");
    promtool(&["check", "config", &path("compose.yml")], "");
    promtool(&["check", "rules", "--lint-fatal", &path("rules.yml")], "");
    promtool(&["test", "rules", &path("rules_test.yml")], "");

    let alerts: Vec<_> = rules.split("      - alert: ").skip(1).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        let (name, rule) = alert.split_once('\n').expect("a name");
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
        let tested = format!("ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}}\n");
        let tests: Vec<_> =
            tests.split(&tested).skip(1).map(|rest| rest.lines().nth(1).expect("what is expected")).collect();
        let has_test = |expected: &str| tests.iter().any(|line| line.trim() == expected);
        assert!(
            has_test("exp_samples:") && has_test("exp_samples: []"),
            "{name} lacks a test that fires or one that does not"
        );
    }
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for metric in words.filter(|word| word.starts_with("rowlock_")) {
        assert!(rowlock::metrics::names().any(|name| name == metric.trim_end_matches("_bucket")), "{metric}");
    }
}
