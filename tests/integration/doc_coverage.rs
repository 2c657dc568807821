//! The documents name everything that a user meets: error codes, lines of the log, metrics; and nothing that is gone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::support::{Bench, On};

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a file of the repository")
}

/// The part of a document from this heading to the next one of its level.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, rest) = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}"));
    rest.split("\n## ").next().unwrap_or_default()
}

/// The cells of all table rows that begin with code, without its quotes in the first cell.
fn rows(section: &str) -> Vec<Vec<&str>> {
    let lines = section.lines().filter_map(|line| line.strip_prefix("| `"));
    lines.map(|line| line.split(" | ").map(|cell| cell.trim_matches(['`', ' ', '|'])).collect()).collect()
}

#[test]
fn every_error_code_has_cause_and_fix() {
    let mut known = BTreeSet::new();
    let (mut status, mut retry, mut in_codes) = ("", "no", false);
    let contract = file("openapi.yaml");
    for line in contract.lines().map(str::trim) {
        let is_status = line.len() == 6 && line.starts_with('\'') && line.ends_with("':");
        if is_status {
            (status, retry) = (&line[1..4], "no");
        }
        retry = if line == "Retry-After:" { "yes" } else { retry };
        match line.strip_prefix("- ").filter(|_| in_codes) {
            Some(code) => _ = known.insert((code, status, retry)),
            None => in_codes = line == "x-codes:",
        }
    }
    assert!(known.len() >= 20, "{known:?}");
    let document = file("docs/troubleshooting.md");
    let documented = rows(section(&document, "## Error codes"));
    assert!(documented.iter().all(|row| row.len() == 5 && row.iter().all(|cell| !cell.is_empty())), "{documented:?}");
    let documented: BTreeSet<_> = documented.iter().map(|row| (row[0], row[1], row[2])).collect();
    // Answers to requests that reach no operation.
    known.extend([("not_found", "404", "no"), ("method_not_allowed", "405", "no"), ("bad_request", "400", "no")]);
    known.extend([("uri_too_long", "414", "no"), ("head_too_large", "431", "no")]);
    assert_eq!(documented, known, "left: docs/troubleshooting.md, right: openapi.yaml");
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The message of a logging macro whose arguments begin here: the string literal that is an argument by itself.
fn message(arguments: &str) -> Option<String> {
    let (mut depth, mut begins_argument) = (0, true);
    let mut chars = arguments.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                let mut text = String::new();
                while let Some(c) = chars.next().filter(|&c| c != '"') {
                    text.push(if c == '\\' { chars.next()? } else { c });
                }
                if begins_argument && depth == 0 {
                    return Some(text);
                }
                begins_argument = false;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => return None,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => begins_argument = true,
            c if c.is_whitespace() => {}
            _ => begins_argument = false,
        }
    }
    None
}

#[test]
fn every_warning_and_error_of_the_log_has_cause_and_fix() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut logged = BTreeSet::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("readable");
        for (name, level) in [("warn!(", "WARN"), ("error!(", "ERROR")] {
            for (at, _) in text.match_indices(name).filter(|&(at, _)| !text[..at].ends_with("compile_")) {
                assert!(text[..at].ends_with("tracing::"), "{}: write tracing::{name}…)", path.display());
                let message = message(&text[at + name.len()..]);
                let message = message.unwrap_or_else(|| panic!("{}: a {level} without a message", path.display()));
                assert!(!message.contains('{'), "{}: put values into fields: {message}", path.display());
                logged.insert((message, level.to_owned()));
            }
        }
    }
    assert!(logged.len() >= 30, "{logged:?}");
    let document = file("docs/troubleshooting.md");
    let documented = rows(section(&document, "## Warnings and errors in the log"));
    assert!(documented.iter().all(|row| row.len() == 4 && row.iter().all(|cell| !cell.is_empty())), "{documented:?}");
    let documented: BTreeSet<_> = documented.iter().map(|row| (row[0].to_owned(), row[1].to_owned())).collect();
    let missing: Vec<_> = logged.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&logged).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "docs/troubleshooting.md: missing: {missing:#?}\nno longer logged: {gone:#?}"
    );
}

#[tokio::test]
async fn observability_names_every_metric_and_no_other() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    replica.append_text("x").await;
    let scraped = replica.get("/metrics", &[]).await.text().await.expect("text");
    let known: BTreeSet<_> =
        scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(known.len() >= 30, "{scraped}");
    let document = file("docs/observability.md");
    let table = section(&document, "## Metrics").lines().filter(|line| line.starts_with("| `"));
    let cells = table.filter_map(|line| line.split(" | ").next()).flat_map(|cell| cell.split('`').skip(1).step_by(2));
    assert_eq!(cells.collect::<BTreeSet<_>>(), known, "left: docs/observability.md, right: /metrics");
}

/// All files below a folder.
fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

#[test]
fn source_files_named_in_developer_pages_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut sources, mut pages) = (Vec::new(), vec![root.join("ARCHITECTURE.md"), root.join("SECURITY.md")]);
    ["src", "tests", "benches", "fuzz/fuzz_targets"]
        .iter()
        .for_each(|name| files_below(&root.join(name), &mut sources));
    ["docs/design", "docs/development", "docs/adr"].iter().for_each(|name| files_below(&root.join(name), &mut pages));
    let mut named = 0;
    for page in pages {
        let text = fs::read_to_string(&page).expect("readable");
        for name in text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs") || name.ends_with(".lua")) {
            // A path is relative to any folder; braces name several files.
            let exists = name.contains('{') || sources.iter().any(|source| source.ends_with(name));
            assert!(exists, "{}: {name}", page.display());
            named += 1;
        }
    }
    assert!(named >= 50, "the pages name {named} files");
}
