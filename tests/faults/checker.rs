//! Compares the file with the history of requests and responses. It uses no code of the service.

use std::collections::{BTreeMap, HashMap};

use csv::{ReaderBuilder, StringRecord};

use crate::history::{AttemptResult, FOREIGN, HEADER, History, Op, Outcome, Snapshot, number_of};

/// What may be wrong after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Violation {
    Lost,
    Duplicated,
    Torn,
    NeverSent,
    RefusedButPresent,
    /// Retries with a key were never acknowledged.
    NeverAcknowledged,
    WrongAnswer,
    OutOfOrder,
    TokenDecreased,
    TwoHolders,
    WrongSnapshot,
    UnexpectedError,
    SlowRecovery,
    FaultWithoutEffect,
    UnexpectedExit,
}

/// All violations of a run, with a description of each.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) BTreeMap<Violation, Vec<String>>);

impl Findings {
    pub(crate) fn add(&mut self, violation: Violation, description: impl Into<String>) {
        self.0.entry(violation).or_default().push(description.into());
    }

    pub(crate) fn count(&self, violation: Violation) -> u64 {
        self.0.get(&violation).map_or(0, |found| found.len() as u64)
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.values().map(|found| found.len() as u64).sum()
    }
}

/// A row of the clients in the file.
struct Row {
    offset: u64,
    token: u64,
    replica: String,
    key: String,
}

/// Errors that the faults of a run explain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AllowedErrors {
    /// Error responses because the disk failed.
    pub(crate) disk_errors: bool,
    /// Reads that end before the last acknowledged row: a stopped process keeps the files locked, or they wait for a repair.
    pub(crate) short_reads: bool,
}

pub(crate) fn check(history: &History, text: &[u8], allowed: AllowedErrors, findings: &mut Findings) {
    let rows = read(history, text, findings);
    let mut ops: Vec<_> = history.ops.iter().collect();
    ops.sort_unstable_by_key(|op| op.first);
    for op in &ops {
        check_op(history, op, &rows, text, findings);
        check_responses(op, allowed, findings);
    }
    let never_sent = rows.keys().filter(|&&number| op_of(&ops, number).is_none());
    for number in never_sent {
        findings.add(Violation::NeverSent, format!("row {number}"));
    }
    check_order(&ops, &rows, findings);
    check_holders(&rows, findings);
    check_snapshots(history, text, allowed, findings);
    for wrong_read in &history.wrong_reads {
        findings.add(Violation::WrongAnswer, wrong_read);
    }
    for hold in history.holds.iter().filter(|hold| !hold.still_held || hold.bytes_before != hold.bytes_after) {
        findings.add(Violation::TwoHolders, format!("while a foreign client held the lock: {hold:?}"));
    }
}

fn op_of<'a>(ops: &[&'a Op], number: u64) -> Option<&'a Op> {
    let at = ops.partition_point(|op| op.first <= number).checked_sub(1)?;
    (number < ops[at].first + ops[at].rows).then_some(ops[at])
}

/// The rows of the clients by number. Strict: a line that a reader could interpret in two ways is torn.
fn read(history: &History, text: &[u8], findings: &mut Findings) -> HashMap<u64, Row> {
    let (mut rows, mut highest_token) = (HashMap::new(), 0);
    if text.contains(&0) {
        findings.add(Violation::Torn, "a NUL byte");
    }
    if !text.ends_with(b"\n") {
        findings.add(Violation::Torn, "the last line has no line end");
    }
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text);
    let mut cells = StringRecord::new();
    let mut is_header = true;
    loop {
        let offset = reader.position().byte();
        match reader.read_record(&mut cells) {
            Ok(false) => return rows,
            Err(e) => {
                findings.add(Violation::Torn, e.to_string());
                continue;
            }
            Ok(true) => {}
        }
        if std::mem::take(&mut is_header) {
            if cells.iter().collect::<Vec<_>>().join(",") != HEADER {
                findings.add(Violation::Torn, format!("the header is {cells:?}"));
            }
            continue;
        }
        if cells.len() != 5 {
            findings.add(Violation::Torn, format!("at {offset}: {cells:?}"));
            continue;
        }
        if cells[4].starts_with(FOREIGN) {
            continue;
        }
        let number = number_of(history.seed, &cells[4]).filter(|&number| history.row(number) == cells[4]);
        let (Some(number), Ok(token)) = (number, cells[2].parse::<u64>()) else {
            findings.add(Violation::NeverSent, format!("at {offset}: {cells:?}"));
            continue;
        };
        if token < highest_token {
            findings.add(
                Violation::TokenDecreased,
                format!("row {number} at {offset}: token {token} after {highest_token}"),
            );
        }
        highest_token = token;
        let found = Row { offset, token, replica: cells[1].to_owned(), key: cells[3].to_owned() };
        if let Some(before) = rows.insert(number, found) {
            findings.add(Violation::Duplicated, format!("row {number} at {} and {offset}", before.offset));
        }
    }
}

fn check_op(history: &History, op: &Op, rows: &HashMap<u64, Row>, text: &[u8], findings: &mut Findings) {
    let present = (op.first..op.first + op.rows).filter(|number| rows.contains_key(number)).count() as u64;
    let name = format!("rows {} to {}, key {:?}", op.first, op.first + op.rows - 1, op.key);
    match op.outcome() {
        Outcome::Acknowledged if present < op.rows => {
            findings
                .add(Violation::Lost, format!("{name}: {present} of {} are in the file: {:?}", op.rows, op.attempts));
            return;
        }
        Outcome::NotWritten if present > 0 => {
            findings.add(Violation::RefusedButPresent, format!("{name}: {:?}", op.attempts))
        }
        // A batch is written whole or not at all.
        Outcome::Unknown if present > 0 && present < op.rows => {
            findings.add(Violation::Torn, format!("{name}: {present}"))
        }
        _ => {}
    }
    if op.key.is_some() && op.outcome() != Outcome::Acknowledged {
        findings.add(Violation::NeverAcknowledged, format!("{name}: {:?}", op.attempts.last()));
    }
    let acks = op.attempts.iter().filter_map(|attempt| match &attempt.result {
        AttemptResult::Acknowledged(ack) => Some(ack),
        _ => None,
    });
    for ack in acks {
        let first = &rows[&op.first];
        let at = usize::try_from(ack.offset).expect("fits");
        let end = at + usize::try_from(ack.bytes).expect("fits");
        let wrong = |reason: &str| format!("{name}: {reason}: {ack:?}, the row is at {}", first.offset);
        // A replayed answer may name the replica that answers or the one that wrote the row.
        if (ack.offset, ack.token) != (first.offset, first.token) {
            findings.add(Violation::WrongAnswer, wrong("another offset or token"));
        } else if !ack.replayed && ack.replica != first.replica {
            findings.add(Violation::WrongAnswer, wrong("another replica"));
        } else if text.get(at..end).is_none_or(|text| !holds(history, text, op)) {
            findings.add(Violation::WrongAnswer, wrong("other bytes"));
        }
    }
    let key = op.key.as_deref().unwrap_or_default();
    if (op.first..op.first + op.rows).any(|number| rows.get(&number).is_some_and(|row| row.key != key)) {
        findings.add(Violation::WrongAnswer, format!("{name}: the row has another key"));
    }
}

/// Whether the text is exactly the rows of the append.
fn holds(history: &History, text: &[u8], op: &Op) -> bool {
    let mut reader = ReaderBuilder::new().has_headers(false).from_reader(text);
    let rows: Vec<_> = reader.records().map_while(Result::ok).map(|record| record[4].to_owned()).collect();
    text.ends_with(b"\n")
        && rows == (op.first..op.first + op.rows).map(|number| history.row(number)).collect::<Vec<_>>()
}

/// Reports error responses that no fault explains.
fn check_responses(op: &Op, allowed: AllowedErrors, findings: &mut Findings) {
    const ALWAYS: [(u16, &str); 7] = [
        (503, "queue_full"),
        (503, "wait_timeout"),
        (503, "lock_lost"),
        (503, "redis_unavailable"),
        (503, "redis_rejected"),
        (503, "draining"),
        (503, "file_busy"),
    ];
    for attempt in &op.attempts {
        let is_expected = match &attempt.result {
            AttemptResult::NotWritten(status, code) => {
                ALWAYS.contains(&(*status, code))
                    || allowed.disk_errors && matches!((status, code.as_str()), (507, "disk_full") | (500, "internal"))
            }
            AttemptResult::Unknown(status, code) => {
                // About the row of the key: another attempt may have written it.
                matches!((status, code.as_str()), (409, "key_in_flight") | (503, "wait_timeout"))
                    || allowed.disk_errors && matches!((status, code.as_str()), (500, "sync_failed" | "internal"))
            }
            AttemptResult::Acknowledged(_) | AttemptResult::NoResponse(_) | AttemptResult::NotSent(_) => true,
        };
        if !is_expected {
            findings.add(Violation::UnexpectedError, format!("row {}: {attempt:?}", op.first));
        }
    }
}

/// A row that was acknowledged before another one was first sent must be before it in the file.
fn check_order(ops: &[&Op], rows: &HashMap<u64, Row>, findings: &mut Findings) {
    let mut in_file: Vec<_> =
        rows.iter().filter_map(|(&number, row)| Some((row.offset, op_of(ops, number)?))).collect();
    in_file.sort_unstable_by_key(|(offset, _)| *offset);
    let mut last_sent_us = 0;
    for (offset, op) in in_file {
        if let Some((_, acked_us)) = op.acknowledgement()
            && acked_us < last_sent_us
        {
            let what = format!(
                "row {} at {offset}: acknowledged at {acked_us} µs, before the request of an earlier row was sent",
                op.first
            );
            findings.add(Violation::OutOfOrder, what);
        }
        last_sent_us = last_sent_us.max(op.first_sent_us());
    }
}

/// Rows with the same token are from one replica. They are consecutive, since tokens never decrease.
fn check_holders(rows: &HashMap<u64, Row>, findings: &mut Findings) {
    let mut holders = HashMap::new();
    for (number, row) in rows {
        let holder = holders.entry(row.token).or_insert(&row.replica);
        if *holder != &row.replica {
            findings.add(
                Violation::TwoHolders,
                format!("row {number}: replicas {holder} and {} wrote with token {}", row.replica, row.token),
            );
        }
    }
}

/// A snapshot has all rows that were acknowledged before it, and the file never changes up to its last acknowledged row.
fn check_snapshots(history: &History, text: &[u8], allowed: AllowedErrors, findings: &mut Findings) {
    let acked = history.ops.iter().filter_map(Op::acknowledgement);
    let acked: Vec<_> = acked.map(|(ack, acked_us)| (ack.offset + ack.bytes, acked_us)).collect();
    for Snapshot { sent_us, slot, text: snapshot } in &history.snapshots {
        let len = snapshot.len() as u64;
        let what = |reason: &str| format!("read from replica {slot} at {sent_us} µs, {len} bytes: {reason}");
        let before = acked.iter().filter(|(_, acked_us)| acked_us < sent_us);
        if let Some((end, _)) = before.max()
            && *end > len
            && !allowed.short_reads
        {
            findings.add(
                Violation::WrongSnapshot,
                what(&format!("it lacks a row that was acknowledged before and ends at {end}")),
            );
        }
        let unchanging = acked.iter().map(|&(end, _)| end).filter(|&end| end <= len).max().unwrap_or_default();
        let unchanging = usize::try_from(unchanging).expect("fits");
        if text.get(..unchanging) != Some(&snapshot.as_bytes()[..unchanging]) {
            findings.add(Violation::WrongSnapshot, what("the file begins with other bytes"));
        }
    }
}
