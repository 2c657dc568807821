//! Whether the CSV is the file that the journal describes, or somebody replaced, truncated or edited it.

use crate::storage::{
    adopt::scan_tokens,
    disk::{Disk, FileKind, FileRange},
    edited::is_edited,
    error::{AppendError, OpenError},
    format::Format,
    journal::{Header, csv_tail_checksum},
    ledger::{Ledger, Purpose, RepairMode, seen_end::SEEN_BYTES_MAX},
};

impl<D: Disk> Ledger<D> {
    /// Checks that the CSV is still the file that the checkpoint describes and that this process saw before.
    pub(super) fn check_identity(&mut self) -> Result<(), AppendError> {
        if self.started && self.len >= self.whole_end {
            return self.check_seen_end();
        }
        (self.verified, self.whole_end) = (self.base(), self.head.csv_bytes);
        if self.head.matches_csv(&self.disk).map_err(AppendError::before("read"))? {
            return Ok(());
        }
        if self.record_after(self.base())?.is_some() || self.head.rebuild.is_some() {
            return Err(AppendError::Unfit(OpenError::ForeignJournal(self.path.clone())));
        }
        // guard: no_silent_adoption: a file that was truncated under a running replica is not taken for the same file
        if self.started || self.purpose == Purpose::Read {
            return Err(self.edited());
        }
        self.adopt()
    }

    fn edited(&self) -> AppendError {
        AppendError::Unfit(OpenError::Edited(self.path.clone()))
    }

    /// Remembers the end of rows that stand before `whole_end`.
    pub(super) fn see_end(&mut self, rows: &[u8]) {
        self.seen_end.see(rows, self.whole_end);
    }

    /// Remembers the end of other programs' rows.
    pub(super) fn see_foreign_end(&mut self) -> Result<(), AppendError> {
        if self.disk.is_direct() {
            return Ok(());
        }
        let from = self.whole_end.saturating_sub(SEEN_BYTES_MAX as u64);
        let rows = self.disk.read(FileKind::Csv, from, self.whole_end - from).map_err(AppendError::before("read"))?;
        self.see_end(&rows);
        Ok(())
    }

    /// Finds a file that was written anew in its place, as an editor or `cp` does: its end has moved. On a direct disk, the
    /// repair of the last record finds that.
    fn check_seen_end(&self) -> Result<(), AppendError> {
        if self.disk.is_direct() {
            return Ok(());
        }
        let still_stands = match self.seen_end.still_stands(&self.disk, self.whole_end) {
            // The last rows were seen at the checkpoint, perhaps by another process.
            Ok(None) if self.whole_end == self.head.csv_bytes => self.head.matches_csv(&self.disk),
            other => other.map(|still_stands| still_stands.unwrap_or(true)),
        };
        let still_stands = still_stands.map_err(AppendError::before("read"))?;
        // guard: edited_in_place: a file that was written anew under a running replica is noticed
        if still_stands { Ok(()) } else { Err(self.edited()) }
    }

    /// Refuses to repair an edited file: rows of the journal would stand in it beside the edited ones.
    pub(super) fn refuse_edited(&self, repair: RepairMode, sync_failed: bool) -> Result<(), AppendError> {
        // Other hosts may write, or a host that lost its lock: headers and records may be of different moments.
        let is_unclear = self.disk.is_direct() && repair != RepairMode::Allowed;
        if self.purpose == Purpose::Repair || sync_failed || self.head.rebuild.is_some() || is_unclear {
            return Ok(());
        }
        let is_edited = is_edited(&self.disk, &self.head, &self.records()?);
        // guard: no_silent_merge: an edited file is not merged with the rows of the journal
        if is_edited.map_err(AppendError::before("read"))? { Err(self.edited()) } else { Ok(()) }
    }

    /// Accepts another file of the same name, after reading it through. The journal holds no rows of the previous one.
    fn adopt(&mut self) -> Result<(), AppendError> {
        let path = &self.path;
        self.format = Format::read(&self.disk, path, &self.format.schema).map_err(AppendError::Unfit)?;
        let has_rows = self.disk.len(FileKind::Csv).map_err(AppendError::before("read"))? > self.format.rows_start;
        if has_rows {
            tracing::error!(csv = %path.display(), "the CSV is not the file that the journal describes, or was truncated; reading it through again");
        } else {
            tracing::info!(csv = %path.display(), "the CSV has no rows: it begins anew, tokens and idempotency keys continue");
        }
        let text = FileRange::new(&self.disk, FileKind::Csv, self.format.start, u64::MAX);
        let (rows, token) = scan_tokens(text, &self.format).map_err(AppendError::before("read"))?;
        if token > self.highest_token {
            (self.highest_token, self.highest_token_lease) = (token, 0);
        }
        self.whole_end = self.format.start + rows.whole_bytes;
        self.sync(FileKind::Csv)?;
        let csv_tail_checksum = csv_tail_checksum(&self.disk, self.whole_end).map_err(AppendError::before("read"))?;
        self.write_header(Header {
            csv_bytes: self.whole_end,
            csv_tail_checksum,
            highest_token: self.highest_token,
            highest_token_lease: self.highest_token_lease,
            ..self.head.clone()
        })
    }
}
