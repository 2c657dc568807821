//! What one process knows of the CSV and its journal, and the look that brings it up to date.
//!
//! Everything here happens under the OS lock on the journal. `append`, `checkpoint` and `rebuild` are the other parts.

pub(crate) mod append;
pub(crate) mod checkpoint;
mod rebuild;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    csv::scanner::{OpenLine, scan_rows},
    storage::{
        AppendError, OpenError,
        check::audit::scan_tokens,
        disk::{Disk, Place, Stretch},
        format::Format,
        journal::{Cursor, Header, HeaderFault, JournalRecord, Layout, read_after, records_since},
        keys::Keys,
        ledger::checkpoint::{leave_mark, print_of},
    },
};
use crate::{
    csv::schema::quote,
    fencing::{FencingToken, LeaseId},
    metrics::{Counter, Meter},
};

/// Whether this look may change the CSV: only who holds the lease may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repair {
    Allowed,
    Forbidden,
}

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The CSV is true to the journal; its last line may have been left open by somebody else.
    True(Option<OpenLine>),
    /// There is something to repair, and this look was not allowed to.
    NeedsRepair,
}

/// What a ledger starts from.
pub(crate) struct LedgerOptions {
    pub(crate) path: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) format: Format,
    pub(crate) replica: String,
    /// How many keys to remember.
    pub(crate) keys: usize,
    pub(crate) meter: Arc<Meter>,
}

/// One process's view of one CSV.
#[derive(Debug)]
pub(crate) struct Ledger<D> {
    pub(crate) disk: D,
    pub(crate) path: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) format: Format,
    pub(crate) replica: Box<str>,
    pub(crate) replica_cell: Box<[u8]>,
    /// The newest header at the last look, and the page that it is on.
    pub(crate) head: Header,
    pub(crate) head_page: u64,
    /// The newest header is somebody else's, and perhaps not durable yet.
    pub(crate) owes_header_sync: bool,
    /// The last record that was read or written.
    pub(crate) known: Cursor,
    /// The last record whose rows were seen to stand in the CSV.
    pub(crate) verified: Cursor,
    pub(crate) mark: FencingToken,
    pub(crate) mark_lease: LeaseId,
    pub(crate) keys: Keys,
    /// Everything before this offset of the CSV is whole rows.
    pub(crate) whole: u64,
    /// How long the CSV was at the last look, and what we appended since. Should somebody append without any lock, the end of
    /// our own next append tells.
    pub(crate) len: u64,
    /// Whether this process has looked at the CSV before.
    started: bool,
    /// A sync has failed: this process must end.
    pub(crate) failed: bool,
    /// How long the last sync of a record took.
    pub(crate) last_sync: Duration,
    pub(crate) meter: Arc<Meter>,
}

impl<D: Disk> Ledger<D> {
    /// Reads the headers. The first look is the caller's to take.
    pub(crate) fn open(disk: D, options: LedgerOptions) -> Result<Self, OpenError> {
        let LedgerOptions { path, layout, format, replica, keys, meter } = options;
        let pages =
            disk.read(Place::Journal, 0, layout.space()).map_err(|e| OpenError::io(&path, "read the journal of", e))?;
        let (head, head_page) = Header::newest(&pages, layout).map_err(|fault| OpenError::header(&path, fault))?;
        let base = head.cursor();
        Ok(Self {
            disk,
            layout,
            format,
            replica_cell: quote(&replica),
            replica: replica.into(),
            known: base,
            verified: base,
            mark: 0,
            mark_lease: 0,
            keys: Keys::new(keys),
            whole: head.csv_bytes,
            len: 0,
            started: false,
            failed: false,
            last_sync: Duration::ZERO,
            owes_header_sync: true,
            head,
            head_page,
            path,
            meter,
        })
    }

    /// Learns what others did, and makes the CSV true to the journal: recovery is nothing else.
    pub(crate) fn look(&mut self, repair: Repair) -> Result<Seen, AppendError> {
        if self.failed {
            return Err(AppendError::Sync(io::Error::other("an earlier sync failed")));
        }
        let pages = self.disk.read(Place::Journal, 0, self.layout.space()).map_err(AppendError::before("read"))?;
        let in_doubt = self.layout.is_in_doubt(&pages);
        if in_doubt && repair == Repair::Forbidden {
            return Ok(Seen::NeedsRepair);
        }
        if in_doubt {
            self.write_all_anew(&pages)?;
            self.meter.count(Counter::RecoveredFailedSyncs);
        }
        self.catch_up(&pages)?;
        self.len = self.disk.len(Place::Csv).map_err(AppendError::before("stat"))?;
        self.check_prefix()?;
        let damage = self.learn_and_verify(repair, in_doubt)?;
        let seen = match damage {
            Damage::None => self.look_behind()?,
            Damage::Some => None,
        };
        let open = match (seen, repair) {
            (Some(open), _) => open,
            (None, Repair::Forbidden) => return Ok(Seen::NeedsRepair),
            (None, Repair::Allowed) => {
                self.rebuild(None)?;
                self.meter.count(Counter::Rebuilds);
                None
            }
        };
        self.started = true;
        if in_doubt {
            self.disk
                .write_at(Place::Journal, self.layout.mark(), &[0])
                .map_err(AppendError::before("clear the mark of"))?;
        }
        Ok(Seen::True(open))
    }

    /// Takes over the newest header; where space was recycled meanwhile, what the checkpoint kept of it.
    fn catch_up(&mut self, pages: &[u8]) -> Result<(), AppendError> {
        let (head, page) = Header::newest(pages, self.layout)
            .map_err(|fault| AppendError::Unfit(OpenError::header(&self.path, fault)))?;
        let base = head.cursor();
        if (head.number, head.journal) != (self.head.number, self.head.journal) {
            self.owes_header_sync = true;
        }
        if self.verified.sequence <= head.base && (head.number != self.head.number || !self.started) {
            // Whoever wrote it may have rebuilt the CSV: what we knew of its later part is no longer so.
            (self.verified, self.whole) = (base, head.csv_bytes);
        }
        if self.known.sequence < head.base || !self.started {
            self.keys.load(&self.disk, head.keys).map_err(AppendError::before("read the keys of"))?;
            (self.mark, self.mark_lease) = (head.mark, head.lease);
        }
        if self.known.sequence <= head.base || !self.started {
            self.known = base;
        }
        (self.head, self.head_page) = (head, page);
        Ok(())
    }

    /// A file that is shorter or other than the checkpoint says was replaced, or cut by somebody.
    fn check_prefix(&mut self) -> Result<(), AppendError> {
        let len = self.len;
        if self.started && len >= self.whole {
            return Ok(());
        }
        (self.verified, self.whole) = (self.base(), self.head.csv_bytes);
        let same = len >= self.head.csv_bytes
            && print_of(&self.disk, self.head.csv_bytes).map_err(AppendError::before("read"))? == self.head.csv_print;
        if same {
            return Ok(());
        }
        if self.record_after(self.base())?.is_some() || self.head.rebuild.is_some() {
            return Err(AppendError::Unfit(OpenError::ForeignJournal(self.path.clone())));
        }
        self.adopt()
    }

    /// Another file of the same name, and no rows that the journal would owe it: read through once, then believed.
    fn adopt(&mut self) -> Result<(), AppendError> {
        let path = &self.path;
        tracing::error!(csv = %path.display(), "not the file that the journal knows, or cut short by somebody; reading it anew");
        let new = Format::read(&self.disk, path, &self.format.schema).map_err(AppendError::Unfit)?;
        if self.started && (new.schema != self.format.schema || new.line_end != self.format.line_end) {
            // Rows that wait are laid out by the header that was there at start: another one would misplace their cells.
            return Err(AppendError::Unfit(OpenError::HeaderChanged(self.path.clone())));
        }
        self.format = new;
        let text = Stretch::new(&self.disk, Place::Csv, self.format.start, u64::MAX);
        let (rows, token) = scan_tokens(text, &self.format).map_err(AppendError::before("read"))?;
        if token > self.mark {
            (self.mark, self.mark_lease) = (token, 0);
        }
        self.whole = self.format.start + rows.whole_bytes;
        self.sync(Place::Csv)?;
        let csv_print = print_of(&self.disk, self.whole).map_err(AppendError::before("read"))?;
        let (mark, lease) = (self.mark, self.mark_lease);
        self.write_header(Header { csv_bytes: self.whole, csv_print, mark, lease, ..self.head.clone() })
    }

    /// Reads the records that are new, and holds each against the CSV.
    fn learn_and_verify(&mut self, repair: Repair, in_doubt: bool) -> Result<Damage, AppendError> {
        let doubted = in_doubt || self.head.rebuild.is_some();
        let mut damage = if doubted { Damage::Some } else { Damage::None };
        let mut current = self.record_after(self.verified)?;
        while let Some((record, cursor)) = current {
            let following = self.record_after(cursor)?;
            self.learn(&record, cursor);
            if damage == Damage::None {
                damage = self.verify(&record, following.is_none(), repair)?;
            }
            if damage == Damage::None {
                self.verified = cursor;
            }
            current = following;
        }
        Ok(damage)
    }

    pub(crate) fn record_after(&self, cursor: Cursor) -> Result<Option<(JournalRecord, Cursor)>, AppendError> {
        read_after(&self.disk, self.layout, &self.head, cursor).map_err(AppendError::before("read the journal of"))
    }

    /// Takes in token, lease and keys of a record, if it is new.
    pub(crate) fn learn(&mut self, record: &JournalRecord, cursor: Cursor) {
        if record.sequence <= self.known.sequence {
            return;
        }
        assert_eq!(record.sequence, self.known.sequence + 1, "records are read in order");
        self.known = cursor;
        if record.token >= self.mark {
            (self.mark, self.mark_lease) = (record.token, record.lease);
        }
        self.keys.learn(record.first_key, &record.keys, &record.replica);
    }

    /// Whether a record's rows stand where it says. The last one's may have been cut short by a kill: then the rest is written.
    fn verify(&mut self, record: &JournalRecord, is_last: bool, repair: Repair) -> Result<Damage, AppendError> {
        if record.payload.is_empty() {
            return Ok(Damage::None);
        }
        if !self.started && self.has_hole(self.whole, record.offset)? {
            return Ok(Damage::Some);
        }
        let bytes = record.payload.len() as u64;
        let present = self.disk.read(Place::Csv, record.offset, bytes).map_err(AppendError::before("read"))?;
        // guard: verify
        if present != record.payload {
            let len = self.len;
            let is_cut_short = len >= record.offset && len < record.end() && record.payload.starts_with(&present);
            if !is_last || !is_cut_short || repair == Repair::Forbidden {
                return Ok(Damage::Some);
            }
            tracing::warn!(csv = %self.path.display(), at = len, token = record.token, "writing the rest of a batch that a killed replica left");
            // guard: sync_before_repair
            self.sync(Place::Journal)?;
            let rest = &record.payload[present.len()..];
            let landed =
                self.disk.append(Place::Csv, rest).map_err(AppendError::before("write the rest of a batch to"))?;
            if landed.start != len || landed.end != record.end() {
                return Ok(Damage::Some);
            }
            self.len = landed.end;
            self.meter.count(Counter::CompletedBatches);
        }
        self.whole = record.end();
        Ok(Damage::None)
    }

    fn has_hole(&self, from: u64, to: u64) -> Result<bool, AppendError> {
        let rows = scan_rows(Stretch::new(&self.disk, Place::Csv, from, to)).map_err(AppendError::before("read"))?;
        Ok(rows.has_hole)
    }

    /// Reads what others appended behind our rows. `None`: a hole that a power cut left, found at a start.
    fn look_behind(&mut self) -> Result<Option<Option<OpenLine>>, AppendError> {
        let len = self.len;
        if len == self.whole {
            return Ok(Some(None));
        }
        let stretch = Stretch::new(&self.disk, Place::Csv, self.whole, len);
        let rows = scan_rows(stretch).map_err(AppendError::before("read"))?;
        // guard: scan_at_start
        if rows.has_hole && !self.started {
            return Ok(None);
        }
        self.whole += rows.whole_bytes;
        Ok(Some(rows.open))
    }

    /// The last record that the newest checkpoint covers.
    pub(crate) fn base(&self) -> Cursor {
        self.head.cursor()
    }

    /// All records since the checkpoint.
    pub(crate) fn records(&self) -> Result<Vec<JournalRecord>, AppendError> {
        records_since(&self.disk, self.layout, &self.head).map_err(AppendError::before("read the journal of"))
    }

    /// Syncs, and if that fails, sees to it that nobody believes what the page cache says from now on.
    pub(crate) fn sync(&mut self, place: Place) -> Result<(), AppendError> {
        self.disk.sync(place).map_err(|e| self.fail(e))
    }

    /// After a failed sync the page cache may hold what the disk does not: a mark tells whoever comes next.
    pub(crate) fn fail(&mut self, e: io::Error) -> AppendError {
        self.failed = true;
        self.meter.count(Counter::SyncFailures);
        leave_mark(&self.disk, self.layout);
        AppendError::Sync(e)
    }
}

/// Whether the CSV is other than the journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    None,
    Some,
}

impl OpenError {
    fn header(path: &std::path::Path, fault: HeaderFault) -> Self {
        match fault {
            HeaderFault::Damaged => Self::DamagedJournal(path.to_owned()),
            HeaderFault::Newer(format) => Self::NewerJournal(path.to_owned(), format),
        }
    }
}
