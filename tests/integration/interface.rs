//! The interface that users and programs depend on: `--help` of each command, and the names of all metrics.
//!
//! The files in `tests/fixtures/interface/` are the expected texts. `ROWLOCK_WRITE=1 cargo test --test integration interface` writes
//! them again after an intended change.

use std::{fs, path::Path};

use crate::support::{Bench, On};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/interface");

/// Compares a text with its file, or writes the file.
fn assert_unchanged(name: &str, text: &str) {
    let path = Path::new(FOLDER).join(name);
    if std::env::var_os("ROWLOCK_WRITE").is_some() {
        fs::create_dir_all(FOLDER).expect("a writable directory");
        fs::write(&path, text).expect("writable");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{} differs; if that is intended, write it again with ROWLOCK_WRITE=1:\n{text}",
        path.display()
    );
}

#[test]
fn help_of_each_command_is_unchanged() {
    let bench = Bench::new(On::Embedded);
    for command in ["", "serve", "append", "lock", "check", "health", "load"] {
        let args: Vec<_> = [command, "--help"].into_iter().filter(|arg| !arg.is_empty()).collect();
        let output = bench.run(&args, &[]);
        assert!(output.status.success(), "{args:?}: {output:?}");
        let name = if command.is_empty() { "rowlock" } else { command };
        assert_unchanged(&format!("help-{name}.txt"), &String::from_utf8(output.stdout).expect("UTF-8"));
    }
}

#[test]
fn help_of_a_command_shows_its_own_settings_with_examples() {
    let bench = Bench::new(On::Embedded);
    let help = |args: &[&str]| String::from_utf8(bench.run(args, &[]).stdout).expect("UTF-8");
    for (command, shown, hidden) in [
        (
            "append",
            &["--csv", "--redis", "--lock-key", "--wait-timeout", "--formula-guard", "--max-sleep"][..],
            "--listen",
        ),
        ("check", &["--csv", "--csv-header", "--idempotency-keys", "--unlocked-volume"], "--formula-guard"),
        ("lock", &["--csv", "--redis", "--redis-ca", "--lock-ttl"], "--max-sleep"),
        ("health", &["--listen", "--tls-cert"], "--csv"),
        ("load", &["--url", "--log-format"], "--redis"),
        ("serve", &["--listen", "--csv", "--redis", "--grace", "--tls-cert", "--body-limit"], "--url"),
    ] {
        let text = help(&[command, "--help"]);
        let has = |flag: &str| text.split_whitespace().any(|word| word == flag);
        for flag in shown {
            assert!(has(flag), "{command} {flag}: {text}");
        }
        assert!(!text.contains(&format!("  {hidden} ")), "{command} {hidden}: {text}");
        assert!(text.contains("\nExamples:\n  rowlock ") && text.contains("Exit codes: 0"), "{command}: {text}");
        assert_eq!(help(&["help", command]), text, "{command}");
    }
    assert!(!help(&["lock", "release", "--help"]).contains("--listen"));
}

#[test]
fn metric_names_are_unchanged() {
    let names: String = rowlock::metrics::names().map(|name| format!("{name}\n")).collect();
    assert_unchanged("metrics.txt", &names);
}
