//! Checkpoints: what the journal need not keep any more. And what is left when a sync fails.

use std::io;

use crate::storage::{
    AppendError,
    disk::{Disk, Place},
    journal::{Header, Layout, Rebuild},
    ledger::Ledger,
};
use crate::{failpoints, metrics::Counter};

/// As much of the CSV's end is compared at a start.
const PRINT_BYTES: u64 = 4096;

/// A checkpoint under way: once CSV and keys are synced, this header may be written. The sync is anybody's to do, without a lock.
///
/// Its number is still that of the header which it follows: if there is a newer one by then, nobody needs it any more.
#[derive(Debug, Clone)]
pub(crate) struct Pending(Header);

/// Makes durable what a checkpoint promises. A failure is marked at once: others must not begin a checkpoint on a cache that lies.
pub(crate) fn sync_for_checkpoint(disk: &impl Disk, layout: Layout) -> io::Result<()> {
    sync_csv_and_keys(disk).inspect_err(|_| leave_mark(disk, layout))
}

/// Tells whoever comes next that the page cache may hold what the disk does not.
pub(crate) fn leave_mark(disk: &impl Disk, layout: Layout) {
    // guard: mark_failed_sync
    if let Err(e) = disk.write_at(Place::Journal, layout.mark(), &[1]) {
        tracing::error!(error = %e, "cannot leave a mark of the failed sync in the journal");
    }
}

fn sync_csv_and_keys(disk: &impl Disk) -> io::Result<()> {
    // guard: csv_before_header
    disk.sync(Place::Csv)?;
    failpoints::reach("checkpoint_csv_synced");
    // guard: keys_before_header
    disk.sync(Place::Keys)?;
    failpoints::reach("checkpoint_keys_synced");
    Ok(())
}

/// A fingerprint of the last bytes before `csv_bytes`.
pub(crate) fn print_of(disk: &impl Disk, csv_bytes: u64) -> io::Result<u32> {
    let bytes = csv_bytes.min(PRINT_BYTES);
    Ok(crc32c::crc32c(&disk.read(Place::Csv, csv_bytes - bytes, bytes)?))
}

/// Space that has been written once is overwritten in place ever after: a sync then has no lengths or extents to note.
pub(crate) fn write_zeros(from: u64, to: u64, write_at: impl Fn(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let zeros = vec![0; CHUNK_BYTES as usize];
    let mut at = from;
    while at < to {
        let bytes = CHUNK_BYTES.min(to - at);
        write_at(at, &zeros[..bytes as usize])?;
        at += bytes;
    }
    Ok(())
}

impl<D: Disk> Ledger<D> {
    /// Whether there are records that no checkpoint covers.
    pub(crate) fn is_dirty(&self) -> bool {
        self.known.sequence > self.head.base
    }

    /// Bytes of the journal that can't be written over yet.
    pub(crate) fn live_bytes(&self) -> u64 {
        let (start, end) = (self.head.next, self.known.next);
        match (self.is_dirty(), end > start) {
            (false, _) => 0,
            (true, true) => end - start,
            (true, false) => self.head.bytes - start + end - self.layout.space(),
        }
    }

    /// Begins a checkpoint of all that is known: after a look, under the OS lock.
    pub(crate) fn begin_checkpoint(&mut self) -> Result<Pending, AppendError> {
        assert_eq!(self.verified, self.known, "a checkpoint follows a look");
        self.keys.store(&self.disk, self.head.keys).map_err(AppendError::before("write the keys of"))?;
        failpoints::reach("checkpoint_keys_written");
        Ok(Pending(self.header_of_all()?))
    }

    /// What a header says when all that is known stands in the CSV.
    pub(crate) fn header_of_all(&self) -> Result<Header, AppendError> {
        Ok(Header {
            base: self.known.sequence,
            next: self.known.next,
            csv_bytes: self.whole,
            csv_print: print_of(&self.disk, self.whole).map_err(AppendError::before("read"))?,
            // guard: mark_in_header
            mark: self.mark,
            lease: self.mark_lease,
            keys: self.keys.next(),
            rebuild: None,
            ..self.head.clone()
        })
    }

    /// Ends a checkpoint whose sync is done: under the OS lock, whatever others did meanwhile.
    pub(crate) fn finish_checkpoint(&mut self, Pending(header): &Pending) -> Result<(), AppendError> {
        let pages = self.disk.read(Place::Journal, 0, self.layout.space()).map_err(AppendError::before("read"))?;
        match Header::newest(&pages, self.layout) {
            Ok((head, page)) if head.number == header.number && !self.layout.is_in_doubt(&pages) => {
                (self.head, self.head_page) = (head, page);
                self.write_header(header.clone())?;
                self.meter.count(Counter::Checkpoints);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// All of a checkpoint at once, for who can't wait.
    pub(crate) fn checkpoint_now(&mut self) -> Result<(), AppendError> {
        let pending = self.begin_checkpoint()?;
        if let Err(e) = sync_for_checkpoint(&self.disk, self.layout) {
            return Err(self.fail(e));
        }
        self.finish_checkpoint(&pending)
    }

    /// Makes the journal this large: after a look, under the OS lock. Who else has it open reads the new size in the header.
    pub(crate) fn resize(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.is_dirty() {
            self.checkpoint_now()?;
        }
        let fail = AppendError::before("resize the journal of");
        let old = self.head.bytes;
        write_zeros(old, bytes, |at, zeros| self.disk.write_at(Place::Journal, at, zeros)).map_err(&fail)?;
        self.sync(Place::Journal)?;
        self.write_header(Header { bytes, next: self.layout.space(), ..self.head.clone() })?;
        self.known = self.base();
        self.verified = self.base();
        if bytes < old {
            self.disk.cut(Place::Journal, bytes).map_err(&fail)?;
        }
        Ok(())
    }

    /// What the newest header gave back must not be written over before that header is durable: a power cut would bring the
    /// older one back.
    pub(crate) fn settle_header(&mut self) -> Result<(), AppendError> {
        if self.owes_header_sync {
            self.sync(Place::Journal)?;
            self.owes_header_sync = false;
        }
        Ok(())
    }

    /// Writes over the older of the two headers, once the newer one is sure to be durable.
    pub(crate) fn write_header(&mut self, header: Header) -> Result<(), AppendError> {
        // guard: sync_before_header
        self.sync(Place::Journal)?;
        let header = Header { number: self.head.number + 1, ..header };
        // guard: two_headers
        let page = 1 - self.head_page;
        let written = self.disk.write_at(Place::Journal, page * self.layout.page, &header.encode());
        written.map_err(|e| self.fail(e))?;
        failpoints::reach("header_written");
        // guard: header_sync
        self.sync(Place::Journal)?;
        failpoints::reach("header_synced");
        (self.head, self.head_page, self.owes_header_sync) = (header, page, false);
        Ok(())
    }

    /// After somebody's failed sync: what is in the page cache need not be on the disk, and is clean for all that. Written
    /// anew it is dirty, and the next sync tells the truth.
    pub(crate) fn write_all_anew(&mut self, pages: &[u8]) -> Result<(), AppendError> {
        tracing::warn!(csv = %self.path.display(), "a sync has failed before: writing anew what is in doubt");
        let fail = AppendError::before("write anew the journal of");
        let (head, _) = Header::newest(pages, self.layout).map_err(|_| fail(io::Error::other("it is damaged")))?;
        let mark = self.layout.mark();
        self.disk.write_at(Place::Journal, 0, &pages[..mark as usize]).map_err(&fail)?;
        let space = self.layout.space();
        self.write_anew(Place::Journal, space, head.bytes)?;
        let keys = self.disk.len(Place::Keys).map_err(&fail)?;
        self.write_anew(Place::Keys, 0, keys)?;
        if let Some(Rebuild { bytes, which, .. }) = head.rebuild {
            self.write_anew(Place::Tail(which), 0, bytes)?;
            self.sync(Place::Tail(which))?;
        }
        self.sync(Place::Keys)?;
        self.sync(Place::Journal)
    }

    fn write_anew(&self, place: Place, from: u64, to: u64) -> Result<(), AppendError> {
        const CHUNK_BYTES: u64 = 1 << 20;
        let fail = AppendError::before("write anew what lies beside");
        let mut at = from;
        while at < to {
            let chunk = self.disk.read(place, at, CHUNK_BYTES.min(to - at)).map_err(&fail)?;
            if chunk.is_empty() {
                break;
            }
            self.disk.write_at(place, at, &chunk).map_err(&fail)?;
            at += chunk.len() as u64;
        }
        Ok(())
    }
}
