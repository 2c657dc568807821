//! Checkpoints, which free the journal's space, and the rewrite of all files after a failed sync.

use std::io;

use crate::{
    failpoints,
    metrics::Counter,
    storage::{
        disk::{Disk, FileKind, write_zeros},
        error::AppendError,
        journal::{Header, Layout, Rebuild, csv_tail_checksum, set_sync_failed_flag},
        ledger::{Ledger, damage::Damage},
    },
};

/// A checkpoint under way: its header may be written once CSV and keys are synced, which any thread may do without a lock.
///
/// It keeps the number of the header that it follows. A newer header makes this checkpoint obsolete.
#[derive(Debug, Clone)]
pub(crate) struct PendingCheckpoint(Header);

/// Syncs CSV and keys for a checkpoint. A failure is recorded at once, so that no other process makes a checkpoint of a page
/// cache that may hold data that the disk does not.
pub(crate) fn sync_for_checkpoint(disk: &impl Disk, layout: Layout) -> io::Result<()> {
    sync_csv_and_keys(disk).inspect_err(|_| set_sync_failed_flag(disk, layout))
}

fn sync_csv_and_keys(disk: &impl Disk) -> io::Result<()> {
    // guard: csv_before_header: rows that the journal may recycle are durable in the CSV
    disk.sync(FileKind::Csv)?;
    failpoints::hit("checkpoint_csv_synced");
    // guard: keys_before_header: keys that the journal may recycle are durable in the keys file
    disk.sync(FileKind::Keys)?;
    failpoints::hit("checkpoint_keys_synced");
    Ok(())
}

impl<D: Disk> Ledger<D> {
    /// Whether there are records that no checkpoint covers.
    pub(crate) fn is_dirty(&self) -> bool {
        self.known.sequence > self.head.base
    }

    /// Bytes of the journal that must not be overwritten before the next checkpoint.
    pub(crate) fn live_bytes(&self) -> u64 {
        let (start, end) = (self.head.next, self.known.next);
        match (self.is_dirty(), end > start) {
            (false, _) => 0,
            (true, true) => end - start,
            (true, false) => self.head.bytes - start + end - self.layout.space(),
        }
    }

    /// Begins a checkpoint of all known records, after a refresh.
    pub(crate) fn begin_checkpoint(&mut self) -> Result<PendingCheckpoint, AppendError> {
        assert_eq!(self.verified, self.known, "a checkpoint follows a refresh");
        if self.disk.is_direct() && self.confirm_known()? == Damage::Some {
            return Err(self.fail(io::Error::other("the last rows are not in the CSV")));
        }
        self.keys.store(&self.disk, self.head.keys).map_err(AppendError::before("write the keys of"))?;
        failpoints::hit("checkpoint_keys_written");
        Ok(PendingCheckpoint(self.header_of_all()?))
    }

    /// The header of a checkpoint that covers all known records.
    pub(super) fn header_of_all(&self) -> Result<Header, AppendError> {
        Ok(Header {
            base: self.known.sequence,
            next: self.known.next,
            csv_bytes: self.whole_end,
            csv_tail_checksum: csv_tail_checksum(&self.disk, self.whole_end).map_err(AppendError::before("read"))?,
            // guard: token_in_header: the highest token survives the recycling of its record
            highest_token: self.highest_token,
            highest_token_lease: self.highest_token_lease,
            keys: self.keys.next(),
            rebuild: None,
            ..self.head.clone()
        })
    }

    /// Ends a checkpoint whose sync is done, unless another process has written a newer header since.
    pub(crate) fn finish_checkpoint(
        &mut self,
        PendingCheckpoint(header): &PendingCheckpoint,
    ) -> Result<(), AppendError> {
        let pages = self.disk.read(FileKind::Journal, 0, self.layout.space()).map_err(AppendError::before("read"))?;
        match Header::newest(&pages, self.layout) {
            // guard: checkpoint_in_doubt: no checkpoint is made of a page cache that a failed sync left clean and not on the disk
            Ok((head, page)) if head.number == header.number && !self.layout.sync_failed_flag_is_set(&pages) => {
                (self.head, self.head_page) = (head, page);
                self.write_header(header.clone())?;
                self.meter.count(Counter::Checkpoints);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Makes a checkpoint and waits for its sync.
    pub(crate) fn checkpoint_now(&mut self) -> Result<(), AppendError> {
        let pending = self.begin_checkpoint()?;
        if let Err(e) = sync_for_checkpoint(&self.disk, self.layout) {
            return Err(self.fail(e));
        }
        self.finish_checkpoint(&pending)
    }

    /// Resizes the journal, after a refresh. Other processes read the new size in the header.
    pub(crate) fn resize(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.is_dirty() {
            self.checkpoint_now()?;
        }
        let fail = AppendError::before("resize the journal of");
        let old = self.head.bytes;
        write_zeros(old, bytes, |at, zeros| self.disk.write_at(FileKind::Journal, at, zeros)).map_err(&fail)?;
        self.sync(FileKind::Journal)?;
        self.write_header(Header { bytes, next: self.layout.space(), ..self.head.clone() })?;
        self.known = self.base();
        self.verified = self.base();
        if bytes < old {
            self.disk.truncate(FileKind::Journal, bytes).map_err(&fail)?;
        }
        Ok(())
    }

    /// Makes another process's header durable before the space that it freed is overwritten: a power cut could bring the
    /// older header back.
    pub(super) fn sync_pending_header(&mut self) -> Result<(), AppendError> {
        if self.header_sync_pending {
            if self.disk.is_direct() {
                // guard: header_anew: a header that the server may lose gives no space back
                self.rewrite_header()?;
            }
            self.sync(FileKind::Journal)?;
            self.header_sync_pending = false;
        }
        Ok(())
    }

    /// Overwrites the older header, once the newer one is durable.
    pub(super) fn write_header(&mut self, header: Header) -> Result<(), AppendError> {
        // guard: sync_before_header: at least one header is valid at any time
        self.sync(FileKind::Journal)?;
        if self.disk.is_direct() {
            self.sync_pending_header()?;
        }
        let header = Header { number: self.head.number + 1, csv_inode: self.disk.csv_inode(), ..header };
        // guard: two_headers: a partly written header does not damage the other one
        let page = 1 - self.head_page;
        let written = self.disk.write_at(FileKind::Journal, page * self.layout.page, &header.encode());
        written.map_err(|e| self.fail(e))?;
        failpoints::hit("header_written");
        // guard: header_sync: space is recycled only after its header is durable
        self.sync(FileKind::Journal)?;
        failpoints::hit("header_synced");
        (self.head, self.head_page, self.header_sync_pending) = (header, page, false);
        Ok(())
    }

    /// Rewrites all side files after a failed sync. The kernel marks pages clean that it failed to write; rewritten pages are
    /// dirty again, and the next sync reports whether they reach the disk.
    pub(super) fn rewrite_all(&mut self, pages: &[u8]) -> Result<(), AppendError> {
        tracing::warn!(csv = %self.path.display(), "an earlier sync failed: rewriting data that may be missing on disk");
        let fail = AppendError::before("rewrite the journal of");
        let (head, _) = Header::newest(pages, self.layout).map_err(|_| fail(io::Error::other("it is damaged")))?;
        let headers_end = self.layout.sync_failed_flag_offset();
        self.disk.write_at(FileKind::Journal, 0, &pages[..headers_end as usize]).map_err(&fail)?;
        let space = self.layout.space();
        self.rewrite(FileKind::Journal, space, head.bytes)?;
        let keys = self.disk.len(FileKind::Keys).map_err(&fail)?;
        self.rewrite(FileKind::Keys, 0, keys)?;
        if let Some(Rebuild { bytes, which, .. }) = head.rebuild {
            self.rewrite(FileKind::Tail(which), 0, bytes)?;
            self.sync(FileKind::Tail(which))?;
        }
        self.sync(FileKind::Keys)?;
        self.sync(FileKind::Journal)
    }

    fn rewrite(&self, kind: FileKind, from: u64, to: u64) -> Result<(), AppendError> {
        const CHUNK_BYTES: u64 = 1 << 20;
        let fail = AppendError::before("rewrite a side file of");
        let mut at = from;
        while at < to {
            let chunk = self.disk.read(kind, at, CHUNK_BYTES.min(to - at)).map_err(&fail)?;
            if chunk.is_empty() {
                break;
            }
            self.disk.write_at(kind, at, &chunk).map_err(&fail)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }
}
