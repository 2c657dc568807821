//! Commands: `rowlock append`, exit codes, interrupts, outputs that cannot be written.

use std::{
    fs,
    io::{self, Write},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use crate::support::{Bench, LOCK_KEY, On, QUEUE_KEY, free_port, until, until_held};

#[test]
fn append_shares_lock_and_file_with_replicas() {
    let bench = Bench::new(On::Redis);
    let output = bench.run(&["append", "--data", "-5, \"quoted\""], &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("appended 1 row at offset 29 ("), "{text}");
    let output = bench.run(
        &["append", "--json", "--data", "two", "--sleep", "0.2", "--skip-release"],
        &[("ROWLOCK_LOCK_TTL", "300ms")],
    );
    let ack: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&ack["token"], &ack["released"], &ack["rows"]), (&2.into(), &false.into(), &1.into()));
    assert!(ack["held_ms"].as_u64() >= Some(200));
    assert_eq!(bench.redis().cli(&["exists", LOCK_KEY]), "1");
    let output = bench.run(&["append", "--data", "three"], &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        bench.rows().iter().map(|row| row["data"].as_str()).collect::<Vec<_>>(),
        ["-5, \"quoted\"", "two", "three"]
    );
}

#[test]
fn lines_of_standard_input_are_one_batch() {
    let bench = Bench::new(On::Embedded);
    let mut command = bench.command(&[("ROWLOCK_JOURNAL_BYTES", "32MiB")]);
    command.args(["append", "--data", "-", "--json"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("runs");
    let lines: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("taken");
    let output = child.wait_with_output().expect("ends");
    let ack: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&ack["rows"], &ack["token"]), (&100_000.into(), &1.into()));
    let rows = bench.rows();
    assert_eq!(rows.len(), 100_000);
    assert!(rows.iter().enumerate().all(|(n, row)| row["data"] == format!("line {n}") && row["token"] == "1"));
}

/// Appends this standard input by `--data -`.
fn append_lines(bench: &Bench, input: &str) -> Output {
    let mut command = bench.command(&[]);
    command.args(["append", "--data", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("taken");
    child.wait_with_output().expect("ends")
}

#[test]
fn standard_input_may_have_a_bom_and_crlf() {
    for (input, expected) in [
        ("\u{feff}one\r\ntwo\r\n", &["one", "two"][..]),
        ("\u{feff}one", &["one"]),
        ("one\n\u{feff}two\n", &["one", "\u{feff}two"]),
        ("\u{feff}\u{feff}one\n", &["\u{feff}one"]),
        ("one\n\ntwo", &["one", "", "two"]),
    ] {
        let bench = Bench::new(On::Embedded);
        let output = append_lines(&bench, input);
        assert!(output.status.success(), "{input:?}: {output:?}");
        assert_eq!(bench.rows().iter().map(|row| &*row["data"]).collect::<Vec<_>>(), expected, "{input:?}");
    }
    let bench = Bench::new(On::Embedded);
    assert_eq!(append_lines(&bench, "\u{feff}").status.code(), Some(1), "a BOM alone is no row");
}

#[test]
fn exit_codes_tell_failures_apart() {
    let bench = Bench::new(On::Redis);
    let code = |args: &[&str], settings: &[(&str, &str)]| bench.run(args, settings).status.code();
    assert_eq!(code(&["append", "--data", "-"], &[]), Some(1), "nothing to append");
    assert_eq!(code(&["append", "--data", "a\u{1}b", "--sleep", "61"], &[]), Some(2));
    assert_eq!(code(&["append", "--data", "x", "--sleep", "soon"], &[]), Some(2));
    assert_eq!(code(&["append", "--data", "x", "--sleep", "1"], &[("ROWLOCK_SIMULATION", "off")]), Some(2));
    assert_eq!(code(&["append"], &[]), Some(2));
    assert_eq!(code(&["frobnicate"], &[]), Some(2));
    assert_eq!(code(&["--help"], &[]), Some(0));
    assert_eq!(code(&["--version"], &[]), Some(0));
    bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
    assert_eq!(code(&["append", "--data", "x"], &[("ROWLOCK_WAIT_TIMEOUT", "200ms")]), Some(75));
    let away = [("REDIS_CONN_STR", "redis://127.0.0.1:1"), ("ROWLOCK_WAIT_TIMEOUT", "200ms")];
    assert_eq!(code(&["append", "--data", "x"], &away), Some(75));
    assert!(bench.rows().is_empty());
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

/// Starts `rowlock append`, to be interrupted.
fn begin_append(bench: &Bench, args: &[&str]) -> Child {
    let mut command = bench.command(&[("ROWLOCK_LOCK_TTL", "1h"), ("ROWLOCK_WAIT_TIMEOUT", "1h")]);
    command.args(["append", "--data", "x"]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("runs")
}

/// It must end with this code, and say that the row was not written.
fn assert_interrupted(bench: &Bench, child: Child, code: i32) {
    let output = child.wait_with_output().expect("ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.contains("interrupted: nothing was written")).count(), 1, "{stderr}");
    assert!(output.stdout.is_empty() && bench.rows().is_empty());
}

#[tokio::test]
async fn interrupted_sleep_releases_the_lock() {
    for on in [On::Redis, On::Embedded] {
        for (name, code) in [("INT", 130), ("TERM", 143)] {
            for args in [&["--sleep", "60"][..], &["--sleep", "60", "--skip-release"]] {
                let bench = Bench::new(on);
                let child = begin_append(&bench, args);
                until_held(&bench).await;
                signal(&child, name);
                assert_interrupted(&bench, child, code);
                // The time to live of the interrupted one is an hour.
                let next = bench.run(&["append", "--data", "y"], &[("ROWLOCK_WAIT_TIMEOUT", "5s")]);
                assert!(next.status.success(), "{name} {args:?}: {next:?}");
            }
        }
    }
}

#[tokio::test]
async fn interrupted_wait_gives_up_its_place_in_the_queue() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let bench = Bench::new(On::Redis);
        bench.redis().cli(&["set", LOCK_KEY, "foreign"]);
        let child = begin_append(&bench, &[]);
        until("it waits", async || bench.redis().cli(&["exists", QUEUE_KEY]) == "1").await;
        signal(&child, name);
        assert_interrupted(&bench, child, code);
        assert_eq!(bench.redis().cli(&["exists", QUEUE_KEY]), "0", "{name}");
    }
}

/// A standard stream that fails at once: on a full disk, or to a reader that is gone.
fn broken_stream(fault: &str) -> Stdio {
    match fault {
        "full" => fs::File::options().write(true).open("/dev/full").expect("a device").into(),
        _ => io::pipe().expect("a pipe").1.into(),
    }
}

const FAULTS: [&str; 2] = ["full", "closed"];

fn run_with_stdout(bench: &Bench, args: &[&str], fault: &str) -> Output {
    let mut command = bench.command(&[]);
    command.args(args).stdin(Stdio::null()).stdout(broken_stream(fault)).stderr(Stdio::piped());
    command.output().expect("ends")
}

#[tokio::test]
async fn result_that_cannot_be_shown_has_an_exit_code_of_its_own() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    let csv = bench.csv.display().to_string();
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let broken = bench.folder().join("broken.csv");
    fs::write(&broken, "a,b\n1\n").expect("writable");
    let broken = broken.display().to_string();
    let load = ["load", "--url", &replica.url, "--requests", "3", "--verify-http"];
    let failing_load = ["load", "--url", &nowhere, "--requests", "3"];
    let table: [(&[&str], i32, &str, usize); 12] = [
        (&["append", "--data", "x"], 73, "appended 1 row;", 1),
        (&["append", "--data", "x", "--skip-release", "--sleep", "0.1"], 73, "appended 1 row;", 1),
        (&["check", &csv], 73, "the CSV is whole;", 0),
        (&["check", &broken], 1, "the CSV is not whole;", 0),
        (&["lock"], 73, "the lock was looked up;", 0),
        (&["lock", "status"], 73, "the lock was looked up;", 0),
        (&["lock", "release"], 73, "the lock", 0),
        (&["health", &replica.url], 73, "ready;", 0),
        (&["health", &nowhere], 1, "not ready;", 0),
        (&load, 73, "the load test passed;", 3),
        (&failing_load, 1, "the load test failed;", 0),
        (&["check", &csv, "--repair"], 73, "the CSV is whole;", 0),
    ];
    for fault in FAULTS {
        for (args, code, done, rows) in &table {
            for json in [&[][..], &["--json"]] {
                let args = [args, json].concat();
                let before = bench.rows().len();
                let output = run_with_stdout(&bench, &args, fault);
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(*code), "{args:?} {fault}: {stderr}");
                let line = stderr.lines().find(|line| line.contains("standard output cannot be written"));
                assert!(line.is_some_and(|line| line.contains(done)), "{args:?} {fault}: {stderr}");
                assert!(!stderr.contains("panicked"), "{stderr}");
                assert_eq!(bench.rows().len(), before + rows, "{args:?} {fault}");
            }
        }
        for args in [&["--help"][..], &["-h"], &["--version"], &["append", "--help"], &["help", "load"]] {
            let output = run_with_stdout(&bench, args, fault);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), stderr.lines().count()), (Some(73), 1), "{args:?} {fault}: {stderr}");
        }
    }
}

#[tokio::test]
async fn broken_standard_error_changes_no_result() {
    let bench = Bench::new(On::Embedded);
    for fault in FAULTS {
        for (args, code) in [
            (&["append", "--data", "x"][..], 0),
            (&["append", "--data", "x", "--sleep", "soon"], 2),
            (&["frobnicate"], 2),
            (&["check", "--repair"], 0),
            (&["check", "nowhere.csv"], 1),
        ] {
            let mut command = bench.command(&[("ROWLOCK_UNKNOWN", "makes a warning")]);
            let output = command.args(args).stdout(Stdio::null()).stderr(broken_stream(fault)).output().expect("ends");
            assert_eq!(output.status.code(), Some(code), "{args:?} {fault}");
        }
        // Each request is a line of the log.
        let address = format!("127.0.0.1:{}", free_port());
        let mut server = bench.command(&[("ROWLOCK_LISTEN", &address)]);
        let mut server = server.stderr(broken_stream(fault)).spawn().expect("runs");
        let url = format!("http://{address}");
        until("it serves", async || bench.run(&["health", &url], &[]).status.success()).await;
        let load = bench.run(&["load", "--url", &url, "--requests", "20", "--verify-http"], &[]);
        signal(&server, "TERM");
        assert!(load.status.success(), "{fault}: {load:?}");
        assert_eq!(server.wait().expect("ends").code(), Some(0), "{fault}");
    }
}

#[test]
fn wrong_value_of_an_unused_variable_is_harmless() {
    let bench = Bench::new(On::Embedded);
    assert!(bench.run(&["append", "--data", "x"], &[]).status.success());
    let csv = bench.csv.display().to_string();
    // Each command with a variable that it uses, and one that it does not.
    for (args, used, unused) in [
        (&["append", "--data", "x"][..], "ROWLOCK_LOCK_TTL", "ROWLOCK_GRACE"),
        (&["append", "--data", "x"], "ROWLOCK_MAX_SLEEP", "ROWLOCK_LISTEN"),
        (&["append", "--data", "x"], "ROWLOCK_QUEUE_BYTES", "ROWLOCK_QUEUE_ROWS"),
        (&["check", &csv], "ROWLOCK_IDEMPOTENCY_KEYS", "ROWLOCK_MAX_SLEEP"),
        (&["lock"], "ROWLOCK_WAIT_TIMEOUT", "ROWLOCK_FORMULA_GUARD"),
        (&["lock", "status"], "ROWLOCK_REPLICA", "ROWLOCK_RATE_LIMIT"),
    ] {
        let code = |variable| bench.run(args, &[(variable, "wrong value")]).status.code();
        assert_eq!((code(used), code(unused)), (Some(2), Some(0)), "{args:?} {used} {unused}");
    }
}

#[test]
fn flag_of_a_setting_that_the_command_does_not_use_is_refused() {
    let bench = Bench::new(On::Embedded);
    for (args, flag) in [
        (&["append", "--data", "x", "--grace", "1s"][..], "--grace"),
        (&["--max-connections", "5", "append", "--data", "x"], "--max-connections"),
        (&["check", "--formula-guard", "on"], "--formula-guard"),
        (&["lock", "status", "--listen", ":1"], "--listen"),
        (&["health", "--csv", "a.csv"], "--csv"),
        (&["load", "--url", "http://127.0.0.1:1", "--requests", "1", "--lock-ttl", "1s"], "--lock-ttl"),
    ] {
        let output = bench.run(args, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{args:?}: {stderr}");
        assert!(stderr.contains(flag), "{args:?}: {stderr}");
    }
    // A flag of all commands may stand before the command.
    let csv = bench.folder().join("other.csv");
    let output = bench.run(&["--csv", &csv.display().to_string(), "append", "--data", "x"], &[]);
    assert!(output.status.success() && csv.exists(), "{output:?}");
}
