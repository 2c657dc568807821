//! Whether the CSV matches the journal's records, and what other programs appended between and behind their rows.

use std::io::Read;

use crate::{
    csv::scanner::scan_rows,
    metrics::Counter,
    storage::{
        disk::{Disk, FileKind, FileRange},
        error::AppendError,
        journal::JournalRecord,
        ledger::{
            Ledger, RepairMode,
            damage::{CsvEnd, Damage},
        },
    },
};

impl<D: Disk> Ledger<D> {
    /// Whether a record may not be durable: the last one, if a server may lose it or its writer may not have synced it.
    pub(super) fn may_be_lost(&self, record: &JournalRecord, is_last: bool, repair: RepairMode) -> bool {
        // The page cache keeps a token that is recorded without rows, even if its writer is killed.
        let is_read_early = repair == RepairMode::Unlocked && !record.payload.is_empty();
        is_last && self.durable < record.sequence && (self.disk.is_direct() || is_read_early)
    }

    /// Compares a record's payload with the CSV. If a kill cut the last one short, the rest is written.
    pub(super) fn verify(
        &mut self,
        record: &JournalRecord,
        is_last: bool,
        repair: RepairMode,
    ) -> Result<Damage, AppendError> {
        if record.payload.is_empty() {
            return Ok(Damage::None);
        }
        if !self.follows_whole_rows(record)? {
            return Ok(Damage::Some);
        }
        let bytes = record.payload.len() as u64;
        let present = self.disk.read(FileKind::Csv, record.offset, bytes).map_err(AppendError::before("read"))?;
        // guard: verify: the CSV matches the journal after a crash
        if present != record.payload {
            let len = self.len;
            let is_cut_short = len >= record.offset && len < record.end() && record.payload.starts_with(&present);
            if !is_last || !is_cut_short || repair != RepairMode::Allowed {
                return Ok(Damage::Some);
            }
            return self.complete(record, present.len());
        }
        self.whole_end = record.end();
        self.see_end(&record.payload);
        Ok(Damage::None)
    }

    /// Appends what is missing of the last record's payload, of which the CSV has the first `present_bytes`.
    fn complete(&mut self, record: &JournalRecord, present_bytes: usize) -> Result<Damage, AppendError> {
        tracing::warn!(csv = %self.path.display(), at = self.len, token = record.token, "completing a batch that a killed replica left incomplete");
        // guard: sync_before_repair: rows are not repaired from a record that a power cut may remove
        self.sync(FileKind::Journal)?;
        let rest = &record.payload[present_bytes..];
        let appended =
            self.disk.append(FileKind::Csv, rest).map_err(AppendError::before("write the rest of a batch to"))?;
        if appended.start != self.len || appended.end != record.end() {
            return Ok(Damage::Some);
        }
        (self.len, self.whole_end) = (appended.end, record.end());
        self.meter.count(Counter::CompletedBatches);
        Ok(Damage::None)
    }

    /// Whether the text before a record's rows, which other programs appended, is whole rows. A power cut may have lost it, and
    /// another line may have come in its place since.
    pub(super) fn follows_whole_rows(&self, record: &JournalRecord) -> Result<bool, AppendError> {
        let Some(between @ 1..) = record.offset.checked_sub(self.whole_end) else { return Ok(true) };
        let line_end = &record.payload[..usize::from(record.line_end_prefix_len)];
        let range = FileRange::new(&self.disk, FileKind::Csv, self.whole_end, record.offset);
        let rows = scan_rows(range.chain(line_end)).map_err(AppendError::before("read"))?;
        let is_whole = rows.whole_bytes == between + line_end.len() as u64;
        // guard: rows_before_record: our rows do not continue a line that came in the place of a lost one
        Ok(is_whole && (self.started || !rows.has_hole))
    }

    /// Reads the rows that other processes appended after ours.
    pub(super) fn scan_foreign_rows(&mut self, repair: RepairMode) -> Result<CsvEnd, AppendError> {
        let len = self.len;
        if len == self.whole_end {
            return Ok(CsvEnd::Whole);
        }
        let range = FileRange::new(&self.disk, FileKind::Csv, self.whole_end, len);
        let rows = scan_rows(range).map_err(AppendError::before("read"))?;
        // On a network volume, rows of another host may be on their way.
        let is_unclear = self.disk.is_direct() && repair != RepairMode::Allowed;
        // guard: scan_at_start: a hole that a power cut left in foreign rows is repaired
        if rows.has_hole && (!self.started || is_unclear) {
            return Ok(CsvEnd::Damaged);
        }
        // guard: no_rows_underway: rows that may be undone are not shown as another program's
        if rows.whole_bytes > 0 && repair == RepairMode::Unlocked && self.is_record_underway()? {
            return Ok(CsvEnd::Unclear);
        }
        self.whole_end += rows.whole_bytes;
        self.see_foreign_end()?;
        Ok(rows.open.map_or(CsvEnd::Whole, CsvEnd::OpenLine))
    }

    /// Whether another process has recorded rows since the records were read.
    fn is_record_underway(&self) -> Result<bool, AppendError> {
        self.disk.forget_read_ahead();
        let mut cursor = self.known;
        while let Some((record, next)) = self.record_after(cursor)? {
            // On a direct disk, a last record without rows is not learned, and may be there for long.
            if !self.disk.is_direct() || !record.payload.is_empty() {
                return Ok(true);
            }
            cursor = next;
        }
        Ok(false)
    }
}
