//! The refresh of readers, which take no lock: they never wait for a writer, and no writer waits for them.
//!
//! What other processes change meanwhile is found and read again. The order matters:
//!
//! 1. The CSV's length, so that whatever stands before it was recorded before the records are read.
//! 2. Headers and records. The last record is believed only if its rows stand in the CSV, since a writer appends them only once the
//!    record is durable.
//! 3. Other programs' rows up to that length, unless a record has appeared since: the rows may be its own, and be undone.
//! 4. The headers again: a checkpoint hides records whose space is used again, and a rebuild moves rows.

use crate::storage::{
    disk::{Disk, FileKind},
    error::AppendError,
    journal::Header,
    ledger::{Ledger, RefreshOutcome, RepairMode},
};

/// How much of the journal is read before the headers on a network volume, where each read is a round trip.
const READ_AHEAD_BYTES: u64 = 32 << 10;
/// How often a refresh starts over because another process wrote at the same time.
const READ_TRIES_MAX: u32 = 5;

impl<D: Disk> Ledger<D> {
    /// Refreshes without the OS lock.
    pub(crate) fn refresh_unlocked(&mut self) -> Result<RefreshOutcome, AppendError> {
        let (accepted_end, rebuilds) = (self.whole_end, self.head.rebuilds);
        let mut last = Ok(RefreshOutcome::NeedsRepair);
        for _ in 0..READ_TRIES_MAX {
            let (number, from) = (self.head.number, self.verified.next);
            self.disk.forget_read_ahead();
            let len = self.csv_len()?;
            let ahead_end = if self.disk.is_direct() { from + self.read_ahead(from)? } else { 0 };
            let outcome = self.refresh_at(len, RepairMode::Unlocked);
            // Most times, the headers of the last refresh and those that follow the records are the same.
            let next = self.verified.next;
            let were_read_ahead = next >= from && next + self.layout.page <= ahead_end;
            // guard: headers_again: records whose space was used again meanwhile are not missed
            let is_of_one_moment = self.head.number == number && were_read_ahead || self.is_newest_header()?;
            match outcome {
                // Tried again: a record that is undone while records are read looks like an edit, and a header that is being written
                // like a damaged one.
                Err(AppendError::Unfit(e)) if is_of_one_moment || e.is_of_journal() => {
                    last = Err(AppendError::Unfit(e))
                }
                Err(AppendError::Unfit(_)) => last = Ok(RefreshOutcome::NeedsRepair),
                Ok(RefreshOutcome::NeedsRepair) if is_of_one_moment && self.head.rebuilds == rebuilds => {
                    // What was shown stays, even if it is not verified again yet.
                    self.whole_end = self.whole_end.max(accepted_end.min(len));
                    return outcome;
                }
                other if is_of_one_moment || other.is_err() => return other,
                _ => {
                    // What was found is of several moments.
                    (self.verified, self.whole_end) = (self.base(), self.head.csv_bytes);
                    last = Ok(RefreshOutcome::NeedsRepair);
                }
            }
        }
        if self.head.rebuilds == rebuilds {
            self.whole_end = self.whole_end.max(accepted_end);
        }
        last
    }

    fn read_ahead(&self, from: u64) -> Result<u64, AppendError> {
        let ahead = self.disk.read(FileKind::Journal, from, READ_AHEAD_BYTES).map_err(AppendError::before("read"))?;
        Ok(ahead.len() as u64)
    }

    /// Whether the header of the last refresh still is the newest.
    fn is_newest_header(&self) -> Result<bool, AppendError> {
        self.disk.forget_read_ahead();
        let newest = Header::read_newest(&self.disk, self.layout).map_err(AppendError::before("read"))?;
        Ok(newest.is_some_and(|head| head.number == self.head.number))
    }

    /// Whether a rebuild has begun since the last refresh. Then the rows after the checkpoint may have moved.
    pub(crate) fn has_moved(&self) -> Result<bool, AppendError> {
        Header::tells_of_moved_rows(&self.disk, self.layout, self.head.rebuilds).map_err(AppendError::before("read"))
    }
}
