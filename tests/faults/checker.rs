//! Holds the file against what was asked and answered.

use std::collections::{BTreeMap, HashMap};

use csv::{ReaderBuilder, StringRecord};

use crate::history::{Answer, FOREIGN, HEADER, History, Known, Op, Snapshot, number_of, row};

/// What may be wrong, in the words of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    Lost,
    Duplicated,
    Torn,
    NeverSent,
    RefusedYetPresent,
    NeverSettled,
    AnswerUntrue,
    OutOfOrder,
    TokenBack,
    TwoHolders,
    SnapshotUntrue,
    UnexpectedAnswer,
    LateBack,
    FaultDidNotHappen,
    UnexpectedEnd,
}

/// What is wrong, and its first samples.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) BTreeMap<Wrong, Vec<String>>);

impl Findings {
    pub(crate) fn add(&mut self, wrong: Wrong, what: impl Into<String>) {
        self.0.entry(wrong).or_default().push(what.into());
    }

    pub(crate) fn count(&self, wrong: Wrong) -> u64 {
        self.0.get(&wrong).map_or(0, |found| found.len() as u64)
    }

    pub(crate) fn all(&self) -> u64 {
        self.0.values().map(|found| found.len() as u64).sum()
    }
}

/// A row of ours, as it stands.
struct Row {
    offset: u64,
    token: u64,
    replica: String,
    key: String,
}

/// What the faults of a run explain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed {
    /// Refusals for a disk that failed.
    pub(crate) disk_trouble: bool,
    /// Readers that stop short of what was acknowledged: a stopped process keeps the files, or nobody repaired them yet.
    pub(crate) short_reads: bool,
}

pub(crate) fn check(history: &History, text: &[u8], allowed: Allowed, findings: &mut Findings) {
    let rows = read(history, text, findings);
    let mut ops: Vec<_> = history.ops.iter().collect();
    ops.sort_unstable_by_key(|op| op.first);
    for op in &ops {
        check_op(history.seed, op, &rows, text, findings);
        check_answers(op, allowed, findings);
    }
    let never_sent = rows.keys().filter(|&&number| op_of(&ops, number).is_none());
    for number in never_sent {
        findings.add(Wrong::NeverSent, format!("row {number}"));
    }
    check_order(&ops, &rows, findings);
    check_holders(&rows, findings);
    check_snapshots(history, text, allowed, findings);
    for misread in &history.misread {
        findings.add(Wrong::AnswerUntrue, misread);
    }
    for hold in history.holds.iter().filter(|hold| !hold.kept || hold.bytes_before != hold.bytes_after) {
        findings.add(Wrong::TwoHolders, format!("somebody else held the lock: {hold:?}"));
    }
}

fn op_of<'a>(ops: &[&'a Op], number: u64) -> Option<&'a Op> {
    let at = ops.partition_point(|op| op.first <= number).checked_sub(1)?;
    (number < ops[at].first + ops[at].rows).then_some(ops[at])
}

/// All rows of ours by number. Strict: what a reader might guess at is torn.
fn read(history: &History, text: &[u8], findings: &mut Findings) -> HashMap<u64, Row> {
    let (mut rows, mut newest) = (HashMap::new(), 0);
    if text.contains(&0) {
        findings.add(Wrong::Torn, "a hole");
    }
    if !text.ends_with(b"\n") {
        findings.add(Wrong::Torn, "no line end at the end");
    }
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text);
    let mut cells = StringRecord::new();
    let mut is_header = true;
    loop {
        let offset = reader.position().byte();
        match reader.read_record(&mut cells) {
            Ok(false) => return rows,
            Err(e) => {
                findings.add(Wrong::Torn, e.to_string());
                continue;
            }
            Ok(true) => {}
        }
        if std::mem::take(&mut is_header) {
            if cells.iter().collect::<Vec<_>>().join(",") != HEADER {
                findings.add(Wrong::Torn, format!("the header is {cells:?}"));
            }
            continue;
        }
        if cells.len() != 5 {
            findings.add(Wrong::Torn, format!("at {offset}: {cells:?}"));
            continue;
        }
        if cells[4].starts_with(FOREIGN) {
            continue;
        }
        let number = number_of(history.seed, &cells[4]).filter(|&number| row(history.seed, number) == cells[4]);
        let (Some(number), Ok(token)) = (number, cells[2].parse::<u64>()) else {
            findings.add(Wrong::NeverSent, format!("at {offset}: {cells:?}"));
            continue;
        };
        if token < newest {
            findings.add(Wrong::TokenBack, format!("row {number} at {offset}: token {token} after {newest}"));
        }
        newest = token;
        let found = Row { offset, token, replica: cells[1].to_owned(), key: cells[3].to_owned() };
        if let Some(before) = rows.insert(number, found) {
            findings.add(Wrong::Duplicated, format!("row {number} at {} and {offset}", before.offset));
        }
    }
}

fn check_op(seed: u64, op: &Op, rows: &HashMap<u64, Row>, text: &[u8], findings: &mut Findings) {
    let present = (op.first..op.first + op.rows).filter(|number| rows.contains_key(number)).count() as u64;
    let name = format!("rows {} to {}, key {:?}", op.first, op.first + op.rows - 1, op.key);
    match op.known() {
        Known::Acked if present < op.rows => {
            findings.add(Wrong::Lost, format!("{name}: {present} of {} are there: {:?}", op.rows, op.attempts));
            return;
        }
        Known::NotWritten if present > 0 => {
            findings.add(Wrong::RefusedYetPresent, format!("{name}: {:?}", op.attempts))
        }
        // All or nothing.
        Known::Unknown if present > 0 && present < op.rows => findings.add(Wrong::Torn, format!("{name}: {present}")),
        _ => {}
    }
    if op.key.is_some() && op.known() != Known::Acked {
        findings.add(Wrong::NeverSettled, format!("{name}: {:?}", op.attempts.last()));
    }
    let acks = op.attempts.iter().filter_map(|attempt| match &attempt.answer {
        Answer::Acked(acked) => Some(acked),
        _ => None,
    });
    for acked in acks {
        let first = &rows[&op.first];
        let at = usize::try_from(acked.offset).expect("fits");
        let end = at + usize::try_from(acked.bytes).expect("fits");
        let untrue = |why: &str| format!("{name}: {why}: {acked:?}, it stands at {}", first.offset);
        // A repeat names who answers now or who wrote it; the row itself names who wrote it.
        if (acked.offset, acked.token) != (first.offset, first.token) {
            findings.add(Wrong::AnswerUntrue, untrue("another place or token"));
        } else if !acked.replayed && acked.replica != first.replica {
            findings.add(Wrong::AnswerUntrue, untrue("another replica"));
        } else if text.get(at..end).is_none_or(|text| !holds(seed, text, op)) {
            findings.add(Wrong::AnswerUntrue, untrue("other bytes"));
        }
    }
    let key = op.key.as_deref().unwrap_or_default();
    if (op.first..op.first + op.rows).any(|number| rows.get(&number).is_some_and(|row| row.key != key)) {
        findings.add(Wrong::AnswerUntrue, format!("{name}: it stands under another key"));
    }
}

/// Whether the bytes that an answer names are its rows, whole and alone.
fn holds(seed: u64, text: &[u8], op: &Op) -> bool {
    let mut reader = ReaderBuilder::new().has_headers(false).from_reader(text);
    let rows: Vec<_> = reader.records().map_while(Result::ok).map(|record| record[4].to_owned()).collect();
    text.ends_with(b"\n") && rows == (op.first..op.first + op.rows).map(|number| row(seed, number)).collect::<Vec<_>>()
}

/// Nothing else may be answered, whatever happens.
fn check_answers(op: &Op, allowed: Allowed, findings: &mut Findings) {
    const ALWAYS: [(u16, &str); 7] = [
        (409, "key_in_flight"),
        (503, "queue_full"),
        (503, "wait_timeout"),
        (503, "lock_lost"),
        (503, "redis_unavailable"),
        (503, "draining"),
        (503, "file_busy"),
    ];
    for attempt in &op.attempts {
        let is_expected = match &attempt.answer {
            Answer::NotWritten(status, code) => {
                ALWAYS.contains(&(*status, code))
                    || allowed.disk_trouble && matches!((status, code.as_str()), (507, "disk_full") | (500, "internal"))
            }
            Answer::Unknown(status, code) => {
                allowed.disk_trouble && matches!((status, code.as_str()), (500, "sync_failed" | "internal"))
            }
            Answer::Acked(_) | Answer::Lost(_) | Answer::NotSent(_) => true,
        };
        if !is_expected {
            findings.add(Wrong::UnexpectedAnswer, format!("row {}: {attempt:?}", op.first));
        }
    }
}

/// What was acknowledged before another was first sent stands before it.
fn check_order(ops: &[&Op], rows: &HashMap<u64, Row>, findings: &mut Findings) {
    let mut standing: Vec<_> =
        rows.iter().filter_map(|(&number, row)| Some((row.offset, op_of(ops, number)?))).collect();
    standing.sort_unstable_by_key(|(offset, _)| *offset);
    let mut newest_sent_us = 0;
    for (offset, op) in standing {
        if let Some((_, acked_us)) = op.acked()
            && acked_us < newest_sent_us
        {
            let what = format!(
                "row {} at {offset}: acknowledged at {acked_us} µs, before one was sent that stands before it",
                op.first
            );
            findings.add(Wrong::OutOfOrder, what);
        }
        newest_sent_us = newest_sent_us.max(op.first_sent_us());
    }
}

/// A token is one lease's. That those of one token stand together follows from tokens that never go back.
fn check_holders(rows: &HashMap<u64, Row>, findings: &mut Findings) {
    let mut holders = HashMap::new();
    for (number, row) in rows {
        let holder = holders.entry(row.token).or_insert(&row.replica);
        if *holder != &row.replica {
            findings.add(
                Wrong::TwoHolders,
                format!("row {number}: token {} is {holder}'s and {}'s", row.token, row.replica),
            );
        }
    }
}

/// What was read has all that was acknowledged before, and as far as anything in it is acknowledged it never changes.
fn check_snapshots(history: &History, text: &[u8], allowed: Allowed, findings: &mut Findings) {
    let acked = history.ops.iter().filter_map(Op::acked);
    let acked: Vec<_> = acked.map(|(acked, acked_us)| (acked.offset + acked.bytes, acked_us)).collect();
    for Snapshot { sent_us, place, text: seen } in &history.snapshots {
        let len = seen.len() as u64;
        let what = |why: &str| format!("read from place {place} at {sent_us} µs, {len} bytes: {why}");
        let before = acked.iter().filter(|(_, acked_us)| acked_us < sent_us);
        if let Some((end, _)) = before.max()
            && *end > len
            && !allowed.short_reads
        {
            findings.add(Wrong::SnapshotUntrue, what(&format!("a row was acknowledged before that ends at {end}")));
        }
        let sure = acked.iter().map(|&(end, _)| end).filter(|&end| end <= len).max().unwrap_or_default();
        let sure = usize::try_from(sure).expect("fits");
        if text.get(..sure) != Some(&seen.as_bytes()[..sure]) {
            findings.add(Wrong::SnapshotUntrue, what("not what the file begins with"));
        }
    }
}
