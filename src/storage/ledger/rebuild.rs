//! The rebuild: quarantines the CSV after the checkpoint, and writes it again from the journal and other processes' whole
//! lines.
//!
//! Needed after a power cut, after a failed sync, and when a process without the lock wrote into the middle of our rows. An
//! interrupted rebuild is continued by the next refresh, from the new tail that is already durable. The tail is held in
//! memory; it is as long as what was appended since the last checkpoint.

use std::io;

use crate::{
    csv::scanner::first_record,
    failpoints,
    metrics::Counter,
    storage::{
        disk::{AppendedRange, Disk, FileKind},
        error::AppendError,
        journal::{Header, JournalRecord, Rebuild},
        ledger::{
            Ledger,
            new_tail::{NewTail, rows_of, tail_index},
        },
    },
};

/// How often a rebuild starts over because another process appends at the same time.
const REBUILD_TRIES_MAX: u32 = 10;

impl<D: Disk> Ledger<D> {
    /// Returns the offset of the last record's rows. `appended_at` is where they are now, if not at the recorded offset.
    pub(super) fn rebuild(&mut self, appended_at: Option<u64>) -> Result<u64, AppendError> {
        let base = self.head.csv_bytes;
        let mut old = self.read_tail()?;
        let mut records = self.records()?;
        self.learn_width_of(&records)?;
        let recorded = records.last().map(|last| (last.first_key, last.offset + u64::from(last.line_end_prefix_len)));
        if let (Some(appended_at), Some(last)) = (appended_at, records.last_mut()) {
            last.offset = appended_at;
        }
        let mut tail = self.compose_tail(&old, &records)?;
        let last = base + tail.last_record_at();
        if let (Some(_), Some((first_key, offset))) = (appended_at, recorded) {
            // guard: rebuilt_keys: a retry is answered with the offset that a rebuild gave the rows before their first answer
            self.keys.move_since(first_key, last.wrapping_sub(offset));
        }
        // Start over if another process without the lock appends just when the new tail is appended.
        for tries in 0.. {
            let appended = self.replace_tail(&old, tail.text())?;
            if (appended.start, appended.end) == (base, base + tail.text().len() as u64) {
                break;
            }
            if tries == REBUILD_TRIES_MAX {
                let e = io::Error::other("another process keeps appending without the lock");
                return Err(AppendError::before("rebuild the end of")(e));
            }
            old = self.read_tail()?;
            let [before, behind] = [appended.start, appended.end].map(|offset| tail_index(offset, base, &old));
            tail.keep_all_foreign(&old[..before]);
            tail.keep_all_foreign(&old[behind..]);
        }
        self.end_rebuild(base + tail.text().len() as u64)?;
        failpoints::hit("rebuild_ended");
        for which in [0, 1] {
            self.disk.truncate(FileKind::Tail(which), 0).map_err(AppendError::before("delete the rebuild files of"))?;
        }
        Ok(last)
    }

    /// The CSV after the checkpoint.
    fn read_tail(&self) -> Result<Vec<u8>, AppendError> {
        let fail = AppendError::before("read");
        let len = self.disk.len(FileKind::Csv).map_err(&fail)?;
        self.disk.read(FileKind::Csv, self.head.csv_bytes, len.saturating_sub(self.head.csv_bytes)).map_err(fail)
    }

    /// Replaces the old tail by the new one. Returns where that was appended.
    fn replace_tail(&mut self, old: &[u8], new: &[u8]) -> Result<AppendedRange, AppendError> {
        let (base, fail) = (self.head.csv_bytes, AppendError::before("rebuild the end of"));
        tracing::warn!(csv = %self.path.display(), from = base, old_bytes = old.len(), new_bytes = new.len(), "rebuilding the end of the CSV; its old content is in the .torn file");
        // guard: quarantine_before_truncate: no byte is removed from the CSV before it is quarantined
        let torn_at = self.quarantine(old)?;
        failpoints::hit("rebuild_quarantined");
        // guard: header_before_tail: the header that a power cut may bring back still finds its tail file
        self.sync_pending_header()?;
        let which = 1 - self.head.rebuild.map_or(1, |rebuild| rebuild.which);
        self.disk.truncate(FileKind::Tail(which), 0).map_err(&fail)?;
        self.disk.append(FileKind::Tail(which), new).map_err(&fail)?;
        self.sync(FileKind::Tail(which))?;
        failpoints::hit("rebuild_tail_synced");
        self.keys.store(&self.disk, self.head.keys).map_err(&fail)?;
        self.sync(FileKind::Keys)?;
        let rebuild = Rebuild { bytes: new.len() as u64, which, torn_at, old_bytes: old.len() as u64 };
        // guard: rebuild_journaled: an interrupted rebuild continues from its new tail
        self.write_header(Header { rebuild: Some(rebuild), rebuilds: self.head.number + 1, ..self.head.clone() })?;
        failpoints::hit("rebuild_journaled");

        // Also if the rest of this fails.
        self.seen_end.forget();
        self.disk.truncate(FileKind::Csv, base).map_err(&fail)?;
        failpoints::hit("rebuild_truncated");
        // guard: truncate_before_tail: a power cut does not undo the truncation under the new tail
        self.sync(FileKind::Csv)?;
        failpoints::hit("rebuild_truncation_synced");
        let appended = self.disk.append(FileKind::Csv, new).map_err(&fail)?;
        failpoints::hit("rebuild_appended");
        self.sync(FileKind::Csv)?;
        failpoints::hit("rebuild_appended_synced");
        Ok(appended)
    }

    fn end_rebuild(&mut self, csv_bytes: u64) -> Result<(), AppendError> {
        (self.whole_end, self.len) = (csv_bytes, csv_bytes);
        self.verified = self.known;
        self.write_header(self.header_of_all()?)
    }

    /// Copies bytes durably to `<csv>.torn` before they are truncated from the CSV. Returns their offset there.
    fn quarantine(&mut self, bytes: &[u8]) -> Result<u64, AppendError> {
        let fail = AppendError::before("quarantine the end of");
        let text = if bytes.is_empty() || bytes.ends_with(b"\n") { bytes.to_vec() } else { [bytes, b"\n"].concat() };
        let appended = self.disk.append(FileKind::Torn, &text).map_err(fail)?;
        self.sync(FileKind::Torn)?;
        self.meter.add(Counter::QuarantinedBytes, bytes.len() as u64);
        Ok(appended.start)
    }

    /// Takes the width of a headerless file from our rows, if its first row is after the checkpoint: they are filled up to it.
    fn learn_width_of(&mut self, records: &[JournalRecord]) -> Result<(), AppendError> {
        let Some(record) = records.iter().find(|record| !record.payload.is_empty()) else { return Ok(()) };
        if self.format.width().is_none() {
            let first = first_record(rows_of(record)).map_err(AppendError::before("read"))?;
            self.format.headerless_width = Some(first.width);
        }
        Ok(())
    }

    fn compose_tail(&self, old: &[u8], records: &[JournalRecord]) -> Result<NewTail, AppendError> {
        let mut tail = NewTail::new(&self.format, self.head.highest_token);
        let Some(rebuild) = self.head.rebuild else {
            tail.compose(self.head.csv_bytes, old, records);
            return Ok(tail);
        };
        // An interrupted rebuild: its new tail replaces the records, and rows that were appended since are kept.
        let read =
            |kind, at, bytes| self.disk.read(kind, at, bytes).map_err(AppendError::before("read a rebuild file of"));
        let composed = read(FileKind::Tail(rebuild.which), 0, rebuild.bytes)?;
        if composed.len() as u64 != rebuild.bytes {
            // The journal still has our rows.
            tracing::error!(csv = %self.path.display(), "the new tail of an interrupted rebuild is missing; composing it again from the journal");
            tail.compose(self.head.csv_bytes, old, records);
            return Ok(tail);
        }
        let before_rebuild = read(FileKind::Torn, rebuild.torn_at, rebuild.old_bytes)?;
        tail.resume(composed, &before_rebuild, old);
        Ok(tail)
    }
}
