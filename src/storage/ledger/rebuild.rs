//! The rebuild: what follows the checkpoint is set aside and written anew, ours from the journal, others' whole lines kept.
//!
//! Needed after a power cut, a failed sync, and where somebody who holds no lock wrote into the middle of our rows. Whatever
//! stops it, the next look begins it again, from the tail already made. The tail is held in memory: it is as long as what
//! was appended since the last checkpoint.

use std::collections::HashSet;

use crate::{
    csv::{
        row_splitter::bare,
        scanner::{is_closable, split_rows},
    },
    storage::{
        AppendError,
        disk::{Disk, Landed, Place},
        format::Format,
        journal::{Header, JournalRecord, Rebuild},
        ledger::Ledger,
    },
};
use crate::{failpoints, fencing::FencingToken, metrics::Counter};

/// How often a rebuild begins again because somebody appended in its very moment.
const REBUILD_TRIES_MAX: u32 = 10;

impl<D: Disk> Ledger<D> {
    /// Answers where the last record's rows stand now. `landed`: where they stand, if not where they were to.
    pub(crate) fn rebuild(&mut self, landed: Option<u64>) -> Result<u64, AppendError> {
        let base = self.head.csv_bytes;
        let mut old = self.read_end()?;
        let mut records = self.records()?;
        let recorded = records.last().map(|last| (last.first_key, last.offset + u64::from(last.lead)));
        if let (Some(landed), Some(last)) = (landed, records.last_mut()) {
            last.offset = landed;
        }
        let mut tail = self.compose(&old, &records)?;
        let last = base + tail.last;
        if let (Some(_), Some((first_key, offset))) = (landed, recorded) {
            self.keys.move_since(first_key, last.wrapping_sub(offset));
        }
        // Somebody may append without any lock at the very moment when the new tail should land: then once more.
        for tries in 0.. {
            let landed = self.replace_end(&old, &tail.text)?;
            if (landed.start, landed.end) == (base, base + tail.text.len() as u64) {
                break;
            }
            if tries == REBUILD_TRIES_MAX {
                let e = std::io::Error::other("somebody appends without any lock, again and again");
                return Err(AppendError::before("rebuild the end of")(e));
            }
            old = self.read_end()?;
            let [before, behind] = [landed.start, landed.end].map(|offset| place(offset, base, &old));
            tail.keep_foreign(&old[..before], &HashSet::new());
            tail.keep_foreign(&old[behind..], &HashSet::new());
        }
        self.end_rebuild(base + tail.text.len() as u64)?;
        failpoints::reach("rebuild_ended");
        for which in [0, 1] {
            self.disk.cut(Place::Tail(which), 0).map_err(AppendError::before("clean up after rebuilding"))?;
        }
        Ok(last)
    }

    /// What stands in the CSV since the checkpoint.
    fn read_end(&self) -> Result<Vec<u8>, AppendError> {
        let fail = AppendError::before("read");
        let len = self.disk.len(Place::Csv).map_err(&fail)?;
        self.disk.read(Place::Csv, self.head.csv_bytes, len.saturating_sub(self.head.csv_bytes)).map_err(fail)
    }

    /// Puts the new tail in place of the old, and says where it landed.
    fn replace_end(&mut self, old: &[u8], new: &[u8]) -> Result<Landed, AppendError> {
        let (base, fail) = (self.head.csv_bytes, AppendError::before("rebuild the end of"));
        tracing::warn!(csv = %self.path.display(), from = base, old_bytes = old.len(), new_bytes = new.len(), "rebuilding the CSV's end; what stood there is in .torn");
        // guard: aside_before_cut
        let torn_at = self.set_aside(old)?;
        failpoints::reach("rebuild_set_aside");
        // guard: header_before_tail
        self.settle_header()?;
        let which = 1 - self.head.rebuild.map_or(1, |rebuild| rebuild.which);
        self.disk.cut(Place::Tail(which), 0).map_err(&fail)?;
        self.disk.append(Place::Tail(which), new).map_err(&fail)?;
        self.sync(Place::Tail(which))?;
        failpoints::reach("rebuild_tail_synced");
        self.keys.store(&self.disk, self.head.keys).map_err(&fail)?;
        self.sync(Place::Keys)?;
        let rebuild = Rebuild { bytes: new.len() as u64, which, torn_at, old_bytes: old.len() as u64 };
        // guard: rebuild_journaled
        self.write_header(Header { rebuild: Some(rebuild), ..self.head.clone() })?;
        failpoints::reach("rebuild_noted");

        self.disk.cut(Place::Csv, base).map_err(&fail)?;
        failpoints::reach("rebuild_cut");
        // guard: cut_before_tail
        self.sync(Place::Csv)?;
        failpoints::reach("rebuild_cut_synced");
        let landed = self.disk.append(Place::Csv, new).map_err(&fail)?;
        failpoints::reach("rebuild_appended");
        self.sync(Place::Csv)?;
        failpoints::reach("rebuild_appended_synced");
        Ok(landed)
    }

    fn end_rebuild(&mut self, csv_bytes: u64) -> Result<(), AppendError> {
        (self.whole, self.len) = (csv_bytes, csv_bytes);
        self.verified = self.known;
        self.write_header(self.header_of_all()?)
    }

    /// Copies bytes to `<csv>.torn`, durably, before they are cut from the CSV; answers where they begin there.
    pub(crate) fn set_aside(&mut self, bytes: &[u8]) -> Result<u64, AppendError> {
        let fail = AppendError::before("set aside the torn end of");
        let text = if bytes.is_empty() || bytes.ends_with(b"\n") { bytes.to_vec() } else { [bytes, b"\n"].concat() };
        let landed = self.disk.append(Place::Torn, &text).map_err(fail)?;
        self.sync(Place::Torn)?;
        self.meter.add(Counter::QuarantinedBytes, bytes.len() as u64);
        Ok(landed.start)
    }

    fn compose(&self, old: &[u8], records: &[JournalRecord]) -> Result<Tail, AppendError> {
        let mut tail = Tail::new(&self.format, self.head.mark);
        let Some(rebuild) = self.head.rebuild else {
            tail.compose(self.head.csv_bytes, old, records);
            return Ok(tail);
        };
        // A rebuild was under way: the tail that it made is the truth, and who wrote since is kept.
        let read =
            |place, at, bytes| self.disk.read(place, at, bytes).map_err(AppendError::before("read what lies beside"));
        let made = read(Place::Tail(rebuild.which), 0, rebuild.bytes)?;
        if made.len() as u64 != rebuild.bytes {
            // Somebody has deleted it. The journal still has what is ours.
            tracing::error!(csv = %self.path.display(), "the new tail of a rebuild is gone; making it anew from the journal");
            tail.compose(self.head.csv_bytes, old, records);
            return Ok(tail);
        }
        let was = read(Place::Torn, rebuild.torn_at, rebuild.old_bytes)?;
        tail.resume(made, &was, old);
        Ok(tail)
    }
}

/// The new end of the CSV, as it is being put together.
struct Tail {
    text: Vec<u8>,
    /// Where the last record's rows begin.
    last: u64,
    format: Format,
    /// The newest token that the checkpoint knows: a foreign line that claims a newer one is debris of ours.
    mark: FencingToken,
}

impl Tail {
    fn new(format: &Format, mark: FencingToken) -> Self {
        Self { text: Vec::new(), last: 0, format: format.clone(), mark }
    }

    /// `old` is what stands from offset `base` on.
    fn compose(&mut self, base: u64, old: &[u8], records: &[JournalRecord]) {
        let records: Vec<_> = records.iter().filter(|record| !record.payload.is_empty()).collect();
        let mut from = 0;
        for (nth, record) in records.iter().enumerate() {
            let at = place(record.offset, base, old).max(from);
            self.keep_foreign(&old[from..at], &HashSet::new());
            let is_last = nth + 1 == records.len();
            if is_last || !is_what_is_left_of(&old[at..], &record.payload) {
                return self.compose_loosely(&old[at..], &records[nth..]);
            }
            self.add_ours(record);
            from = place(record.end(), base, old);
        }
        self.keep_foreign(&old[from..], &HashSet::new());
    }

    /// From where somebody else's lines may stand in the place of ours: before rows that landed late, or where a power cut
    /// had ended the file.
    fn compose_loosely(&mut self, text: &[u8], records: &[&JournalRecord]) {
        let Some((first, others)) = records.split_first() else { return };
        let (start, end) = find_payload(text, first, &self.format);
        // What stands beside rows that are whole is somebody else's. Otherwise it may be a part of ours, too.
        let all_whole = others.is_empty() && text[start..end] == *first.payload;
        let ours: HashSet<_> =
            records.iter().filter(|_| !all_whole).flat_map(|record| lines_of(rows_of(record))).collect();
        self.keep_foreign(&text[..start], &ours);
        self.add_ours(first);
        self.keep_foreign(&text[end..], &ours);
        others.iter().for_each(|record| self.add_ours(record));
    }

    /// Goes on from a tail that is durable already. `was` stood in the CSV when it was made, `now` stands there now.
    fn resume(&mut self, made: Vec<u8>, was: &[u8], now: &[u8]) {
        self.last = made.len() as u64;
        self.text.clone_from(&made);
        if let Some(at) = (!made.is_empty()).then(|| find(now, &made)).flatten() {
            self.keep_foreign(&now[..at], &HashSet::new());
            return self.keep_foreign(&now[at + made.len()..], &HashSet::new());
        }
        let same = now.iter().zip(&made).take_while(|(now, made)| now == made).count();
        let whole_rows = whole_bytes(&made[..same]);
        // Not cut yet: unless rows of the new tail stand where the old one had ended already.
        let not_cut = now.starts_with(was) && whole_rows <= was.len() && same < now.len();
        // A line that was open may be the beginning of another that somebody began after the cut: it is judged as one.
        let from = if not_cut { whole_bytes(was) } else { whole_rows };
        self.keep_foreign(&now[from..], &lines_of(&made));
    }

    fn add_ours(&mut self, record: &JournalRecord) {
        self.last = self.text.len() as u64;
        self.text.extend_from_slice(rows_of(record));
    }

    /// Keeps whole lines: not what a hole has cut into, not debris of ours, not what is `known` to stand there already.
    fn keep_foreign(&mut self, text: &[u8], known: &HashSet<&[u8]>) {
        let mut pieces = text.split(|&byte| byte == 0).peekable();
        let mut after_hole = false;
        while let Some(mut piece) = pieces.next() {
            if after_hole {
                // Where the hole ends says nothing of where a line begins.
                let line_end = piece.iter().position(|&byte| byte == b'\n').map_or(piece.len(), |at| at + 1);
                piece = &piece[line_end..];
            }
            let (rows, open) = split_rows(piece);
            let line_end = open.iter().position(|&byte| byte == b'\n').map_or(open.len(), |at| at + 1);
            let (line, behind) = open.split_at(line_end);
            if rows.is_empty() && !behind.is_empty() && known.iter().any(|ours| line.ends_with(ours)) {
                // A stray quote before our row swallows all that follows: without that line, others' lines are found again.
                self.keep_foreign(behind, known);
                after_hole = true;
                continue;
            }
            for (nth, row) in rows.into_iter().enumerate() {
                // The text may begin in the middle of a line of ours, or with what is left of another before it; and a stray
                // quote makes one row of several.
                let is_part = |line: &&[u8]| line.ends_with(row) || row.ends_with(line);
                if !(nth == 0 && known.iter().any(is_part)) && lines_of(row).is_disjoint(known) {
                    self.keep_line(row);
                }
            }
            let is_last = pieces.peek().is_none();
            let is_ours = || known.iter().any(|line| find(line, open).is_some());
            if is_last && is_closable(open, self.format.width()) && !is_ours() {
                let open = open.strip_suffix(b"\r").unwrap_or(open);
                self.keep_line(&[open, self.format.line_end].concat());
            }
            after_hole = true;
        }
    }

    fn keep_line(&mut self, line: &[u8]) {
        // Of another width than all rows, it is a part of one, or parts of two.
        // guard: whole_lines
        let is_whole = is_closable(bare(line), self.format.width());
        // guard: claims_token
        if is_whole && self.format.schema.token_of(line).is_none_or(|token| token <= self.mark) {
            self.text.extend_from_slice(line);
        }
    }
}

fn rows_of(record: &JournalRecord) -> &[u8] {
    &record.payload[usize::from(record.lead)..]
}

/// How much of it is whole rows.
fn whole_bytes(text: &[u8]) -> usize {
    split_rows(text).0.iter().map(|row| row.len()).sum()
}

/// By line breaks, within quotes or not.
fn lines_of(text: &[u8]) -> HashSet<&[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').collect()
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, part)
}

fn place(offset: u64, base: u64, old: &[u8]) -> usize {
    usize::try_from(offset.saturating_sub(base)).unwrap_or(usize::MAX).min(old.len())
}

/// Whether `now` is `was`, but for holes and a lost end, and perhaps with more behind it.
fn is_what_is_left_of(now: &[u8], was: &[u8]) -> bool {
    now.iter().zip(was).all(|(now, was)| now == was || *now == 0)
}

/// From where to where in `text` the record's payload stands, or what is left of it; `text` begins where it should.
fn find_payload(text: &[u8], record: &JournalRecord, format: &Format) -> (usize, usize) {
    let payload = &record.payload;
    if is_what_is_left_of(text, payload) {
        return (0, payload.len().min(text.len()));
    }
    // Somebody slipped in before us, and our rows stand behind, at the start of a line.
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
    // Behind half a line: rows that carry their token can't be taken for anybody else's.
    let first_row = split_rows(rows_of(record)).0.first().copied().unwrap_or_default();
    if format.schema.token_of(first_row) == Some(record.token)
        && let Some(at) = find(text, payload)
    {
        return (at, at + payload.len());
    }
    // We were killed in mid-write, and somebody appended to our half row.
    let same = text.iter().zip(payload).take_while(|(text, payload)| text == payload).count();
    let claims_us = split_rows(text).0.first().is_some_and(|row| format.schema.token_of(row) == Some(record.token));
    if same >= first_row.len() + usize::from(record.lead) || claims_us { (0, same) } else { (text.len(), text.len()) }
}
