//! `rowlock load` and `rowlock health`: what is measured, and that verification finds each kind of fault.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::support::{Bench, LOCK_KEY, On, QUEUE_KEY, Replica, free_port, until};

/// The arguments of `load --json`.
fn arguments<'a>(replicas: &[&'a str], args: &[&'a str]) -> Vec<&'a str> {
    let urls = replicas.iter().flat_map(|url| ["--url", url]);
    ["load", "--json", "--seed", "7"].into_iter().chain(urls).chain(args.iter().copied()).collect()
}

/// The exit code and the JSON report.
fn parse_output(output: &Output) -> (Option<i32>, Value) {
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("no report: {output:?}")))
}

/// Runs a load test to its end.
fn load(bench: &Bench, replicas: &[&str], args: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, Value) {
    parse_output(&block_in_place(|| bench.run(&arguments(replicas, args), settings)))
}

/// Starts a load test that ends by itself, even if its test fails.
fn start(bench: &Bench, replicas: &[&str], args: &[&str]) -> Child {
    let mut command = bench.command(&[]);
    command.args(arguments(replicas, args)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
}

fn finish(load: Child) -> (Option<i32>, Value) {
    parse_output(&block_in_place(|| load.wait_with_output()).expect("ends"))
}

fn named(bench: &Bench, names: &[&str], settings: &[(&str, &str)]) -> Vec<Replica> {
    names.iter().map(|name| bench.replica(&[&[("ROWLOCK_REPLICA", *name)], settings].concat())).collect()
}

fn urls(replicas: &[Replica]) -> Vec<&str> {
    replicas.iter().map(|replica| &*replica.url).collect()
}

/// Asserts that the verification found all acknowledged rows, and no fault.
fn assert_passed((code, report): &(Option<i32>, Value), acknowledged: u64) {
    let verification = &report["verification"];
    assert_eq!((*code, &verification["pass"]), (Some(0), &json!(true)), "{report}");
    assert_eq!((&verification["findings"], &verification["error"]), (&json!([]), &Value::Null), "{report}");
    assert_eq!((&verification["acknowledged"], &verification["present"]), (&json!(acknowledged), &json!(acknowledged)));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_are_measured_and_verified_by_file_and_http() {
    let bench = Bench::new(On::Redis);
    let replicas = named(&bench, &["one", "two", "three"], &[]);
    let urls = urls(&replicas);
    let first = load(&bench, &urls, &["--requests", "600", "--concurrency", "12", "--verify", "rows.csv"], &[]);
    assert_passed(&first, 600);
    let report = &first.1;
    let requests = &report["requests"];
    assert_eq!(
        (&requests["offered"], &requests["sent"], &requests["acknowledged"]),
        (&json!(600), &json!(600), &json!(600))
    );
    assert_eq!((&requests["not_written"], &requests["unknown"]), (&json!(0), &json!(0)));
    assert_eq!(report["answers"], json!([{"status": 201, "code": "", "count": 600}]));
    let shares: Vec<_> = report["replicas"].as_array().expect("a list").iter().collect();
    let name = |share: &&Value| share["replica"].as_str().expect("a name").to_owned();
    assert_eq!(shares.iter().map(name).collect::<Vec<_>>(), ["one", "two", "three"]);
    assert_eq!(shares.iter().map(|share| share["acknowledged"].as_u64().expect("a number")).sum::<u64>(), 600);
    let fairness = report["fairness"].as_f64().expect("several replicas");
    assert!((1.0 / 3.0..=1.0).contains(&fairness), "{fairness}");
    let latency = |name: &str| report["latency"][name].as_f64().expect("a latency");
    assert!(
        0.0 < latency("p50_ms") && latency("p50_ms") <= latency("p99_ms") && latency("p99_ms") <= latency("max_ms")
    );
    let tokens: std::collections::BTreeSet<_> = bench.tokens().into_iter().collect();
    assert_eq!(report["syncs"], tokens.len(), "one token for each hold");
    assert!(report["generator"]["cpu_s"].as_f64() > Some(0.0));

    let again = load(&bench, &urls, &["--requests", "60", "--concurrency", "3", "--verify-http"], &[]);
    assert_passed(&again, 60);
    assert_eq!(again.1["verification"]["others"], 600, "rows of an earlier run with the same seed");
    assert_ne!(again.1["run"], report["run"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_loop_counts_a_pause_for_all_due_requests() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let args = ["--rate", "200", "--requests", "300", "--concurrency", "2", "--verify", "rows.csv", "--plot", "p.svg"];
    let load = start(&bench, &[&replica.url], &args);
    until("the load has started", async || bench.content().lines().count() > 20).await;
    replica.signal("STOP");
    tokio::time::sleep(Duration::from_millis(700)).await;
    replica.signal("CONT");
    let ran = finish(load);
    assert_passed(&ran, 300);
    let report = &ran.1;
    assert_eq!((&report["mode"], &report["requests"]["offered"]), (&json!("open"), &json!(300)));
    // Only two requests were sent before the pause; all that were due in it waited.
    let p90 = |from: &str| report[from]["p90_ms"].as_f64().expect("a latency");
    assert!(p90("latency") > 2.0 * p90("latency_from_send"), "{report}");
    assert!(report["latency"]["max_ms"].as_f64() > Some(500.0), "{report}");
    let parse = "import sys, xml.etree.ElementTree as e; r = e.parse(sys.argv[1]).getroot(); print(sum(x.tag.endswith('polyline') for x in r.iter()))";
    let lines =
        Command::new("python3").args(["-c", parse]).arg(bench.folder().join("p.svg")).output().expect("python3");
    assert_eq!(
        String::from_utf8_lossy(&lines.stdout).trim(),
        "6",
        "four lines over time, two of the distribution: {lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_sleeps_and_abandoned_locks_are_verified() {
    let bench = Bench::new(On::Redis);
    let replicas = named(&bench, &["one", "two"], &[("ROWLOCK_LOCK_TTL", "150ms")]);
    let urls = urls(&replicas);
    let batches = load(&bench, &urls, &["--requests", "20", "--batch", "500", "--verify", "rows.csv"], &[]);
    assert_passed(&batches, 10_000);
    assert_eq!((&batches.1["requests"]["acknowledged"], &batches.1["rows_each"]), (&json!(20), &json!(500)));
    let mixed =
        ["--requests", "40", "--sleep", "0.02", "--sleep-every", "10", "--skip-release-every", "20", "--verify-http"];
    let mixed = load(&bench, &urls, &mixed, &[]);
    assert_passed(&mixed, 40);
    // Each request that sleeps or abandons the lock has a hold of its own.
    assert!(mixed.1["syncs"].as_u64() >= Some(6), "{}", mixed.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_with_keys_loses_nothing_and_interrupt_ends_with_report() {
    let bench = Bench::new(On::Redis);
    let address = format!("127.0.0.1:{}", free_port());
    let settings = [("ROWLOCK_LISTEN", &*address), ("ROWLOCK_REPLICA", "mortal")];
    let mut mortal = bench.replica(&settings);
    let other = named(&bench, &["other"], &[]).remove(0);
    let args = ["--duration", "30s", "--keys", "--concurrency", "8", "--verify", "rows.csv"];
    let load = start(&bench, &[&mortal.url, &other.url], &args);
    let rows_of = |name: &str| bench.content().matches(&format!(",{name},")).count();
    until("both write rows", async || rows_of("mortal") > 50 && rows_of("other") > 50).await;
    mortal.signal("KILL");
    mortal.end();
    let before = rows_of("other");
    until("the other replica continues", async || rows_of("other") > before + 50).await;
    let before = rows_of("mortal");
    let _mortal = bench.replica(&settings);
    until("the restarted replica writes rows", async || rows_of("mortal") > before + 50).await;
    assert!(Command::new("kill").args(["-INT", &load.id().to_string()]).status().expect("kill runs").success());
    let ran = finish(load);
    let report = &ran.1;
    assert_passed(&ran, report["requests"]["acknowledged"].as_u64().expect("a number"));
    assert_eq!(report["interrupted"], true);
    assert!(report["requests"]["repeats"].as_u64() > Some(0), "{report}");
    assert!(report["answers"].as_array().expect("a list").iter().any(|answer| answer["status"] == 0), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_interrupt_ends_the_run_at_once() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
    let mut load = start(&bench, &[&replica.url], &["--requests", "5", "--verify", "rows.csv"]);
    until("rows wait", async || bench.redis().cli(&["llen", QUEUE_KEY]) == "1").await;
    until("it has ended", async || {
        let interrupted = Command::new("kill").args(["-INT", &load.id().to_string()]).status();
        assert!(interrupted.expect("kill runs").success());
        load.try_wait().expect("a child process").is_some()
    })
    .await;
    let (code, report) = finish(load);
    assert_eq!((code, &report["interrupted"], &report["verification"]), (Some(1), &json!(true), &Value::Null));
    assert_eq!((&report["requests"]["sent"], &report["requests"]["unknown"]), (&json!(5), &json!(5)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_is_retried_after_its_retry_after() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_RATE_LIMIT", "20:20")]);
    let limited = load(&bench, &[&replica.url], &["--requests", "30", "--verify", "rows.csv"], &[]);
    assert_passed(&limited, 30);
    let codes: Vec<_> = limited.1["answers"].as_array().expect("a list").iter().map(|answer| &answer["code"]).collect();
    assert!(codes.contains(&&json!("rate_limited")), "{}", limited.1);
    assert!(limited.1["elapsed_s"].as_f64() >= Some(1.0), "as long as Retry-After says");
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_never_printed_and_a_refused_run_gives_up() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[(
        "ROWLOCK_API_TOKENS",
        "append:secret-token-of-a,read:secret-token-of-r,append:secret-token-of-b,read:secret-token-of-b",
    )]);
    let urls = [&*replica.url];
    let (code, report) = load(&bench, &urls, &["--duration", "1h"], &[]);
    assert_eq!((code, &report["requests"]["acknowledged"]), (Some(1), &json!(0)));
    assert!(report["gave_up"].as_str().is_some_and(|why| why.contains("401, unauthorized")), "{report}");
    let token = |token| [("ROWLOCK_LOAD_TOKEN", token)];
    let (code, report) = load(&bench, &urls, &["--requests", "20", "--verify-http"], &token("secret-token-of-a"));
    assert_eq!((code, &report["requests"]["acknowledged"]), (Some(1), &json!(20)));
    assert!(
        report["verification"]["error"].as_str().is_some_and(|why| why.contains("--token with the role `read`")),
        "{report}"
    );
    assert!(!report.to_string().contains("secret"));
    assert_passed(
        &load(&bench, &urls, &["--requests", "20", "--verify-http", "--token", "secret-token-of-b"], &token("wrong")),
        20,
    );
    let help = bench.run(&["load", "--help"], &token("secret-token-of-a"));
    assert!(!String::from_utf8_lossy(&help.stdout).contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_replica_or_unreadable_file_fails_the_run() {
    let bench = Bench::new(On::Embedded);
    let unreachable = format!("http://127.0.0.1:{}", free_port());
    let (code, report) = load(&bench, &[&unreachable], &["--requests", "5"], &[]);
    assert_eq!((code, &report["gave_up"]), (Some(1), &json!("no --url can be reached")));
    assert_eq!(report["requests"]["not_written"], 5);
    let replica = bench.replica(&[]);
    let (code, report) = load(&bench, &[&replica.url], &["--requests", "5", "--verify", "nowhere.csv"], &[]);
    assert_eq!((code, &report["verification"]["pass"]), (Some(1), &json!(false)), "{report}");
    assert!(report["verification"]["error"].as_str().is_some_and(|why| why.contains("No such file")), "{report}");
}

/// The fault of a service, at its tenth row of thirty.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    None,
    Loses,
    WritesTwice,
    InventsARow,
    AltersARow,
    TearsALine,
    LeavesALineOpen,
    LeavesTheLastLineOpen,
    BreaksAQuote,
    OpensAQuote,
    WritesNul,
    HoldsARowBack,
    LowersAToken,
    RefusesWhatItWrites,
    IsNotSure,
}

/// A service of one file with one fault.
struct BuggyService {
    bug: Bug,
    file: Vec<u8>,
    rows: u64,
    held_back: Option<String>,
}

impl BuggyService {
    fn write(&mut self, token: u64, data: &str) {
        self.file.extend_from_slice(format!("{token},\"{}\"\n", data.replace('"', "\"\"")).as_bytes());
    }

    fn append(&mut self, data: &str) -> Response {
        self.rows += 1;
        let (token, run) = (self.rows, data[..18].to_owned());
        match (self.bug, self.rows) {
            (Bug::Loses, 10) | (Bug::IsNotSure, 20) => {}
            (Bug::HoldsARowBack, 10) => self.held_back = Some(data.to_owned()),
            (Bug::LowersAToken, 10) => self.write(3, data),
            (Bug::AltersARow, 10) => self.write(token, &format!("{}!", &data[..data.len() - 1])),
            _ => self.write(token, data),
        }
        match (self.bug, self.rows) {
            (Bug::WritesTwice, 10) => self.write(token, data),
            (Bug::InventsARow, 10) => self.write(token, &format!("{run}1000-and-more")),
            (Bug::TearsALine, 10) => self.file.extend_from_slice(b"10\n"),
            (Bug::LeavesALineOpen, 10) | (Bug::LeavesTheLastLineOpen, 30) => drop(self.file.pop()),
            (Bug::BreaksAQuote, 10) => self.file.extend_from_slice(b"10,\"x\"y\n"),
            (Bug::OpensAQuote, 10) => self.file.extend_from_slice(b"10,\"x\n"),
            (Bug::WritesNul, 10) => self.file.extend_from_slice(b"10,\0\0\n"),
            (Bug::HoldsARowBack, 20) => {
                let held_back = self.held_back.take().expect("it was held back");
                self.write(token, &held_back);
            }
            _ => {}
        }
        let refused = |status: StatusCode, outcome: &str| {
            let problem = json!({"code": "buggy", "outcome": outcome, "retryable": false, "status": status.as_u16()});
            (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem)).into_response()
        };
        match (self.bug, self.rows) {
            (Bug::RefusesWhatItWrites, 10) => refused(StatusCode::SERVICE_UNAVAILABLE, "not_written"),
            (Bug::IsNotSure, 10 | 20) => refused(StatusCode::INTERNAL_SERVER_ERROR, "unknown"),
            _ => (StatusCode::CREATED, Json(json!({"replica": "buggy", "token": token}))).into_response(),
        }
    }
}

/// Starts such a service in this process. It rewrites the file at `path` with each row.
async fn serve_with(bug: Bug, path: &Path) -> String {
    let service = BuggyService { bug, file: b"token,data\n".to_vec(), rows: 0, held_back: None };
    let (service, path) = (Arc::new(Mutex::new(service)), path.to_owned());
    let append = async move |_: HeaderMap, Json(body): Json<Value>| {
        let mut service = service.lock().expect("not poisoned");
        let response = service.append(body["data"].as_str().expect("text"));
        fs::write(&path, &service.file).expect("writable");
        response
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async { axum::serve(listener, Router::new().route("/append", post(append))).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_finds_each_kind_of_fault() {
    let bench = Bench::new(On::Embedded);
    for (bug, faults, present) in [
        (Bug::None, &[][..], 30),
        (Bug::Loses, &[("lost", 1)], 29),
        (Bug::WritesTwice, &[("duplicated", 1)], 30),
        (Bug::InventsARow, &[("never_sent", 1)], 30),
        (Bug::AltersARow, &[("lost", 1), ("never_sent", 1)], 29),
        (Bug::TearsALine, &[("torn_line", 1)], 30),
        // The row in the same line as the torn one is lost with it.
        (Bug::LeavesALineOpen, &[("lost", 2), ("torn_line", 1)], 28),
        (Bug::LeavesTheLastLineOpen, &[("torn_line", 1)], 30),
        (Bug::BreaksAQuote, &[("torn_line", 1)], 30),
        (Bug::OpensAQuote, &[("torn_line", 1)], 30),
        (Bug::WritesNul, &[("torn_line", 1)], 30),
        (Bug::HoldsARowBack, &[("out_of_order", 1)], 30),
        (Bug::LowersAToken, &[("token_back", 1)], 30),
        (Bug::RefusesWhatItWrites, &[("not_written_present", 1)], 30),
        (Bug::IsNotSure, &[], 29),
    ] {
        let url = serve_with(bug, &bench.csv).await;
        let args = ["--requests", "30", "--concurrency", "1", "--row-bytes", "60", "--verify", "rows.csv"];
        let (code, report) = load(&bench, &[&url], &args, &[]);
        let verification = &report["verification"];
        let found = verification["findings"].as_array().unwrap_or_else(|| panic!("{bug:?}: {report}"));
        let found: Vec<_> = found
            .iter()
            .map(|finding| {
                assert!(finding["samples"].as_array().is_some_and(|samples| !samples.is_empty()), "{bug:?}: {report}");
                (finding["fault"].as_str().expect("a name"), finding["count"].as_u64().expect("a number"))
            })
            .collect();
        assert_eq!((found.as_slice(), &verification["present"]), (faults, &json!(present)), "{bug:?}: {report}");
        assert_eq!((code, &verification["pass"]), (Some(i32::from(!faults.is_empty())), &json!(faults.is_empty())));
        let unknown = if bug == Bug::IsNotSure { (1, 1) } else { (0, 0) };
        let found = (&verification["unknown_present"], &verification["unknown_absent"]);
        assert_eq!(found, (&json!(unknown.0), &json!(unknown.1)), "{bug:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn report_fits_a_terminal_of_100_columns() {
    let bench = Bench::new(On::Embedded);
    let url = serve_with(Bug::Loses, &bench.csv).await;
    let args = ["load", "--url", &url, "--requests", "30", "--concurrency", "1", "--verify", "rows.csv"];
    let output = block_in_place(|| bench.run(&args, &[]));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for part in [
        "closed loop, 1 connections",
        "p99.9",
        "  201",
        "\nVERIFY rows.csv: FAIL\n",
        "lost                                 1  <-- FAIL\n      row 9\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(output.stderr.is_empty(), "progress without a terminal");
}

#[test]
fn contradicting_options_are_refused_in_one_line() {
    let bench = Bench::new(On::Embedded);
    for (args, name) in [
        (&[][..], "--requests or --duration"),
        (&["--requests", "1", "--duration", "1s"], "--requests or --duration"),
        (&["--requests", "0"], "--requests"),
        (&["--duration", "10"], "--duration"),
        (&["--requests", "1", "--url", "127.0.0.1:8080"], "--url"),
        (&["--requests", "1", "--url", "http://user:hush@a"], "--url"),
        (&["--requests", "1", "--url", "http://b", "--concurrency", "1"], "--concurrency"),
        (&["--requests", "1", "--rate", "0"], "--rate"),
        (&["--requests", "1", "--rate", "NaN"], "--rate"),
        (&["--requests", "1", "--row-bytes", "39"], "--row-bytes"),
        (&["--requests", "1", "--batch", "1000000", "--row-bytes", "68"], "--batch"),
        (&["--requests", "1", "--batch", "10", "--skip-release-every", "5"], "--batch"),
        (&["--requests", "1", "--sleep", "1"], "--sleep-every"),
        (&["--requests", "1", "--sleep-every", "10"], "--sleep"),
        (&["--requests", "1", "--verify", "x", "--verify-http"], "--verify-http"),
        (&["--requests", "1", "--token", "hu\nsh"], "--token"),
        (&["--requests", "1", "--ca", "nowhere.pem"], "--ca"),
        (&["--requests", "1", "--plot", "nowhere/p.svg"], "--plot"),
    ] {
        let output = bench.run(&[&["load", "--url", "http://a"], args].concat(), &[]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{args:?}: {text}");
        assert!(text.contains(name), "{args:?}: {text}");
    }
    let help = String::from_utf8(bench.run(&["load", "--help"], &[]).stdout).expect("UTF-8");
    for part in ["--verify-http", "coordinated omission", "Examples:", "rowlock load --url"] {
        assert!(help.contains(part), "{part:?} in {help}");
    }
    assert!(!help.contains("--redis"), "the help shows settings of a replica: {help}");
}

/// A self-signed certificate for this host, and its key.
fn certificate(folder: &Path) -> [String; 2] {
    let config = "[req]\ndistinguished_name=name\nx509_extensions=ext\nprompt=no\n[name]\nCN=localhost\n[ext]\nsubjectAltName=DNS:localhost\nbasicConstraints=critical,CA:FALSE\n";
    fs::write(folder.join("openssl.cnf"), config).expect("writable");
    let [cert, key] = ["own.pem", "own.key"].map(|name| folder.join(name).display().to_string());
    let args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let mut command = Command::new("openssl");
    command.args(args).args(["-config", "openssl.cnf", "-out", &cert, "-keyout", &key]).current_dir(folder);
    let made = command.output().expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    [cert, key]
}

#[tokio::test(flavor = "multi_thread")]
async fn load_and_health_use_https_and_check_certificates() {
    let bench = Bench::new(On::Embedded);
    let [cert, key] = certificate(bench.folder());
    let address = format!("127.0.0.1:{}", free_port());
    let settings = [("ROWLOCK_TLS_CERT", &*cert), ("ROWLOCK_TLS_KEY", &*key), ("ROWLOCK_LISTEN", &*address)];
    let _replica = bench.replica(&settings);
    let url = format!("https://localhost:{}", address.rsplit(':').next().expect("a port"));
    assert_passed(&load(&bench, &[&url], &["--requests", "20", "--verify-http", "--ca", &cert], &[]), 20);
    let code = |args: &[&str], settings: &[(&str, &str)]| bench.run(args, settings).status.code();
    assert_eq!(code(&["health", &url, "--ca", &cert], &[]), Some(0));
    assert_eq!(code(&["health", &url], &[]), Some(1), "the certificate is not trusted");
    assert_eq!(code(&["health"], &settings), Some(0), "its own address");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reports_whether_a_replica_is_ready() {
    let bench = Bench::new(On::Embedded);
    let port = free_port();
    let settings =
        [("ROWLOCK_LISTEN", &*format!("0.0.0.0:{port}")), ("ROWLOCK_AUTH", "off"), ("ROWLOCK_DRAIN_DELAY", "1h")];
    let replica = bench.replica(&settings);
    let health = |args: &[&str], settings: &[(&str, &str)]| {
        let output = bench.run(&[&["health", "--json"], args].concat(), settings);
        let health: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), health["ready"].clone(), health["status"].clone())
    };
    let url = format!("http://localhost:{port}");
    assert_eq!(health(&[], &settings), (Some(0), json!(true), json!(200)));
    assert_eq!(health(&[&url], &[]), (Some(0), json!(true), json!(200)));
    replica.signal("TERM");
    until("it is draining", async || health(&[&url], &[]) == (Some(1), json!(false), json!(503))).await;
    let unreachable = format!("http://127.0.0.1:{}", free_port());
    assert_eq!(health(&[&unreachable], &[]), (Some(1), json!(false), Value::Null));
    let text = |args: &[&str]| String::from_utf8(bench.run(args, &[]).stdout).expect("UTF-8");
    assert_eq!(text(&["health", &url]), format!("{url}: not ready, answered 503\n"));
    assert_eq!(health(&["x"], &[]), (Some(2), Value::Null, Value::Null));
    assert_eq!(health(&[], &[("ROWLOCK_LISTEN", "127.0.0.1:0")]), (Some(2), Value::Null, Value::Null));
}
