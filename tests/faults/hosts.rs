//! Histories of `tests/hosts`: one JSON object a line, for each request and for each reading of the whole file.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

use crate::{
    checker::{self, AllowedErrors, Findings},
    history::{Attempt, AttemptResult, History, Op, Snapshot},
};

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The first line: the seed, which each row's data begins with.
    Seed(u64),
    Request(Request),
    /// The whole file as a host read it, in a file beside the history.
    Snapshot {
        host: usize,
        sent_us: u64,
        file: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    /// The number of its first row. All attempts of an append have the same.
    first: u64,
    /// The data of its rows.
    rows: Vec<String>,
    key: Option<String>,
    host: usize,
    #[serde(rename = "client")]
    _client: usize,
    sent_us: u64,
    ended_us: u64,
    result: AttemptResult,
}

/// Checks the history against the CSV.
///
/// # Errors
/// The history is unreadable, or has no acknowledged row: then nothing was tested.
pub(crate) fn check(history: &Path, csv: &Path, disk_errors: bool) -> Result<Findings, String> {
    let text = fs::read(csv).map_err(|e| format!("{}: {e}", csv.display()))?;
    let folder = history.parent().unwrap_or(Path::new("."));
    let lines = fs::read_to_string(history).map_err(|e| format!("{}: {e}", history.display()))?;
    let history = parse(&lines, folder)?;
    if !history.ops.iter().any(|op| op.acknowledgement().is_some()) {
        return Err("the history has no acknowledged row".to_owned());
    }
    let allowed = AllowedErrors { disk_errors, short_reads: false };
    let mut findings = Findings::default();
    checker::check(&history, &text, allowed, &mut findings);
    Ok(findings)
}

fn parse(lines: &str, folder: &Path) -> Result<History, String> {
    let mut history = History::default();
    let mut ops = BTreeMap::<u64, Op>::new();
    for (line, number) in lines.lines().zip(1..) {
        match serde_json::from_str(line).map_err(|e| format!("line {number} of the history: {e}"))? {
            Line::Seed(seed) => history.seed = seed,
            Line::Snapshot { host, sent_us, file } => {
                let text = fs::read(folder.join(&file)).map_err(|e| format!("{file}: {e}"))?;
                // A NUL byte stays visible, and so does a byte that is no UTF-8, as another character.
                let text = String::from_utf8_lossy(&text).into_owned();
                history.snapshots.push(Snapshot { sent_us, slot: host, text });
            }
            Line::Request(Request { first, rows, key, host, sent_us, ended_us, result, .. }) => {
                let op = ops.entry(first).or_insert_with(|| Op {
                    first,
                    rows: rows.len() as u64,
                    key,
                    attempts: Vec::new(),
                });
                op.attempts.push(Attempt { slot: host, sent_us, ended_us, result });
                history.texts.extend((first..).zip(rows));
            }
        }
    }
    history.ops.extend(ops.into_values());
    Ok(history)
}
