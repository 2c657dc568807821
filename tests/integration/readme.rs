//! README.md and docs/quick-start.md: short enough, and every command in them answers as printed.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use crate::support::{Bench, On, Replica};

const LINES_MAX: usize = 150;

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a file of the repository")
}

/// The commands of all `console` blocks, each with the output that the document shows.
fn sessions(document: &str) -> Vec<(String, String)> {
    let blocks = document.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    blocks
        .flat_map(|block| format!("\n{block}").split("\n$ ").skip(1).map(str::to_owned).collect::<Vec<_>>())
        .map(|step| {
            let (command, output) = step.split_once('\n').unwrap_or((&step, ""));
            (command.to_owned(), output.trim_end().to_owned())
        })
        .collect()
}

/// Numbers, request ids and generated replica names differ from run to run.
fn normalized(output: &str) -> String {
    let mut text = output.trim_end().replace("}{", "}\n{");
    for (before, after) in [("\"request_id\":\"", "\""), ("\"replica\":\"vm-", "\"")] {
        if let Some(start) = text.find(before).map(|at| at + before.len()) {
            let end = start + text[start..].find(after).expect("a string ends");
            text.replace_range(start..end, "");
        }
    }
    let mut number = false;
    text.chars()
        .filter_map(|c| {
            let continues = number && c.is_ascii_digit();
            number = c.is_ascii_digit();
            if continues { None } else { Some(if number { 'N' } else { c }) }
        })
        .collect()
}

/// A shell in the bench's directory that reaches these replicas under the documents' addresses.
fn run(bench: &Bench, replicas: &[&Replica; 2], command: &str) -> String {
    let command = command
        .replace("http://127.0.0.1:8080", &replicas[0].url)
        .replace("http://127.0.0.1:8081", &replicas[1].url)
        .replace("./rowlock", env!("CARGO_BIN_EXE_rowlock"));
    let output = Command::new("sh")
        .args(["-c", &command])
        .current_dir(bench.folder())
        .env("REDIS_CSV_FILE_NAME", &bench.csv)
        .env("ROWLOCK_JOURNAL_BYTES", "1MiB")
        .env("ROWLOCK_REPLICA", "vm-test")
        .output()
        .expect("sh runs");
    String::from_utf8(output.stdout).expect("UTF-8").replace(&bench.folder().display().to_string(), "/home/ann/rows")
}

fn answers_as_printed(document: &str) {
    let bench = Bench::new(On::Embedded);
    let start = |name| bench.replica(&[("ROWLOCK_REPLICA", name), ("ROWLOCK_LOCK_TTL", "1s")]);
    let (one, two) = (start("one"), start("two"));
    let steps = sessions(&file(document));
    assert!(steps.len() >= 8, "{document}: {steps:?}");
    for (command, shown) in steps {
        // Outputs of a command in the background come in any order.
        let lines = |output: &str| {
            let text = normalized(output);
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if command.contains(" & ") {
                lines.sort();
            }
            lines
        };
        let mut got = run(&bench, &[&one, &two], &command);
        // A replica keeps the lock for a moment after a row, and only `lock` shows it.
        for _ in 0..20 {
            if !command.contains("lock") || command.contains("append") || lines(&got) == lines(&shown) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
            got = run(&bench, &[&one, &two], &command);
        }
        assert_eq!(lines(&got), lines(&shown), "{document}: {command}\n{got}");
    }
}

#[test]
fn readme_sessions_answer_as_printed() {
    answers_as_printed("README.md");
}

#[test]
fn quick_start_sessions_answer_as_printed() {
    answers_as_printed("docs/quick-start.md");
}

#[test]
fn readme_is_at_most_150_lines() {
    let lines = file("README.md").lines().count();
    assert!(lines <= LINES_MAX, "README.md has {lines} lines");
}

#[test]
fn pictures_of_the_documents_exist() {
    for (document, folder) in [("README.md", ""), ("docs/live-page.md", "docs/")] {
        let text = file(document);
        let named: Vec<_> = ["src=\"", "srcset=\""]
            .iter()
            .flat_map(|attribute| text.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()))
            .collect();
        assert!(!named.is_empty(), "{document}");
        for name in named {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name).exists(), "{document}: {name}");
        }
    }
}
