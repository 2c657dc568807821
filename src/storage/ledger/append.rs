//! One batch: refresh, fence, look up keys, repair an open line, record, sync, and only then append to the CSV.

use std::{
    io::{self, ErrorKind},
    time::Instant,
};

use crate::{
    csv::{
        idempotency_key::Key,
        scanner::{OpenLine, scan_rows},
    },
    failpoints,
    metrics::Counter,
    storage::{
        disk::{AppendedRange, Disk, FileKind, FileRange},
        error::{AppendError, OpenError, is_full},
        journal::{Cursor, JournalRecord, Layout},
        ledger::{
            Ledger, Purpose, RefreshOutcome, RepairMode,
            encode::RecordContent,
            in_doubt::{InDoubt, move_outcomes},
        },
        open_line::{first_of_several_lines, is_whole, refuse_several_lines},
        types::{AppendEntry, EntryOutcome, KnownKey, Turn},
    },
};

/// Fills up a record's last page.
static ZEROS: [u8; Layout::REAL.page as usize] = [0; Layout::REAL.page as usize];

/// A durable record whose keys and token are not taken over yet.
struct Committed {
    record: JournalRecord,
    /// Its offset in the journal.
    at: u64,
    cursor: Cursor,
}

impl<D: Disk> Ledger<D> {
    /// Refreshes and repairs the CSV. Returns the last line if another process left it open.
    pub(crate) fn recover(&mut self) -> Result<Option<OpenLine>, AppendError> {
        match self.refresh(RepairMode::Allowed)? {
            RefreshOutcome::Consistent(open_line) => Ok(open_line),
            RefreshOutcome::NeedsRepair => unreachable!("a refresh that may repair leaves nothing to repair"),
        }
    }

    /// Writes as many of the requests as one record holds, in order, and returns the outcome of each of these.
    pub(crate) fn append(
        &mut self,
        entries: &[AppendEntry<'_>],
        turn: &Turn<'_>,
    ) -> Result<Vec<EntryOutcome>, AppendError> {
        // guard: own_doubt: an append is not answered with what became of an earlier one
        self.in_doubt = None;
        // Between the batches of one hold nothing changes that the end of the CSV does not show.
        let open_line = if self.is_current { None } else { self.recover()? };
        self.is_current = false;
        self.refuse_stale(turn)?;
        // guard: lease_check: an expired lease writes nothing
        if !(turn.still_held)() {
            return Err(AppendError::LeaseLost);
        }
        let line_end_prefix = open_line.map(|line| self.repair_open_line(line)).transpose()?.unwrap_or_default();
        let (content, mut outcomes) = self.encode(entries, turn, line_end_prefix)?;
        if !content.has_rows() {
            return Ok(outcomes);
        }
        let sequence = self.known.sequence + 1;
        match self.write_batch(content, turn) {
            Ok(start) => {
                move_outcomes(&mut outcomes, start);
                (self.durable, self.is_current) = (sequence, self.disk.is_direct());
                Ok(outcomes)
            }
            Err(e) => {
                if matches!(e, AppendError::Interrupted(_)) {
                    self.in_doubt = Some(InDoubt { sequence, token: turn.token, lease: turn.lease, outcomes });
                }
                Err(e)
            }
        }
    }

    /// Records a batch, and appends its rows. Returns the offset of the first row.
    fn write_batch(&mut self, content: RecordContent, turn: &Turn<'_>) -> Result<u64, AppendError> {
        let offset = self.len;
        self.reserve(offset, content.payload.len())?;
        let Committed { record, at, cursor } = self.commit(offset, content, turn)?;
        let appended = self.disk.append(FileKind::Csv, &record.payload);
        let appended = appended.map_err(|e| self.undo_record(&record, at, e))?;
        failpoints::hit("csv_written");
        self.learn(&record, cursor);
        // A committed record stays, even if its rows cannot reach the CSV now.
        self.confirm_rows(&record, appended).map_err(|e| self.fail(io::Error::other(e)))
    }

    /// Records a token ahead of a sleep, so that older holders are fenced out from now on. Records nothing for a known key.
    pub(crate) fn fence(&mut self, key: Option<&Key>, turn: &Turn<'_>) -> Result<Option<KnownKey>, AppendError> {
        self.in_doubt = None;
        if !self.is_current {
            self.recover()?;
        }
        self.is_current = false;
        self.refuse_stale(turn)?;
        if let Some(known) = key.and_then(|key| self.find_replay(key)) {
            return Ok(Some(known));
        }
        if (self.highest_token, self.highest_token_lease) != (turn.token, turn.lease) {
            let Committed { record, cursor, .. } = self.commit(self.len, RecordContent::default(), turn)?;
            self.learn_without_rows(&record, cursor);
        }
        Ok(None)
    }

    /// Refuses a token that is lower than the highest one, or equal to it from another lease.
    fn refuse_stale(&self, turn: &Turn<'_>) -> Result<(), AppendError> {
        let fenced = Err(AppendError::Fenced { highest_token: self.highest_token });
        // guard: fence: a stale holder writes nothing
        if turn.token < self.highest_token {
            return fenced;
        }
        // guard: lease: of two leases with one token, only the first one writes
        if turn.token == self.highest_token && turn.lease != self.highest_token_lease {
            return fenced;
        }
        Ok(())
    }

    /// Returns the bytes that end an open line which is a whole row. An incomplete line is quarantined.
    pub(crate) fn repair_open_line(&mut self, open: OpenLine) -> Result<&'static [u8], AppendError> {
        // guard: close_open_line: our row does not continue a foreign line
        if is_whole(open, &self.format) {
            let has_half_line_end = self.format.line_end == b"\r\n" && open.last_byte == b'\r';
            return Ok(if has_half_line_end { b"\n" } else { self.format.line_end });
        }
        self.refuse_several_lines(open).map_err(AppendError::Unfit)?;
        tracing::warn!(csv = %self.path.display(), at = self.whole_end, bytes = open.bytes, "quarantining an incomplete last line");
        // A rebuild, since a truncation must be durable before rows are appended, even across a kill.
        self.rebuild(None)?;
        self.meter.count(Counter::QuarantinedLines);
        Ok(b"")
    }

    /// Refuses to move more than an incomplete last line, unless an operator asked for that.
    ///
    /// # Errors
    /// As `open_line::refuse_several_lines`.
    pub(crate) fn refuse_several_lines(&self, open: OpenLine) -> Result<(), OpenError> {
        if self.purpose == Purpose::Repair {
            return Ok(());
        }
        refuse_several_lines(&self.disk, &self.path, &self.format, self.whole_end, open)
    }

    /// As `refuse_several_lines`, without the line's number, for which the whole file is read.
    pub(crate) fn find_several_lines(&self, open: OpenLine) -> Result<(), AppendError> {
        if is_whole(open, &self.format)
            || first_of_several_lines(&self.disk, self.whole_end, open).map_err(AppendError::before("read"))?.is_none()
        {
            return Ok(());
        }
        Err(AppendError::Unfit(OpenError::Edited(self.path.clone())))
    }

    /// Allocates space in the CSV before the commit point, after which the append can't be refused.
    fn reserve(&self, offset: u64, bytes: usize) -> Result<(), AppendError> {
        // guard: reserve: a full disk is found before the commit point
        self.disk.reserve(FileKind::Csv, offset, bytes as u64).map_err(AppendError::before("reserve space in"))
    }

    /// The commit point: the record is durable when this returns.
    fn commit(&mut self, offset: u64, content: RecordContent, turn: &Turn<'_>) -> Result<Committed, AppendError> {
        let RecordContent { line_end_prefix_len, mut keys, payload, .. } = content;
        keys.iter_mut().for_each(|key| key.offset += offset + line_end_prefix_len as u64);
        let record = JournalRecord {
            sequence: self.known.sequence + 1,
            token: turn.token,
            lease: turn.lease,
            offset,
            line_end_prefix_len: u8::try_from(line_end_prefix_len).expect("a line ending is short"),
            replica: self.replica.clone(),
            first_key: self.keys.next(),
            keys,
            payload,
        };
        let head = record.encode_head(self.head.journal);
        // Writing whole pages spares the kernel from reading the rest of the last one.
        let bytes = head.len() + record.payload.len();
        let padded_bytes = self.layout.whole_pages(bytes as u64);
        let parts = [&head, &record.payload, &ZEROS[..padded_bytes as usize - bytes]];
        let at = self.reserve_record_space(padded_bytes)?;
        // guard: header_before_recycling: the header that a power cut may bring back still finds its records
        self.sync_pending_header()?;
        // On a direct disk, the write is the sync.
        let began = Instant::now();
        self.disk.write_parts_at(FileKind::Journal, at, &parts).map_err(|e| self.not_recorded(&record, at, e))?;
        failpoints::hit("record_written");
        let began = if self.disk.is_direct() { began } else { Instant::now() };
        // guard: journal_sync: an acknowledged row survives a power cut
        self.sync(FileKind::Journal)?;
        self.last_sync = began.elapsed();
        failpoints::hit("record_synced");
        let cursor = Cursor { sequence: record.sequence, next: at + padded_bytes };
        Ok(Committed { record, at, cursor })
    }

    /// A volume that turned read-only writes nothing, so the replica can retry later. After any other error, part of the
    /// record may be written.
    fn not_recorded(&mut self, record: &JournalRecord, at: u64, e: io::Error) -> AppendError {
        let refused = matches!(e.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied);
        // guard: refused_whole: a read-only volume refuses rows without ending the process
        if refused && matches!(self.record_after(self.known), Ok(None)) {
            return AppendError::before("write to the journal of")(e);
        }
        self.undo_record(record, at, e)
    }

    /// Undoes a record whose rows found the disk full, which happens where the file system can't reserve space. Any other
    /// error, and a record that can't be undone, is fatal.
    fn undo_record(&mut self, record: &JournalRecord, at: u64, e: io::Error) -> AppendError {
        if !is_full(&e) {
            return self.fail(e);
        }
        match self.cancel(record, at) {
            Ok(()) => AppendError::DiskFull(e),
            Err(e) => self.fail(e),
        }
    }

    /// Removes the rows first: while the record exists, the next process to recover writes them again. Then a record without rows takes
    /// its place, so that readers without the OS lock see that something has changed.
    fn cancel(&mut self, record: &JournalRecord, at: u64) -> io::Result<()> {
        let len = self.disk.len(FileKind::Csv)?;
        let written = self.disk.read(FileKind::Csv, record.offset, len.saturating_sub(record.offset))?;
        if len < record.offset || !record.payload.starts_with(&written) {
            return Err(io::Error::other("the disk is full, and another process wrote to the CSV at the same time"));
        }
        if len == record.end() && !record.payload.is_empty() {
            // Readers may have seen them.
            return Err(io::Error::other("the disk is full, but the rows are there"));
        }
        if len > record.offset {
            self.disk.truncate(FileKind::Csv, record.offset)?;
            // guard: cut_before_cancelling: a power cut does not bring back rows without their record
            self.disk.sync(FileKind::Csv)?;
        }
        let cancelled =
            JournalRecord { line_end_prefix_len: 0, keys: Vec::new(), payload: Vec::new(), ..record.clone() };
        let head = cancelled.encode_head(self.head.journal);
        let padding = &ZEROS[..self.layout.page as usize - head.len()];
        self.disk.write_parts_at(FileKind::Journal, at, &[&head, padding])?;
        // guard: cancelled_before_answer: a row that was answered with `disk_full` is not written later
        self.disk.sync(FileKind::Journal)?;
        self.learn_without_rows(&cancelled, Cursor { sequence: record.sequence, next: at + self.layout.page });
        Ok(())
    }

    /// Takes over a durable record without rows.
    fn learn_without_rows(&mut self, record: &JournalRecord, cursor: Cursor) {
        self.learn(record, cursor);
        self.verified = self.known;
        self.durable = self.known.sequence;
    }

    /// Returns an offset for a record of this size, after a checkpoint if there is no other way.
    fn reserve_record_space(&mut self, bytes: u64) -> Result<u64, AppendError> {
        if let Some(at) = self.find_record_space(bytes) {
            return Ok(at);
        }
        tracing::debug!(csv = %self.path.display(), "the journal is full: waiting for a checkpoint");
        self.checkpoint_now()?;
        // A record fits half of an empty journal. There was no checkpoint if another process has recorded a failed sync since.
        self.find_record_space(bytes).ok_or(AppendError::SyncFailedElsewhere)
    }

    /// Finds space that holds no record since the checkpoint.
    fn find_record_space(&self, bytes: u64) -> Option<u64> {
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

    /// Makes sure that committed rows are whole where they were appended. Returns the offset of the first row.
    fn confirm_rows(&mut self, record: &JournalRecord, appended: AppendedRange) -> Result<u64, AppendError> {
        let prefix_len = u64::from(record.line_end_prefix_len);
        if (appended.start, appended.end) == (record.offset, record.end()) {
            (self.whole_end, self.len, self.verified) = (record.end(), record.end(), self.known);
            self.see_end(&record.payload);
            return Ok(record.offset + prefix_len);
        }
        tracing::warn!(csv = %self.path.display(), at = record.offset, landed = appended.start, "another process appended to the CSV without the lock");
        self.meter.count(Counter::UnlockedAppends);
        let in_one_piece = appended.end - appended.start == record.payload.len() as u64;
        // guard: prefix_after_slip: rows whose line end another process has written first are acknowledged where they are
        if !in_one_piece || prefix_len > 0 || !self.is_whole(record.offset, appended.start)? {
            return self.rebuild(Some(appended.start));
        }
        // guard: moved_keys: a retry is answered with the offset of rows that landed elsewhere than recorded
        self.keys.move_since(record.first_key, appended.start - record.offset);
        (self.whole_end, self.len, self.verified) = (appended.end, appended.end, self.known);
        self.see_end(&record.payload);
        // guard: unlocked_append: rows that landed elsewhere than recorded are found after a crash
        self.checkpoint_now()?;
        Ok(appended.start)
    }

    fn is_whole(&self, from: u64, to: u64) -> Result<bool, AppendError> {
        let range = FileRange::new(&self.disk, FileKind::Csv, from, to);
        let rows = scan_rows(range).map_err(AppendError::before("read"))?;
        Ok(rows.whole_bytes == to - from)
    }
}
