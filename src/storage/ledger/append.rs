//! One batch: look, fence, look up keys, mend the open line, record, sync, and only then the CSV.

use std::{
    collections::HashSet,
    io::{self, ErrorKind},
    time::Instant,
};

use crate::{
    api::acknowledgement::Ack,
    csv::{
        idempotency_key::Key,
        rows::Rows,
        schema::{InvalidField, ServiceCells, quote},
    },
    failpoints,
    metrics::Counter,
    time::ms,
};
use crate::{
    csv::scanner::{OpenLine, scan_rows},
    storage::{
        AppendError, Entry, OpenError, Placed, Refusal, Turn,
        disk::{Disk, Landed, Place, Stretch},
        error::is_full,
        journal::{Cursor, JournalRecord, Layout},
        keys::Remembered,
        ledger::{Ledger, Repair, Seen},
    },
};

/// A torn line longer than this is not cut away: more likely a stray quote swallows good rows.
pub(crate) const TORN_BYTES_MAX: u64 = 1 << 20;

/// What fills a record's last page up.
static ZEROS: [u8; Layout::REAL.page as usize] = [0; Layout::REAL.page as usize];

/// Rows laid out and quoted, and what is to be remembered of them.
struct Batch {
    /// `lead` bytes that close a line, then the rows.
    payload: Vec<u8>,
    lead: usize,
    keys: Vec<Remembered>,
    placed: Vec<Result<Placed, Refusal>>,
}

/// A durable record that is not learnt yet.
struct Committed {
    record: JournalRecord,
    /// Where it stands in the journal.
    at: u64,
    cursor: Cursor,
}

impl<D: Disk> Ledger<D> {
    /// Looks, and repairs what there is to repair; answers the line that somebody left open.
    pub(crate) fn recover(&mut self) -> Result<Option<OpenLine>, AppendError> {
        match self.look(Repair::Allowed)? {
            Seen::True(open) => Ok(open),
            Seen::NeedsRepair => unreachable!("a look that may repair leaves nothing to repair"),
        }
    }

    /// Writes as many of the requests as one record holds, in order, and answers for each of these.
    pub(crate) fn append(
        &mut self,
        entries: &[Entry<'_>],
        turn: &Turn<'_>,
    ) -> Result<Vec<Result<Placed, Refusal>>, AppendError> {
        let open = self.recover()?;
        self.refuse_stale(turn)?;
        // guard: lease_check
        if !(turn.still_held)() {
            return Err(AppendError::LeaseLost);
        }
        let lead = open.map(|open| self.mend(open)).transpose()?.unwrap_or_default();
        let Batch { payload, lead, keys, mut placed } = self.encode(entries, turn, lead);
        if payload.len() == lead {
            return Ok(placed);
        }
        let offset = self.len;
        self.reserve(offset, payload.len())?;
        let Committed { record, at, cursor } = self.commit(offset, lead, keys, payload, turn)?;
        let landed = self.disk.append(Place::Csv, &record.payload);
        let landed = landed.map_err(|e| self.take_back(&record, at, e))?;
        failpoints::reach("csv_written");
        self.learn(&record, cursor);
        // What is committed stands, whatever keeps it out of the CSV for now.
        let start = self.settle(&record, landed).map_err(|e| self.fail(io::Error::other(e)))?;
        for written in placed.iter_mut().flatten() {
            if let Placed::Written { offset, .. } = written {
                *offset += start;
            }
        }
        Ok(placed)
    }

    /// Records a token ahead of a sleep, so that older holders are fenced out from now on. A key that is known is answered.
    pub(crate) fn fence(
        &mut self,
        key: Option<&Key>,
        turn: &Turn<'_>,
    ) -> Result<Option<Result<Ack, Refusal>>, AppendError> {
        self.recover()?;
        self.refuse_stale(turn)?;
        if let Some(answer) = key.and_then(|key| self.look_up(key)) {
            return Ok(Some(answer));
        }
        if (self.mark, self.mark_lease) != (turn.token, turn.lease) {
            let Committed { record, cursor, .. } = self.commit(self.len, 0, Vec::new(), Vec::new(), turn)?;
            self.learn(&record, cursor);
            self.verified = self.known;
        }
        Ok(None)
    }

    /// A token older than the mark, or the same from another lease, is a stale holder's.
    fn refuse_stale(&self, turn: &Turn<'_>) -> Result<(), AppendError> {
        let fenced = Err(AppendError::Fenced { mark: self.mark });
        // guard: fence
        if turn.token < self.mark {
            return fenced;
        }
        // guard: lease
        if turn.token == self.mark && turn.lease != self.mark_lease {
            return fenced;
        }
        Ok(())
    }

    fn look_up(&self, key: &Key) -> Option<Result<Ack, Refusal>> {
        // guard: lookup_key
        let known = self.keys.find(key.hash)?;
        let same = known.fingerprint == key.fingerprint;
        Some(if same { Ok(self.keys.ack(known)) } else { Err(Refusal::KeyReused) })
    }

    /// What closes a last line that is a whole row; one that was torn is set aside and cut, by a rebuild.
    pub(crate) fn mend(&mut self, open: OpenLine) -> Result<&'static [u8], AppendError> {
        let whole = open.cells == self.format.width().unwrap_or(open.cells) && !open.in_quotes;
        // guard: close_open_line
        if whole {
            let half_ended = self.format.line_end == b"\r\n" && open.last_byte == b'\r';
            return Ok(if half_ended { b"\n" } else { self.format.line_end });
        }
        if open.bytes > TORN_BYTES_MAX {
            return Err(AppendError::Unfit(OpenError::StrayQuote(self.path.clone(), self.whole)));
        }
        tracing::warn!(csv = %self.path.display(), at = self.whole, bytes = open.bytes, "a torn last line");
        // A cut that is not durable yet must not be written upon, not even after a kill: the rebuild sees to that.
        self.rebuild(None)?;
        self.meter.count(Counter::QuarantinedLines);
        Ok(b"")
    }

    fn encode(&mut self, entries: &[Entry<'_>], turn: &Turn<'_>, lead: &[u8]) -> Batch {
        let bytes_max = self.layout.record_bytes_max(self.head.bytes) as usize;
        let room: usize = entries.iter().map(|entry| self.room_for(entry, turn)).sum();
        let mut payload = Vec::with_capacity(lead.len() + room);
        payload.extend_from_slice(lead);
        let (mut keys, mut placed) = (Vec::new(), Vec::with_capacity(entries.len()));
        let mut in_batch = HashSet::new();
        for entry in entries {
            if entry.key.is_some_and(|key| !in_batch.insert(key.hash)) {
                // The same key again: it gets the first one's answer, from the next record.
                break;
            }
            let start = payload.len();
            let answer = self.encode_entry(entry, turn, &mut payload, lead.len(), &mut keys);
            if payload.len() > start && payload.len() + JournalRecord::overhead_bytes(keys.len()) > bytes_max {
                payload.truncate(start);
                if entry.key.is_some() {
                    keys.pop();
                }
                if start > lead.len() {
                    break;
                }
                placed.push(Err(Refusal::TooLarge { bytes_max: bytes_max as u64 }));
                continue;
            }
            placed.push(answer);
        }
        Batch { payload, lead: lead.len(), keys, placed }
    }

    /// The most that a request's rows come to, whichever columns the file has: a large payload is not moved while it grows.
    fn room_for(&self, entry: &Entry<'_>, turn: &Turn<'_>) -> usize {
        let key = entry.key.map_or(0, |key| 2 * key.text.len() + 2);
        let service = turn.timestamp.len() + self.replica_cell.len() + "18446744073709551615append".len() + key;
        let commas = self.format.width().unwrap_or_default();
        entry.rows.cell_bytes() + entry.rows.len() * (service + commas + self.format.line_end.len())
    }

    fn encode_entry(
        &mut self,
        entry: &Entry<'_>,
        turn: &Turn<'_>,
        payload: &mut Vec<u8>,
        lead: usize,
        keys: &mut Vec<Remembered>,
    ) -> Result<Placed, Refusal> {
        if let Some(key) = entry.key {
            if let Some(answer) = self.look_up(key) {
                return answer.map(Placed::Replayed);
            }
            // An earlier try of this key may have been remembered when this one arrived, and be forgotten by now.
            // guard: outrun
            if self.keys.next() - entry.keys_seen.min(self.keys.next()) >= self.keys.capacity() {
                return Err(Refusal::Outrun);
            }
        }
        let start = payload.len();
        self.encode_rows(entry, turn, payload)?;
        let (offset, bytes) = ((start - lead) as u64, (payload.len() - start) as u64);
        let mut held_ms = None;
        if let Some(key) = entry.key {
            let held = ms(turn.granted.elapsed());
            held_ms = Some(held);
            let ack = Ack {
                rows: entry.rows.len(),
                offset,
                bytes,
                token: turn.token,
                replica: "".into(),
                waited_ms: entry.waited_ms,
                held_ms: held,
                released: entry.released,
                replayed: false,
                sync: std::time::Duration::ZERO,
            };
            keys.push(Remembered::new(key.hash, key.fingerprint, &ack));
        }
        Ok(Placed::Written { offset, bytes, held_ms })
    }

    fn encode_rows(&mut self, entry: &Entry<'_>, turn: &Turn<'_>, payload: &mut Vec<u8>) -> Result<(), InvalidField> {
        let width = self.headerless_width_for(entry.rows)?;
        let key = entry.key.map(|key| quote(&key.text)).unwrap_or_default();
        let cells =
            ServiceCells { timestamp: turn.timestamp, replica: &self.replica_cell, token: turn.token, key: &key };
        self.format.schema.write_rows(payload, entry.rows, &cells, width, self.format.line_end);
        Ok(())
    }

    /// The width that a headerless file's rows are filled up to: that of the first row ever.
    fn headerless_width_for(&mut self, rows: &Rows) -> Result<usize, InvalidField> {
        if self.format.schema.width().is_some() {
            return Ok(0);
        }
        let Some(first) = rows.iter().next() else { return Ok(0) };
        // Another replica may have written the first row since this one started.
        if self.format.headerless_width.is_none() && self.whole > self.format.start {
            let read = crate::storage::format::Format::read(&self.disk, &self.path, &self.format.schema);
            self.format.headerless_width = read.ok().and_then(|format| format.headerless_width);
        }
        let width = self.format.headerless_width.unwrap_or(first.cells);
        if let Some(wide) = rows.iter().find(|row| row.cells > width) {
            return Err(InvalidField::new("data", format!("{} cells, but the file's rows have {width}", wide.cells)));
        }
        self.format.headerless_width = Some(width);
        Ok(width)
    }

    /// Room in the CSV is made sure of before the commit point: after it there is no way back.
    fn reserve(&self, offset: u64, bytes: usize) -> Result<(), AppendError> {
        // guard: reserve
        self.disk.reserve(Place::Csv, offset, bytes as u64).map_err(AppendError::before("make room in"))
    }

    /// The commit point: the record is durable when this returns. It is not learnt yet.
    fn commit(
        &mut self,
        offset: u64,
        lead: usize,
        mut keys: Vec<Remembered>,
        payload: Vec<u8>,
        turn: &Turn<'_>,
    ) -> Result<Committed, AppendError> {
        keys.iter_mut().for_each(|key| key.offset += offset + lead as u64);
        let record = JournalRecord {
            sequence: self.known.sequence + 1,
            token: turn.token,
            lease: turn.lease,
            offset,
            lead: u8::try_from(lead).expect("a line ending is short"),
            replica: self.replica.clone(),
            first_key: self.keys.next(),
            keys,
            payload,
        };
        let head = record.encode_head(self.head.journal);
        // Whole pages are written without reading them first.
        let bytes = head.len() + record.payload.len();
        let whole = self.layout.whole_pages(bytes as u64);
        let parts = [&head, &record.payload, &ZEROS[..whole as usize - bytes]];
        let at = self.make_room(whole)?;
        // guard: header_before_recycling
        self.settle_header()?;
        self.disk.write_parts_at(Place::Journal, at, &parts).map_err(|e| self.not_recorded(&record, at, e))?;
        failpoints::reach("record_written");
        let began = Instant::now();
        // guard: journal_sync
        self.sync(Place::Journal)?;
        self.last_sync = began.elapsed();
        failpoints::reach("record_synced");
        let cursor = Cursor { sequence: record.sequence, next: at + whole };
        Ok(Committed { record, at, cursor })
    }

    /// A volume that has turned read-only takes nothing, and no record stands unless it stands whole: then this replica waits
    /// for better times. Any other error may have left anything.
    fn not_recorded(&mut self, record: &JournalRecord, at: u64, e: io::Error) -> AppendError {
        let refused = matches!(e.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied);
        // guard: refused_whole
        if refused && matches!(self.record_after(self.known), Ok(None)) {
            return AppendError::before("write to the journal of")(e);
        }
        self.take_back(record, at, e)
    }

    /// The disk is full after all, where the file system could not make sure of room: the record is taken back before anybody
    /// is answered. Any other error, and a record that can't be taken back, is fatal.
    fn take_back(&mut self, record: &JournalRecord, at: u64, e: io::Error) -> AppendError {
        if !is_full(&e) {
            return self.fail(e);
        }
        match self.erase(record, at) {
            Ok(()) => AppendError::DiskFull(e),
            Err(e) => self.fail(e),
        }
    }

    /// First the CSV: as long as the record stands, whoever comes next writes its rows anew.
    fn erase(&self, record: &JournalRecord, at: u64) -> io::Result<()> {
        let len = self.disk.len(Place::Csv)?;
        let written = self.disk.read(Place::Csv, record.offset, len.saturating_sub(record.offset))?;
        if len < record.offset || !record.payload.starts_with(&written) {
            return Err(io::Error::other("the disk is full, and somebody else wrote to the CSV in that moment"));
        }
        if len > record.offset {
            self.disk.cut(Place::Csv, record.offset)?;
            // guard: cut_before_erasing
            self.disk.sync(Place::Csv)?;
        }
        self.disk.write_at(Place::Journal, at, &vec![0; self.layout.page as usize])?;
        // guard: erased_before_answer
        self.disk.sync(Place::Journal)
    }

    /// A place for a record among those that must be kept, after a checkpoint if there is no other way.
    fn make_room(&mut self, bytes: u64) -> Result<u64, AppendError> {
        if let Some(at) = self.place_for(bytes) {
            return Ok(at);
        }
        tracing::debug!(csv = %self.path.display(), "the journal is full: a checkpoint has to be waited for");
        self.checkpoint_now()?;
        Ok(self.place_for(bytes).expect("a record fits half of an empty journal"))
    }

    fn place_for(&self, bytes: u64) -> Option<u64> {
        let (space, end) = (self.layout.space(), self.head.bytes);
        let (oldest, at) = (self.head.next, self.known.next);
        let fits = |from: u64, to: u64| (from + bytes <= to).then_some(from);
        if !self.is_dirty() {
            fits(at, end).or_else(|| fits(space, at))
        } else if at > oldest {
            fits(at, end).or_else(|| fits(space, oldest))
        } else {
            fits(at, oldest)
        }
    }

    /// Makes sure that committed rows stand whole where they landed; answers where the first of them stands.
    fn settle(&mut self, record: &JournalRecord, landed: Landed) -> Result<u64, AppendError> {
        let lead = u64::from(record.lead);
        if (landed.start, landed.end) == (record.offset, record.end()) {
            (self.whole, self.len, self.verified) = (record.end(), record.end(), self.known);
            return Ok(record.offset + lead);
        }
        tracing::warn!(csv = %self.path.display(), at = record.offset, landed = landed.start, "somebody appended without any lock");
        self.meter.count(Counter::UnlockedAppends);
        let in_one_piece = landed.end - landed.start == record.payload.len() as u64;
        if !in_one_piece || lead > 0 || !self.is_whole(record.offset, landed.start)? {
            return self.rebuild(Some(landed.start));
        }
        self.keys.move_since(record.first_key, landed.start - record.offset);
        (self.whole, self.len, self.verified) = (landed.end, landed.end, self.known);
        // guard: landed_elsewhere
        self.checkpoint_now()?;
        Ok(landed.start)
    }

    fn is_whole(&self, from: u64, to: u64) -> Result<bool, AppendError> {
        let rows = scan_rows(Stretch::new(&self.disk, Place::Csv, from, to)).map_err(AppendError::before("read"))?;
        Ok(rows.whole_bytes == to - from)
    }
}

/// The most that rows and keys of one request may come to, encoded.
pub(crate) fn batch_bytes_max(journal_bytes: u64) -> u64 {
    let most = Layout::REAL.record_bytes_max(journal_bytes);
    most - JournalRecord::overhead_bytes(1) as u64
}
