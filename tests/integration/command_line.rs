//! `rowlock append` and exit codes.

use std::{io::Write, process::Stdio};

use serde_json::Value;

use crate::support::{Bench, LOCK_KEY, On};

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
