//! What a volume that several hosts share asks for besides.
//!
//! A server that loses power keeps only what was stable there, and a sync does nothing for what another host wrote. So what is
//! found is written again before anything is built on it: the newest header, the last record and its rows. Earlier records need
//! not be, since each writer has seen its rows stable before it acknowledged them. A failed call may mean that the OS lock is
//! lost, so nothing more is written under it: what became of a record is found out under a new lock.

use std::io;

use crate::{
    metrics::Counter,
    storage::{
        disk::{Disk, FileKind},
        error::{AppendError, is_full},
        journal::{Cursor, JournalRecord},
        keys::Keys,
        ledger::{Ledger, damage::Damage, in_doubt::move_outcomes},
        types::EntryOutcome,
    },
};

/// What became of an interrupted append.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Its rows are durable.
    Written(Vec<EntryOutcome>),
    /// Its record is not in the journal.
    NotWritten,
    /// Its record was recycled since, or its rows were moved.
    Unknown,
}

impl<D: Disk> Ledger<D> {
    /// Forgets everything that was read, as if the process had started anew.
    pub(crate) fn forget(&mut self) {
        self.keys = Keys::new(self.keys.capacity() as usize);
        (self.started, self.is_current, self.durable) = (false, false, 0);
        (self.known, self.verified) = (self.base(), self.base());
        self.header_sync_pending = true;
    }

    /// The OS lock is released, so others may write from now on.
    pub(crate) fn end_hold(&mut self) {
        self.is_current = false;
    }

    /// Whether an append was interrupted after its record may have been written.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.in_doubt.is_some()
    }

    /// Finds out, under a new OS lock, what became of the interrupted append.
    pub(crate) fn resolve(&mut self) -> Result<Resolution, AppendError> {
        self.recover()?;
        let Some(in_doubt) = &self.in_doubt else { return Ok(Resolution::NotWritten) };
        if self.head.base >= in_doubt.sequence {
            return Ok(Resolution::Unknown);
        }
        let records = self.records()?;
        let found = records.iter().find(|record| record.sequence == in_doubt.sequence);
        let Some(record) = found.filter(|it| (it.token, it.lease) == (in_doubt.token, in_doubt.lease)) else {
            return Ok(Resolution::NotWritten);
        };
        if !self.rows_stand(record)? {
            return Ok(Resolution::Unknown);
        }
        let mut outcomes = in_doubt.outcomes.clone();
        move_outcomes(&mut outcomes, record.offset + u64::from(record.line_end_prefix_len));
        Ok(Resolution::Written(outcomes))
    }

    /// Writes the last record again, and then its rows, where they are missing too. The caller holds the OS lock.
    pub(super) fn confirm(&mut self, record: &JournalRecord, cursor: Cursor) -> Result<Damage, AppendError> {
        // guard: record_anew: rows are not built on a record that the server may lose
        self.rewrite_record(record, cursor)?;
        if !record.payload.is_empty() {
            if !self.follows_whole_rows(record)? {
                return Ok(Damage::Some);
            }
            let bytes = record.payload.len() as u64;
            let present = self.disk.read(FileKind::Csv, record.offset, bytes).map_err(AppendError::before("read"))?;
            let is_ours = present.iter().zip(&record.payload).all(|(present, ours)| present == ours || *present == 0);
            if !is_ours || self.len < record.offset {
                return Ok(Damage::Some);
            }
            // guard: rows_anew: a checkpoint is not made of rows that the server may lose
            let written = self.disk.write_at(FileKind::Csv, record.offset, &record.payload);
            written.map_err(|e| if is_full(&e) { AppendError::DiskFull(e) } else { self.fail(e) })?;
            if present != record.payload {
                tracing::warn!(csv = %self.path.display(), at = self.len, token = record.token, "completing a batch that a killed replica left incomplete");
                self.meter.count(Counter::CompletedBatches);
            }
            (self.len, self.whole_end) = (self.len.max(record.end()), record.end());
        }
        self.durable = record.sequence;
        Ok(Damage::None)
    }

    /// As `confirm`, for the last record of an earlier refresh.
    pub(super) fn confirm_known(&mut self) -> Result<Damage, AppendError> {
        if self.durable >= self.known.sequence.max(self.head.base) || self.known.sequence <= self.head.base {
            return Ok(Damage::None);
        }
        match self.record_after(self.known_after)? {
            Some((record, cursor)) if cursor == self.known => self.confirm(&record, cursor),
            _ => Err(self.fail(io::Error::other("the last record is gone"))),
        }
    }

    fn rewrite_record(&mut self, record: &JournalRecord, cursor: Cursor) -> Result<(), AppendError> {
        let head = record.encode_head(self.head.journal);
        let padded_bytes = self.layout.whole_pages((head.len() + record.payload.len()) as u64);
        let written =
            self.disk.write_parts_at(FileKind::Journal, cursor.next - padded_bytes, &[&head, &record.payload]);
        written.map_err(|e| self.fail(e))
    }

    /// Writes the newest header again, where it is.
    pub(super) fn rewrite_header(&mut self) -> Result<(), AppendError> {
        let at = self.head_page * self.layout.page;
        self.disk.write_at(FileKind::Journal, at, &self.head.encode()).map_err(|e| self.fail(e))
    }

    /// Whether a record's rows are in the CSV, which they are only once the record is durable.
    pub(super) fn rows_stand(&self, record: &JournalRecord) -> Result<bool, AppendError> {
        let present = self.disk.read(FileKind::Csv, record.offset, record.payload.len() as u64);
        Ok(!record.payload.is_empty() && present.map_err(AppendError::before("read"))? == record.payload)
    }
}
