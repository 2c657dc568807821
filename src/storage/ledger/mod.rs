//! One process's view of the CSV and its journal, and the refresh that brings it up to date.
//!
//! Every method is called under the OS lock on the journal, except those that read without it.

mod append;
pub(crate) mod checkpoint;
mod damage;
pub(crate) mod direct;
mod encode;
mod identity;
mod in_doubt;
mod new_tail;
mod rebuild;
mod seen_end;
mod unlocked;
mod verify;

use std::{io, path::Path, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    csv::{encode::quote, scanner::OpenLine},
    fencing::{FencingToken, LeaseId},
    metrics::{Counter, Meter},
    storage::{
        disk::{Disk, FileKind},
        error::{AppendError, OpenError},
        format::Format,
        journal::{Cursor, Header, JournalRecord, Layout, read_after, records_since, set_sync_failed_flag},
        keys::Keys,
        ledger::{
            damage::{CsvEnd, Damage},
            in_doubt::InDoubt,
            seen_end::SeenEnd,
        },
    },
};

/// Whether a refresh may change the CSV. Only the holder of the lease may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RepairMode {
    Allowed,
    /// The OS lock is held, but not the lease.
    Forbidden,
    /// Nothing is held: other processes may write at the same time.
    Unlocked,
}

/// What a refresh found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshOutcome {
    /// The CSV matches the journal. Another process may have left its last line open.
    Consistent(Option<OpenLine>),
    /// The CSV needs a repair, and this refresh was not allowed to make it. Without the OS lock, another process may just be writing:
    /// then only what was written before is verified.
    NeedsRepair,
}

/// What a ledger is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reading rows: it accepts no other file than the one that was opened for appending.
    Read,
    Append,
    /// Repairs that an operator asked for, and that a start refuses.
    Repair,
}

/// What a ledger is opened with.
pub(crate) struct LedgerOptions {
    pub(crate) path: PathBuf,
    pub(crate) layout: Layout,
    pub(crate) format: Format,
    pub(crate) replica: String,
    /// How many keys to remember.
    pub(crate) keys: usize,
    pub(crate) purpose: Purpose,
    pub(crate) meter: Arc<Meter>,
}

/// One process's view of one CSV.
#[derive(Debug)]
pub(crate) struct Ledger<D> {
    disk: D,
    path: PathBuf,
    layout: Layout,
    format: Format,
    replica: Box<str>,
    replica_cell: Box<[u8]>,
    /// The newest header at the last refresh.
    head: Header,
    /// The page that it is on.
    head_page: u64,
    /// Another process wrote the newest header, which may not be durable yet.
    header_sync_pending: bool,
    /// The position before the last known record.
    known_after: Cursor,
    /// Sequence of the last record that is known to be durable, with its rows, on a direct disk.
    durable: u64,
    /// Nothing can have changed since the last refresh: the OS lock is held, and no call failed.
    is_current: bool,
    /// An append whose record may be in the journal or not.
    in_doubt: Option<InDoubt>,
    /// The last record that was read or written.
    known: Cursor,
    /// The last record whose rows were found in the CSV.
    verified: Cursor,
    highest_token: FencingToken,
    /// The lease that wrote under it.
    highest_token_lease: LeaseId,
    keys: Keys,
    /// Everything before this offset of the CSV is whole rows.
    whole_end: u64,
    /// The CSV's length at the last refresh, plus what was appended since. If another process appends without the lock, the
    /// end of our next append shows it.
    len: u64,
    /// Where the last rows that this process saw end, and their last bytes.
    seen_end: SeenEnd,
    purpose: Purpose,
    /// Whether a refresh has succeeded before.
    started: bool,
    /// A sync has failed: this process must end.
    failed: bool,
    /// How long the last sync of a record took.
    last_sync: Duration,
    meter: Arc<Meter>,
}

impl<D: Disk> Ledger<D> {
    /// Reads the headers. The caller makes the first refresh.
    pub(crate) fn open(disk: D, options: LedgerOptions) -> Result<Self, OpenError> {
        let LedgerOptions { path, layout, format, replica, keys, purpose, meter } = options;
        let pages = disk
            .read(FileKind::Journal, 0, layout.space())
            .map_err(|e| OpenError::io(&path, "read the journal of", e))?;
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
            highest_token: 0,
            highest_token_lease: 0,
            keys: Keys::new(keys),
            whole_end: head.csv_bytes,
            len: 0,
            seen_end: SeenEnd::default(),
            purpose,
            started: false,
            failed: false,
            last_sync: Duration::ZERO,
            header_sync_pending: true,
            known_after: base,
            durable: 0,
            is_current: false,
            in_doubt: None,
            head,
            head_page,
            path,
            meter,
        })
    }

    /// The CSV's path, symbolic links resolved.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How the CSV is laid out.
    pub(crate) fn format(&self) -> &Format {
        &self.format
    }

    /// How long the last sync of a record took.
    pub(crate) fn last_sync(&self) -> Duration {
        self.last_sync
    }

    /// Everything before this offset of the CSV is whole rows.
    pub(crate) fn whole_end(&self) -> u64 {
        self.whole_end
    }

    /// How much of the CSV the newest known checkpoint covers, in bytes.
    pub(crate) fn checkpoint_end(&self) -> u64 {
        self.head.csv_bytes
    }

    /// The journal's size in bytes.
    pub(crate) fn journal_bytes(&self) -> u64 {
        self.head.bytes
    }

    /// The sequence of the last known record.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.known.sequence
    }

    /// How many keys were ever recorded.
    pub(crate) fn keys_recorded(&self) -> u64 {
        self.keys.next()
    }

    /// How many keys the newest checkpoint has stored in the keys file, also if no refresh has read it yet.
    pub(crate) fn keys_stored(&self) -> io::Result<u64> {
        // A refresh refuses a damaged journal.
        Ok(Header::read_newest(&self.disk, self.layout)?.map_or(self.head.keys, |head| head.keys))
    }

    /// How many keys are remembered.
    pub(crate) fn keys_capacity(&self) -> u64 {
        self.keys.capacity()
    }

    /// Changes with each rebuild, which may move the rows after the checkpoint before it.
    pub(crate) fn rebuilds(&self) -> u64 {
        self.head.rebuilds
    }

    /// Whether a rebuild was under way at the last refresh.
    pub(crate) fn is_rebuilding(&self) -> bool {
        self.head.rebuild.is_some()
    }

    /// Reads what other processes recorded, and makes the CSV match the journal. Recovery after a crash is nothing else.
    pub(crate) fn refresh(&mut self, repair: RepairMode) -> Result<RefreshOutcome, AppendError> {
        if self.failed {
            return Err(AppendError::Sync(io::Error::other("an earlier sync failed")));
        }
        self.disk.forget_read_ahead();
        let len = self.csv_len()?;
        self.refresh_at(len, repair)
    }

    fn csv_len(&self) -> Result<u64, AppendError> {
        self.disk.len(FileKind::Csv).map_err(AppendError::before("stat"))
    }

    /// As `refresh`, of a CSV of this length, with records that may have been read ahead.
    fn refresh_at(&mut self, len: u64, repair: RepairMode) -> Result<RefreshOutcome, AppendError> {
        let pages = self.disk.read(FileKind::Journal, 0, self.layout.space()).map_err(AppendError::before("read"))?;
        let sync_failed = self.layout.sync_failed_flag_is_set(&pages);
        if sync_failed && repair != RepairMode::Allowed {
            return Ok(RefreshOutcome::NeedsRepair);
        }
        if sync_failed {
            self.rewrite_all(&pages)?;
            self.meter.count(Counter::RecoveredFailedSyncs);
        }
        self.catch_up(&pages)?;
        self.len = len;
        self.check_identity()?;
        let end = match self.learn_and_verify(repair, sync_failed)? {
            Damage::None => self.scan_foreign_rows(repair)?,
            Damage::Some => CsvEnd::Damaged,
            Damage::Unclear => CsvEnd::Unclear,
        };
        // A rebuild tells whole lines by their width.
        self.learn_width().map_err(AppendError::before("read"))?;
        let open_line = match (end, repair) {
            (CsvEnd::Whole, _) => None,
            (CsvEnd::OpenLine(line), _) => Some(line),
            (CsvEnd::Unclear, _) => return Ok(RefreshOutcome::NeedsRepair),
            (CsvEnd::Damaged, RepairMode::Forbidden | RepairMode::Unlocked) => {
                self.refuse_edited(repair, sync_failed)?;
                return Ok(RefreshOutcome::NeedsRepair);
            }
            (CsvEnd::Damaged, RepairMode::Allowed) => {
                self.refuse_edited(repair, sync_failed)?;
                self.rebuild(None)?;
                self.meter.count(Counter::Rebuilds);
                None
            }
        };
        self.started = true;
        if sync_failed {
            self.disk
                .write_at(FileKind::Journal, self.layout.sync_failed_flag_offset(), &[0])
                .map_err(AppendError::before("clear the failed-sync flag of"))?;
        }
        Ok(RefreshOutcome::Consistent(open_line))
    }

    /// Takes over the newest header, and the checkpoint's token and keys where their records were recycled.
    fn catch_up(&mut self, pages: &[u8]) -> Result<(), AppendError> {
        let (head, page) = Header::newest(pages, self.layout)
            .map_err(|fault| AppendError::Unfit(OpenError::header(&self.path, fault)))?;
        let base = head.cursor();
        if (head.number, head.journal) != (self.head.number, self.head.journal) {
            self.header_sync_pending = true;
            self.seen_end.forget();
        }
        if self.verified.sequence <= head.base && (head.number != self.head.number || !self.started) {
            // The process that wrote the header may have rebuilt the CSV behind what we verified.
            // guard: rebuilt_behind: nothing that a rebuild moved counts as verified
            (self.verified, self.whole_end) = (base, head.csv_bytes);
        }
        if self.known.sequence < head.base || !self.started {
            self.keys.load(&self.disk, head.keys).map_err(AppendError::before("read the keys of"))?;
            (self.highest_token, self.highest_token_lease) = (head.highest_token, head.highest_token_lease);
        }
        if self.known.sequence <= head.base || !self.started {
            self.known = base;
        }
        (self.head, self.head_page) = (head, page);
        self.durable = self.durable.max(self.head.base);
        Ok(())
    }

    /// Reads the new records and compares each with the CSV.
    fn learn_and_verify(&mut self, repair: RepairMode, sync_failed: bool) -> Result<Damage, AppendError> {
        let is_suspect = sync_failed || self.head.rebuild.is_some();
        let mut damage = if is_suspect { Damage::Some } else { Damage::None };
        let mut current = self.record_after(self.verified)?;
        while let Some((record, cursor)) = current {
            let following = self.record_after(cursor)?;
            let may_be_lost = self.may_be_lost(&record, following.is_none(), repair);
            // guard: believe_last: a record that may not be durable yet is not believed
            if may_be_lost && repair != RepairMode::Allowed && !self.rows_stand(&record)? {
                if record.payload.is_empty() {
                    return Ok(damage);
                }
                let is_underway = damage == Damage::None && repair == RepairMode::Unlocked;
                return Ok(if is_underway { Damage::Unclear } else { Damage::Some });
            }
            self.learn(&record, cursor);
            if damage == Damage::None {
                damage = match repair {
                    RepairMode::Allowed if may_be_lost => self.confirm(&record, cursor)?,
                    _ => self.verify(&record, following.is_none(), repair)?,
                };
            }
            if damage == Damage::None {
                self.verified = cursor;
            }
            current = following;
        }
        if self.disk.is_direct() && repair == RepairMode::Allowed && damage == Damage::None {
            return self.confirm_known();
        }
        Ok(damage)
    }

    fn record_after(&self, cursor: Cursor) -> Result<Option<(JournalRecord, Cursor)>, AppendError> {
        read_after(&self.disk, self.layout, &self.head, cursor).map_err(AppendError::before("read the journal of"))
    }

    /// Takes over token, lease and keys of a record, if it is new.
    fn learn(&mut self, record: &JournalRecord, cursor: Cursor) {
        if record.sequence <= self.known.sequence {
            return;
        }
        assert_eq!(record.sequence, self.known.sequence + 1, "records are read in order");
        (self.known_after, self.known) = (self.known, cursor);
        if record.token >= self.highest_token {
            (self.highest_token, self.highest_token_lease) = (record.token, record.lease);
        }
        self.keys.learn(record.first_key, &record.keys, &record.replica);
    }

    /// The position after the last record that the newest checkpoint covers.
    fn base(&self) -> Cursor {
        self.head.cursor()
    }

    /// All records since the checkpoint.
    fn records(&self) -> Result<Vec<JournalRecord>, AppendError> {
        records_since(&self.disk, self.layout, &self.head).map_err(AppendError::before("read the journal of"))
    }

    /// Syncs a file. A failure is recorded in the journal, so that no process trusts the page cache.
    fn sync(&mut self, kind: FileKind) -> Result<(), AppendError> {
        self.disk.sync(kind).map_err(|e| self.fail(e))
    }

    /// Records a failed sync: the page cache may hold data that the disk does not. This process must end.
    ///
    /// On a direct disk nothing is recorded: the OS lock may be lost, and no cache holds what the server does not.
    pub(crate) fn fail(&mut self, e: io::Error) -> AppendError {
        if self.disk.is_direct() {
            self.forget();
            return AppendError::Interrupted(e);
        }
        self.failed = true;
        self.meter.count(Counter::SyncFailures);
        set_sync_failed_flag(&self.disk, self.layout);
        AppendError::Sync(e)
    }
}

/// What tests ask a ledger.
#[cfg(any(test, fuzzing))]
impl<D> Ledger<D> {
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn highest_token(&self) -> FencingToken {
        self.highest_token
    }
}
