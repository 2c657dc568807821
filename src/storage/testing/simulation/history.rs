//! One random history of several replicas on a simulated disk.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use crate::{
    csv::schema::Schema,
    fencing::{FencingToken, LeaseId},
    random::Random,
    storage::{
        disk::{Disk, FileKind},
        error::AppendError,
        journal::{Header, csv_tail_checksum},
        keys::preamble,
        ledger::{
            Ledger, Purpose, RefreshOutcome, RepairMode,
            checkpoint::{PendingCheckpoint, sync_for_checkpoint},
        },
        testing::simulation::{
            disk::{Host, SimDisk, Stop},
            file::{Change, SimFile},
            keys::KeyBook,
            live_reader::LiveReader,
            open::open_ledger,
            request::{Attempt, Pending, Request},
            scenario::{LAYOUT, Scenario},
        },
        types::Turn,
    },
};

type SimLedger = Ledger<SimDisk>;

/// One replica's process. A kill removes its ledger.
#[derive(Default)]
pub(super) struct Replica {
    pub(super) ledger: Option<SimLedger>,
    checkpoint: Option<(PendingCheckpoint, bool)>,
}

/// The replicas on one host, and what clients know of their rows.
pub(super) struct History {
    pub(super) host: Rc<RefCell<Host>>,
    pub(super) schema: Arc<Schema>,
    pub(super) replicas: Vec<Replica>,
    pub(super) reader: LiveReader,
    pub(super) counter: FencingToken,
    leases: LeaseId,
    issued: Vec<(FencingToken, LeaseId)>,
    /// Which leases wrote under each token.
    pub(super) wrote: BTreeMap<FencingToken, Vec<LeaseId>>,
    /// Requests that wait at a replica.
    pub(super) waiting: Vec<Pending>,
    pub(super) keys: KeyBook,
    /// The data of all rows that clients sent.
    pub(super) sent: HashSet<String>,
    pub(super) acked: Vec<String>,
    pub(super) refused: Vec<String>,
    /// Rows without a key whose outcome no client knows.
    pub(super) unknown: Vec<String>,
    /// The replica that keeps the OS locks from one batch to the next.
    holder: Option<usize>,
}

impl History {
    pub(super) fn new(seed: u64, scenario: Scenario) -> Self {
        let mut files: [SimFile; 6] = Default::default();
        let (text, bytes) = (scenario.first_text(), scenario.journal_bytes);
        files[0].change(Change::Write(0, text.clone().into_bytes()));
        files[1].change(Change::Write(0, vec![0; bytes as usize]));
        files[2].change(Change::Write(0, preamble(scenario.keys as u64)));
        let host = Rc::new(RefCell::new(Host::new(seed, scenario, files)));
        let disk = SimDisk(Rc::clone(&host));
        let csv_bytes = text.len() as u64;
        let head = Header {
            journal: 7,
            number: 0,
            bytes,
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
            schema: scenario.schema(),
            replicas: (0..3).map(|_| Replica::default()).collect(),
            reader: LiveReader::new(seed, scenario.is_direct),
            counter: 0,
            leases: 0,
            issued: Vec::new(),
            wrote: BTreeMap::new(),
            waiting: Vec::new(),
            keys: KeyBook::new(scenario.keys),
            sent: HashSet::new(),
            acked: Vec::new(),
            refused: Vec::new(),
            unknown: Vec::new(),
            holder: None,
        }
    }

    pub(super) fn scenario(&self) -> Scenario {
        self.host.borrow().scenario
    }

    pub(super) fn is_plain(&self) -> bool {
        self.scenario().is_plain
    }

    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.host.borrow_mut().random)
    }

    pub(super) fn note(&self, what: String) {
        self.host.borrow_mut().trace.push(what);
    }

    /// Removes the processes that the last step stopped. They start again when they are needed.
    pub(super) fn remove_stopped(&mut self, current: usize) {
        let stopped = self.host.borrow_mut().stopped.take();
        match stopped {
            Some(Stop::Killed) => self.replicas[current] = Replica::default(),
            Some(Stop::LockLost) => {
                self.note("takes the locks again".to_owned());
                self.replicas[current].ledger.iter_mut().for_each(Ledger::forget);
            }
            Some(Stop::PowerLost) => {
                self.replicas.iter_mut().for_each(|replica| *replica = Replica::default());
            }
            None => {}
        }
        if self.replicas[current].ledger.as_ref().is_some_and(|ledger| ledger.has_failed()) {
            self.replicas[current] = Replica::default();
        }
    }

    pub(super) fn open_ledger(&self, replica: String, keys: usize) -> Option<SimLedger> {
        open_ledger(SimDisk(Rc::clone(&self.host)), &self.schema, replica, keys, Purpose::Append)
    }

    pub(super) fn ledger(&mut self, replica: usize) -> Option<&mut SimLedger> {
        if self.replicas[replica].ledger.is_none() {
            let mut ledger = self.open_ledger(format!("r{replica}"), self.scenario().keys)?;
            ledger.refresh(RepairMode::Forbidden).ok()?;
            self.replicas[replica].ledger = Some(ledger);
        }
        self.replicas[replica].ledger.as_mut()
    }

    pub(super) fn grant(&mut self) -> (FencingToken, LeaseId) {
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

    /// Several batches of one hold do not read in between.
    pub(super) fn end_hold(&mut self, replica: usize) {
        if self.random(|random| random.chance(50)) {
            self.note("keeps the locks".to_owned());
            self.holder = Some(replica);
        } else {
            self.replicas[replica].ledger.iter_mut().for_each(Ledger::end_hold);
        }
    }

    /// Another process takes the locks.
    pub(super) fn take_locks(&mut self, replica: usize) {
        if let Some(holder) = self.holder.take_if(|holder| *holder != replica) {
            self.replicas[holder].ledger.iter_mut().for_each(Ledger::end_hold);
        }
    }

    /// A replica takes the next step of its checkpoint: it begins one, syncs for it, or ends it, perhaps much later.
    fn checkpoint(&mut self) {
        let replica = self.random(|random| random.below(3));
        self.checkpoint_by(replica);
    }

    pub(super) fn checkpoint_by(&mut self, replica: usize) {
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
        let row = self.pending(Request { rows: vec![vec!["row".to_owned()]], key: None });
        let attempts = self.attempt(replica, &[row], lease);
        assert!(matches!(attempts[..], [Attempt::Written { .. }]), "{attempts:?}");
    }

    pub(super) fn highest_token_by(&mut self, replica: usize) -> FencingToken {
        self.ledger(replica).expect("opens").highest_token()
    }

    pub(super) fn run(&mut self) {
        let (is_direct, checkpoints) = (self.scenario().is_direct, self.scenario().checkpoints);
        for number in 0..4 + self.random(|random| random.below(10)) {
            self.begin_look();
            match self.random(|random| random.below(100)) {
                0..12 => self.foreign(number),
                draw if draw < 12 + checkpoints => self.checkpoint(),
                draw if draw < 17 + checkpoints => {
                    self.note("REDIS LOSES ITS DATA".to_owned());
                    self.counter = 0;
                }
                draw if draw < 27 + checkpoints && is_direct => self.read(),
                draw if draw < 35 + checkpoints && !self.is_plain() => self.wait(number),
                _ => self.append(number),
            }
            self.end_look();
        }
        self.finish();
    }

    pub(super) fn lose_power(&mut self) {
        self.host.borrow_mut().lose_power();
        self.replicas.iter_mut().for_each(|replica| *replica = Replica::default());
    }

    /// Perhaps one more power cut, then a last append, after which all promises must hold.
    fn finish(&mut self) {
        let power_cut = self.random(|random| random.chance(50));
        self.host.borrow_mut().calm = true;
        if power_cut {
            self.lose_power();
        }
        self.take_locks(usize::MAX);
        self.replicas[0] = Replica::default();
        let end = self.pending(Request { rows: vec![vec!["end".to_owned()]], key: None });
        self.sent.insert("end".to_owned());
        let last = self.attempt(0, &[end], (1_000_000, LeaseId::MAX));
        assert!(matches!(last[..], [Attempt::Written { .. }]), "the last append was refused: {last:?}");
        self.check();
        self.last_look();
    }
}
