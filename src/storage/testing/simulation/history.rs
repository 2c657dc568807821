//! One random history of several replicas on a simulated disk, and the promises that it must keep.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, LazyLock},
    time::Instant,
};

use crate::{
    csv::{
        idempotency_key::Key,
        rows::Rows,
        schema::{Data, Schema},
    },
    fencing::{FencingToken, LeaseId},
    metrics::Meter,
    random::Random,
    storage::{
        disk::{Disk, FileKind},
        error::{AppendError, Refusal},
        format::Format,
        journal::{Header, csv_tail_checksum},
        keys::preamble,
        ledger::{
            Ledger, LedgerOptions, Purpose, RefreshOutcome, RepairMode,
            checkpoint::{PendingCheckpoint, sync_for_checkpoint},
            direct::Resolution,
        },
        testing::simulation::disk::{Change, Host, LAYOUT, SimDisk, SimFile, Stop, contains, ends_whole, text},
        types::{AppendEntry, EntryOutcome, Turn},
    },
};

/// Headers, the failed-sync flag, and space for six small records.
const JOURNAL_BYTES: u64 = 9 * LAYOUT.page;
const KEYS: usize = 8;
/// Shared by all histories, since no test reads it.
static METER: LazyLock<Arc<Meter>> = LazyLock::new(Arc::default);

type SimLedger = Ledger<SimDisk>;

/// One replica's process. A kill removes its ledger.
struct Replica {
    ledger: Option<SimLedger>,
    checkpoint: Option<(PendingCheckpoint, bool)>,
}

/// What a client learns of one attempt.
#[derive(Debug, Clone, Copy)]
enum Attempt {
    Written {
        offset: u64,
    },
    Replayed {
        offset: u64,
    },
    Fenced {
        highest_token: FencingToken,
    },
    DiskFull,
    /// The lock on the files was lost before the rows were written.
    LockLost,
    /// The rows may be written or not.
    Unknown,
}

/// The replicas on one host, and what clients know of their rows.
pub(super) struct History {
    pub(super) host: Rc<RefCell<Host>>,
    schema: Arc<Schema>,
    replicas: Vec<Replica>,
    counter: FencingToken,
    leases: LeaseId,
    issued: Vec<(FencingToken, LeaseId)>,
    /// Which leases wrote under each token.
    pub(super) wrote: BTreeMap<FencingToken, Vec<LeaseId>>,
    pub(super) acked: Vec<String>,
    pub(super) refused: Vec<String>,
    /// Rows whose outcome no client knows.
    pub(super) unknown: Vec<String>,
    /// The data of each key.
    pub(super) keyed: BTreeMap<usize, String>,
    /// The first acknowledged offset of each key.
    offsets: BTreeMap<usize, u64>,
    /// The replica that keeps the OS locks from one batch to the next.
    holder: Option<usize>,
}

pub(super) const HEADER: &[u8] = b"token,data\n";

impl History {
    pub(super) fn new(seed: u64, is_direct: bool) -> Self {
        let mut files: [SimFile; 6] = Default::default();
        let schema = Arc::new(Schema::from_header(b"token,data").expect("a header"));
        files[0].change(Change::Write(0, HEADER.to_vec()));
        files[1].change(Change::Write(0, vec![0; JOURNAL_BYTES as usize]));
        files[2].change(Change::Write(0, preamble(KEYS as u64)));
        let host = Rc::new(RefCell::new(Host::new(seed, is_direct, files)));
        let disk = SimDisk(Rc::clone(&host));
        let csv_bytes = HEADER.len() as u64;
        let head = Header {
            journal: 7,
            number: 0,
            bytes: JOURNAL_BYTES,
            base: 0,
            next: LAYOUT.space(),
            csv_bytes,
            csv_tail_checksum: csv_tail_checksum(&disk, csv_bytes).expect("memory reads"),
            highest_token: 0,
            highest_token_lease: 0,
            keys: 0,
            csv_inode: 1,
            rebuild: None,
            rebuilds: 0,
        };
        for (page, number) in [(0, 1), (1, 0)] {
            disk.write_at(FileKind::Journal, page * LAYOUT.page, &Header { number, ..head.clone() }.encode())
                .expect("memory writes");
        }
        host.borrow_mut().files.iter_mut().for_each(SimFile::sync);
        host.borrow_mut().calm = false;
        Self {
            host,
            schema,
            replicas: (0..3).map(|_| Replica { ledger: None, checkpoint: None }).collect(),
            counter: 0,
            leases: 0,
            issued: Vec::new(),
            wrote: BTreeMap::new(),
            acked: Vec::new(),
            refused: Vec::new(),
            unknown: Vec::new(),
            keyed: BTreeMap::new(),
            offsets: BTreeMap::new(),
            holder: None,
        }
    }

    fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.host.borrow_mut().random)
    }

    fn note(&self, what: String) {
        self.host.borrow_mut().trace.push(what);
    }

    /// Removes the processes that the last step stopped. They start again when they are needed.
    fn remove_stopped(&mut self, current: usize) {
        let stopped = self.host.borrow_mut().stopped.take();
        match stopped {
            Some(Stop::Killed) => self.replicas[current] = Replica { ledger: None, checkpoint: None },
            Some(Stop::LockLost) => {
                self.note("takes the locks again".to_owned());
                self.replicas[current].ledger.iter_mut().for_each(Ledger::forget);
            }
            Some(Stop::PowerLost) => {
                self.replicas.iter_mut().for_each(|replica| *replica = Replica { ledger: None, checkpoint: None });
            }
            None => {}
        }
        if self.replicas[current].ledger.as_ref().is_some_and(|ledger| ledger.has_failed()) {
            self.replicas[current] = Replica { ledger: None, checkpoint: None };
        }
    }

    pub(super) fn open_ledger(&self, replica: String, keys: usize) -> Option<SimLedger> {
        let (disk, path) = (SimDisk(Rc::clone(&self.host)), PathBuf::from("rows.csv"));
        let format = Format::read(&disk, &path, &self.schema).ok()?;
        let options = LedgerOptions {
            path,
            layout: LAYOUT,
            format,
            replica,
            keys,
            purpose: Purpose::Append,
            meter: Arc::clone(&METER),
        };
        Some(Ledger::open(disk, options).expect("one header is always valid"))
    }

    pub(super) fn ledger(&mut self, replica: usize) -> Option<&mut SimLedger> {
        if self.replicas[replica].ledger.is_none() {
            let mut ledger = self.open_ledger(format!("r{replica}"), KEYS)?;
            ledger.refresh(RepairMode::Forbidden).ok()?;
            self.replicas[replica].ledger = Some(ledger);
        }
        self.replicas[replica].ledger.as_mut()
    }

    fn grant(&mut self) -> (FencingToken, LeaseId) {
        if !self.issued.is_empty() && self.random(|random| random.chance(15)) {
            // A stale holder continues.
            let which = self.random(|random| random.below(self.issued.len()));
            return self.issued[which];
        }
        self.leases += 1;
        match self.issued.last() {
            // One token is granted twice.
            Some(&(token, _)) if self.random(|random| random.chance(10)) => (token, self.leases),
            _ => {
                self.counter += 1;
                self.issued.push((self.counter, self.leases));
                (self.counter, self.leases)
            }
        }
    }

    /// One attempt to append rows under one lease.
    fn attempt(&mut self, replica: usize, rows: &Rows, key: Option<&Key>, lease: (FencingToken, LeaseId)) -> Attempt {
        let sleeps = self.random(|random| random.chance(20));
        self.take_locks(replica);
        let outcomes = self.ledger(replica).map(|ledger| {
            let now = Instant::now();
            let (token, lease) = lease;
            let turn = Turn { token, lease, granted: now, timestamp: "", deadline: now, still_held: &|| true };
            let entry = AppendEntry { rows, key, keys_seen: u64::MAX, waited_ms: 0, released: true };
            if sleeps {
                ledger.fence(key, &turn)?;
            }
            let outcomes = ledger.append(&[entry], &turn)?;
            Ok(outcomes.into_iter().next().expect("one outcome"))
        });
        let stopped = self.host.borrow().stopped;
        self.remove_stopped(replica);
        self.end_hold(replica);
        match outcomes {
            None => Attempt::Unknown,
            Some(Err(AppendError::Interrupted(_))) if stopped != Some(Stop::Killed) => self.resolve(replica),
            Some(Err(AppendError::Before { .. })) if stopped == Some(Stop::LockLost) => Attempt::LockLost,
            Some(_) if stopped.is_some() => Attempt::Unknown,
            Some(Ok(EntryOutcome::Written { offset, .. })) => Attempt::Written { offset },
            Some(Ok(EntryOutcome::Replayed(ack))) => Attempt::Replayed { offset: ack.offset },
            Some(Ok(EntryOutcome::Refused(Refusal::KeyReused | Refusal::KeyMayBeForgotten))) => Attempt::Unknown,
            Some(Ok(EntryOutcome::Refused(e))) => panic!("refused: {e}"),
            Some(Err(AppendError::Fenced { highest_token })) => Attempt::Fenced { highest_token },
            Some(Err(AppendError::Sync(_))) => Attempt::Unknown,
            Some(Err(AppendError::DiskFull(_))) => Attempt::DiskFull,
            Some(Err(e)) => panic!("refused: {e}"),
        }
    }

    /// Several batches of one hold do not read in between.
    fn end_hold(&mut self, replica: usize) {
        if self.random(|random| random.chance(50)) {
            self.note("keeps the locks".to_owned());
            self.holder = Some(replica);
        } else {
            self.replicas[replica].ledger.iter_mut().for_each(Ledger::end_hold);
        }
    }

    /// Another process takes the locks.
    fn take_locks(&mut self, replica: usize) {
        if let Some(holder) = self.holder.take_if(|holder| *holder != replica) {
            self.replicas[holder].ledger.iter_mut().for_each(Ledger::end_hold);
        }
    }

    /// Finds out what became of an interrupted append, perhaps after another replica has repaired.
    fn resolve(&mut self, replica: usize) -> Attempt {
        self.replicas[replica].ledger.iter_mut().for_each(Ledger::forget);
        for _ in 0..3 {
            let other = (replica + 1) % 3;
            if self.random(|random| random.chance(50)) && self.ledger(other).is_some_and(|it| it.recover().is_err()) {
                self.remove_stopped(other);
            }
            self.remove_stopped(other);
            self.note(format!("-- r{replica} looks what became of it"));
            let Some(found) = self.replicas[replica].ledger.as_mut().map(Ledger::resolve) else { break };
            self.remove_stopped(replica);
            self.note(format!("-- {found:?}"));
            match found {
                Ok(Resolution::Written(outcomes)) => match outcomes[0] {
                    EntryOutcome::Written { offset, .. } => return Attempt::Written { offset },
                    ref other => panic!("resolved as {other:?}"),
                },
                Ok(Resolution::NotWritten) => return Attempt::LockLost,
                Ok(Resolution::Unknown) => break,
                Err(_) => self.replicas[replica].ledger.iter_mut().for_each(Ledger::forget),
            }
        }
        Attempt::Unknown
    }

    pub(super) fn rows(&self, data: &[String]) -> Rows {
        let mut rows = self.schema.rows();
        for data in data {
            self.schema.push(&Data::Text(data.into()), &mut rows).expect("fits");
        }
        rows
    }

    fn append(&mut self, number: usize) {
        let key_number = self.random(|random| if random.chance(50) { Some(random.below(4)) } else { None });
        let row = match key_number {
            Some(key) => self.keyed.entry(key).or_insert_with(|| format!("r{number}")).clone(),
            None => format!("r{number}"),
        };
        // Requests of several rows, some with line breaks in them.
        let lines = self.random(|random| 1 + random.below(2));
        let lines = if key_number.is_some() { 1 } else { lines };
        let data: Vec<_> = (0..lines).map(|line| if line == 0 { row.clone() } else { format!("{row}\n+") }).collect();
        let rows = self.rows(&data);
        let key = key_number.map(|key| Key::new(&format!("k{key}"), &rows).expect("a key"));
        let mut attempt = Attempt::Unknown;
        for _ in 0..6 {
            let lease = self.grant();
            let replica = self.random(|random| random.below(3));
            self.note(format!("-- append {row} key {key_number:?} lease {lease:?} by r{replica}"));
            attempt = self.attempt(replica, &rows, key.as_ref(), lease);
            self.note(format!("-- {attempt:?}"));
            match attempt {
                Attempt::Fenced { highest_token } => self.counter = self.counter.max(highest_token),
                Attempt::LockLost => {}
                Attempt::Unknown if key.is_some() => {}
                Attempt::Written { .. } => {
                    self.wrote.entry(lease.0).or_default().push(lease.1);
                    break;
                }
                Attempt::DiskFull | Attempt::Replayed { .. } | Attempt::Unknown => break,
            }
        }
        match attempt {
            Attempt::Written { offset } => self.acknowledge(data, key_number, offset, true),
            Attempt::Replayed { offset } => self.acknowledge(data, key_number, offset, false),
            Attempt::Fenced { .. } | Attempt::DiskFull | Attempt::LockLost if key.is_none() => {
                self.refused.extend(data)
            }
            Attempt::Fenced { .. } | Attempt::DiskFull | Attempt::LockLost => {}
            Attempt::Unknown => self.unknown.extend(data),
        }
    }

    fn acknowledge(&mut self, data: Vec<String>, key: Option<usize>, offset: u64, is_written: bool) {
        if let Some(key) = key {
            let first = *self.offsets.entry(key).or_insert(offset);
            // After an append without the lock, the rows are not at the recorded offset, and a crash may lose their true one.
            let is_same = is_written || first == offset || self.host.borrow().unlocked_lines > 0;
            assert!(is_same, "key {key} got two answers");
        }
        if is_written {
            let host = self.host.borrow();
            let found = &host.files[0].cache[offset as usize..];
            assert!(
                contains(found.split(|&byte| byte == b'\n').next().expect("a line"), data[0].as_bytes()),
                "acknowledged a wrong offset"
            );
        }
        self.acked.extend(data);
    }

    /// A foreign process that holds the lock appends a line, or dies in the middle of it.
    fn foreign(&mut self, number: usize) {
        self.take_locks(usize::MAX);
        let mut host = self.host.borrow_mut();
        let half = host.random.chance(30);
        if !ends_whole(&host.files[0].cache) {
            return;
        }
        let (line, end) = (format!(",f{number:02}\n").into_bytes(), host.files[0].cache.len());
        // Of any length, so that it may fill the place of what a power cut has lost.
        let line = if half { [b",\"f", &*vec![b'h'; number % 6]].concat() } else { line };
        host.trace.push(format!("foreign {:?}", text(&line)));
        if host.is_direct {
            host.files[0].write_durably(end, &line);
        } else {
            host.files[0].change(Change::Write(end, line.clone()));
        }
        if !half {
            host.foreign.insert(line, true);
        }
        if !host.is_direct && host.random.chance(30) {
            host.trace.push("foreign sync".to_owned());
            host.files[0].sync();
        }
    }

    /// A replica takes the next step of its checkpoint: it begins one, syncs for it, or ends it, perhaps much later.
    fn checkpoint(&mut self) {
        let replica = self.random(|random| random.below(3));
        self.note(format!("-- checkpoint by r{replica}"));
        self.take_locks(replica);
        let is_direct = self.host.borrow().is_direct;
        let disk = SimDisk(Rc::clone(&self.host));
        if self.ledger(replica).is_some() {
            let Replica { ledger: Some(ledger), checkpoint } = &mut self.replicas[replica] else { unreachable!() };
            let result = match checkpoint.take() {
                None => ledger.refresh(RepairMode::Forbidden).and_then(|outcome| {
                    if outcome != RefreshOutcome::NeedsRepair && ledger.is_dirty() {
                        if is_direct {
                            return ledger.checkpoint_now();
                        }
                        *checkpoint = Some((ledger.begin_checkpoint()?, false));
                    }
                    Ok(())
                }),
                Some((pending, false)) => match sync_for_checkpoint(&disk, LAYOUT) {
                    Ok(()) => {
                        *checkpoint = Some((pending, true));
                        Ok(())
                    }
                    Err(e) => Err(ledger.fail(e)),
                },
                Some((pending, true)) => ledger.finish_checkpoint(&pending),
            };
            if let Err(e) = result {
                assert!(self.host.borrow().stopped.is_some() || matches!(e, AppendError::Sync(_)), "checkpoint: {e}");
            }
            self.replicas[replica].ledger.iter_mut().for_each(Ledger::end_hold);
        }
        self.remove_stopped(replica);
    }

    /// Records a lease's token by a replica.
    pub(super) fn fence_by(&mut self, replica: usize, (token, lease): (FencingToken, LeaseId)) {
        let now = Instant::now();
        let turn = Turn { token, lease, granted: now, timestamp: "", deadline: now, still_held: &|| true };
        self.ledger(replica).expect("opens").fence(None, &turn).expect("recorded");
    }

    pub(super) fn refresh_by(&mut self, replica: usize) {
        self.ledger(replica).expect("opens").refresh(RepairMode::Forbidden).expect("reads");
    }

    pub(super) fn append_by(&mut self, replica: usize, lease: (FencingToken, LeaseId)) {
        let rows = self.rows(&["row".to_owned()]);
        let attempt = self.attempt(replica, &rows, None, lease);
        assert!(matches!(attempt, Attempt::Written { .. }), "{attempt:?}");
    }

    pub(super) fn highest_token_by(&mut self, replica: usize) -> FencingToken {
        self.ledger(replica).expect("opens").highest_token()
    }

    pub(super) fn run(&mut self) {
        for number in 0..4 + self.random(|random| random.below(10)) {
            match self.random(|random| random.below(100)) {
                0..12 => self.foreign(number),
                12..35 => self.checkpoint(),
                35..40 => {
                    self.note("REDIS LOSES ITS DATA".to_owned());
                    self.counter = 0;
                }
                40..50 if self.host.borrow().is_direct => self.read(),
                _ => self.append(number),
            }
        }
        self.finish();
    }

    /// Perhaps one more power cut, then a last append, after which all promises must hold.
    fn finish(&mut self) {
        let power_cut = self.random(|random| random.chance(50));
        self.host.borrow_mut().calm = true;
        if power_cut {
            self.host.borrow_mut().lose_power();
            self.replicas.iter_mut().for_each(|replica| *replica = Replica { ledger: None, checkpoint: None });
        }
        self.take_locks(usize::MAX);
        self.replicas[0] = Replica { ledger: None, checkpoint: None };
        let end = self.rows(&["end".to_owned()]);
        let last = self.attempt(0, &end, None, (1_000_000, LeaseId::MAX));
        assert!(matches!(last, Attempt::Written { .. }), "the last append was refused: {last:?}");
        self.check();
    }
}
