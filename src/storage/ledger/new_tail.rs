//! The new end of a CSV that is rebuilt: our rows from the journal, in order, and other processes' whole lines between them.

use std::collections::HashSet;

use crate::{
    csv::{
        row_splitter::without_line_end,
        scanner::{Scanner, split_rows},
    },
    fencing::FencingToken,
    storage::{format::Format, journal::JournalRecord},
};

/// The CSV's text after the checkpoint, as it is composed.
pub(super) struct NewTail {
    text: Vec<u8>,
    /// Index in `text` of the last record's rows.
    last_record_at: u64,
    format: Format,
    /// The highest token that the checkpoint knows. A foreign line with a higher one is a remnant of our own rows.
    highest_token: FencingToken,
    scanner: Scanner,
}

impl NewTail {
    pub(super) fn new(format: &Format, highest_token: FencingToken) -> Self {
        Self { text: Vec::new(), last_record_at: 0, format: format.clone(), highest_token, scanner: Scanner::new() }
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Index in `text` of the last record's rows.
    pub(super) fn last_record_at(&self) -> u64 {
        self.last_record_at
    }

    /// Composes the tail from the journal's records and `old`, the CSV from offset `base` on.
    pub(super) fn compose(&mut self, base: u64, old: &[u8], records: &[JournalRecord]) {
        let records: Vec<_> = records.iter().filter(|record| !record.payload.is_empty()).collect();
        let mut from = 0;
        for (nth, record) in records.iter().enumerate() {
            let at = tail_index(record.offset, base, old).max(from);
            self.keep_all_foreign(&old[from..at]);
            let is_last = nth + 1 == records.len();
            if is_last || !is_remnant_of(&old[at..], &record.payload) {
                return self.compose_loosely(&old[at..], &records[nth..]);
            }
            self.add_record(record);
            from = tail_index(record.end(), base, old);
        }
        self.keep_all_foreign(&old[from..]);
    }

    /// Composes the rest from where foreign lines may stand at our rows' offsets: another process appended first, or a power
    /// cut ended the file there.
    fn compose_loosely(&mut self, text: &[u8], records: &[&JournalRecord]) {
        let Some((first, others)) = records.split_first() else { return };
        let (start, end) = find_payload(text, first, &self.format);
        // Beside complete rows everything is foreign. Otherwise it may also be a part of our rows.
        let all_whole = others.is_empty() && text[start..end] == *first.payload;
        let ours: HashSet<_> =
            records.iter().filter(|_| !all_whole).flat_map(|record| lines_of(rows_of(record))).collect();
        self.keep_foreign(&text[..start], &ours);
        self.add_record(first);
        self.keep_foreign(&text[end..], &ours);
        others.iter().for_each(|record| self.add_record(record));
    }

    /// Continues an interrupted rebuild. `composed` is its durable new tail, `before` the old tail that it found, and `now`
    /// the current one.
    pub(super) fn resume(&mut self, composed: Vec<u8>, before: &[u8], now: &[u8]) {
        self.last_record_at = composed.len() as u64;
        self.text.clone_from(&composed);
        if let Some(at) = (!composed.is_empty()).then(|| find(now, &composed)).flatten() {
            self.keep_all_foreign(&now[..at]);
            return self.keep_all_foreign(&now[at + composed.len()..]);
        }
        let same = now.iter().zip(&composed).take_while(|(now, composed)| now == composed).count();
        let whole_rows = whole_bytes(&composed[..same]);
        // The CSV was not truncated yet, unless rows of the new tail stand behind the end of the old one.
        let not_truncated = now.starts_with(before) && whole_rows <= before.len() && same < now.len();
        // A line that was open before may be the start of a line written after the truncation: both are judged as one.
        let from = if not_truncated { whole_bytes(before) } else { whole_rows };
        self.keep_foreign(&now[from..], &lines_of(&composed));
    }

    fn add_record(&mut self, record: &JournalRecord) {
        self.last_record_at = self.text.len() as u64;
        self.text.extend_from_slice(rows_of(record));
    }

    /// Keeps all whole foreign lines.
    pub(super) fn keep_all_foreign(&mut self, text: &[u8]) {
        self.keep_foreign(text, &HashSet::new());
    }

    /// Keeps whole foreign lines, without lines that a hole damaged, remnants of our rows, and the lines in `known`, which
    /// the tail has already.
    fn keep_foreign(&mut self, text: &[u8], known: &HashSet<&[u8]>) {
        let mut at = 0;
        for end in memchr::memchr_iter(0, text).chain([text.len()]) {
            let piece = &text[at..end];
            // A line that starts inside the hole is damaged.
            let from = if at > 0 { first_line_bytes(piece) } else { 0 };
            self.keep_foreign_between_holes(&piece[from..], end == text.len(), known);
            at = end + 1;
        }
    }

    fn keep_foreign_between_holes(&mut self, mut text: &[u8], is_last: bool, known: &HashSet<&[u8]>) {
        while !text.is_empty() {
            let (rows, open) = self.scanner.split_rows(text);
            let (line, behind) = open.split_at(first_line_bytes(open));
            if rows.is_empty() && !behind.is_empty() && known.iter().any(|ours| line.ends_with(ours)) {
                // A stray quote before our row swallows everything behind it. Without that line, other lines are found again.
                text = behind;
                continue;
            }
            for (nth, row) in rows.into_iter().enumerate() {
                // The first row may be the end of one of our lines, or follow the remnant of another line. With a stray quote,
                // one row consists of several lines.
                let is_part = |line: &&[u8]| line.ends_with(row) || row.ends_with(line);
                if !(nth == 0 && known.iter().any(is_part)) && lines_of(row).is_disjoint(known) {
                    self.keep_line(row);
                }
            }
            let line_end = if open.ends_with(b"\r") { b"\n" } else { self.format.line_end };
            let closed = [open, line_end].concat();
            // guard: closed_line_once: an interrupted rebuild does not keep an open line again that it has closed
            let is_known = known.contains(&closed[..]) || is_remnant_of_lines(open, known);
            if is_last && self.scanner.is_closable(open, self.format.width()) && !is_known {
                self.keep_line(&closed);
            }
            return;
        }
    }

    fn keep_line(&mut self, line: &[u8]) {
        // A line of another width is a part of a row, or consists of parts of two.
        // guard: whole_lines: a rebuild keeps no parts of rows as rows
        let is_whole = self.scanner.is_closable(without_line_end(line), self.format.width());
        // guard: claims_token: a rebuild keeps no remnants of our rows as foreign rows
        if is_whole && self.format.schema.token_of(line).is_none_or(|token| token <= self.highest_token) {
            self.text.extend_from_slice(line);
        }
    }
}

/// The index in `old`, the CSV from offset `base` on, of an offset in the CSV.
pub(super) fn tail_index(offset: u64, base: u64, old: &[u8]) -> usize {
    usize::try_from(offset.saturating_sub(base)).unwrap_or(usize::MAX).min(old.len())
}

pub(super) fn rows_of(record: &JournalRecord) -> &[u8] {
    &record.payload[usize::from(record.line_end_prefix_len)..]
}

/// Whether an open row is what is left of one of these lines, or of a row that has several of them.
fn is_remnant_of_lines(open: &[u8], lines: &HashSet<&[u8]>) -> bool {
    let (whole_lines, last) = open.split_at(memchr::memrchr(b'\n', open).map_or(0, |at| at + 1));
    lines_of(whole_lines).is_subset(lines) && lines.iter().any(|line| find(line, last).is_some())
}

/// How many bytes of the text are whole rows.
fn whole_bytes(text: &[u8]) -> usize {
    split_rows(text).0.iter().map(|row| row.len()).sum()
}

fn first_line_bytes(text: &[u8]) -> usize {
    memchr::memchr(b'\n', text).map_or(text.len(), |at| at + 1)
}

/// The text's lines, split at every line break, even inside quotes.
fn lines_of(text: &[u8]) -> HashSet<&[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').collect()
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, part)
}

/// Whether `now` begins with `original`, apart from holes and a lost end.
fn is_remnant_of(now: &[u8], original: &[u8]) -> bool {
    now.iter().zip(original).all(|(now, original)| now == original || *now == 0)
}

/// Start and end in `text` of the record's payload, or of its remnant. `text` begins at the recorded offset.
fn find_payload(text: &[u8], record: &JournalRecord, format: &Format) -> (usize, usize) {
    let payload = &record.payload;
    if is_remnant_of(text, payload) {
        return (0, payload.len().min(text.len()));
    }
    // Another process appended first, and our rows follow at the start of a line.
    let line_starts = (0..text.len()).filter(|&at| at == 0 || matches!(text[at - 1], b'\n' | 0));
    for at in line_starts {
        let rest = &text[at..];
        if rest.starts_with(payload) {
            return (at, at + payload.len());
        }
        if at > 0 && payload.starts_with(rest) {
            return (at, text.len());
        }
    }
    // Our rows may also follow half a line. Rows that contain their token can't be foreign.
    let first_row = split_rows(rows_of(record)).0.first().copied().unwrap_or_default();
    if format.schema.token_of(first_row) == Some(record.token)
        && let Some(at) = find(text, payload)
    {
        return (at, at + payload.len());
    }
    // A kill cut our rows short, and another process appended to the half row.
    let same = text.iter().zip(payload).take_while(|(text, payload)| text == payload).count();
    let has_our_token = split_rows(text).0.first().is_some_and(|row| format.schema.token_of(row) == Some(record.token));
    let prefix_len = usize::from(record.line_end_prefix_len);
    if same >= first_row.len() + prefix_len || has_our_token { (0, same) } else { (text.len(), text.len()) }
}
