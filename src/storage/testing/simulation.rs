//! Random histories on a simulated disk, checked against the promises: the real storage code, on files that kill, lose power
//! and fail to sync.
//!
//! Several replicas with fresh, stale and doubly granted tokens, keyed retries, rows appended by others who hold the lock
//! (whole lines, and half lines of a writer that died) or by nobody's leave in the moment of our own write, a process killed
//! at any step, a host that loses power at any step (any subset of the unsynced pieces survives, each cut anywhere), a sync
//! that fails, checkpoints at any time, and recovery that crashes too. `ROWLOCK_HISTORIES` says how many, `ROWLOCK_SEED`
//! where they begin.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, LazyLock},
    time::Instant,
};

use crate::storage::{
    AppendError, Entry, Placed, Refusal, Turn,
    disk::{Disk, Landed, Place},
    format::Format,
    journal::{Header, Layout},
    keys::preamble,
    ledger::{
        Ledger, LedgerOptions, Repair, Seen,
        checkpoint::{Pending, print_of, sync_for_checkpoint},
    },
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
};

const LAYOUT: Layout = Layout { page: 256 };
/// Headers and mark, and room for six small records.
const JOURNAL_BYTES: u64 = 9 * LAYOUT.page;
const KEYS: usize = 8;
const FAULTS_MAX: u32 = 6;
/// One for all histories: nobody reads it.
static METER: LazyLock<Arc<Meter>> = LazyLock::new(Arc::default);

/// Bytes in the page cache, bytes on the disk, and the writes between them.
#[derive(Default)]
struct SimFile {
    cache: Vec<u8>,
    disk: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                if image.len() < at + bytes.len() {
                    image.resize(at + bytes.len(), 0);
                }
                image[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Cut(len) => image.resize(*len, 0),
        }
    }
}

impl SimFile {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.cache);
        self.pending.push(change);
    }

    /// Any part of what was not synced may have reached the disk, in pieces of any size.
    fn survive(&mut self, random: &mut Random) {
        for change in std::mem::take(&mut self.pending) {
            let Change::Write(at, bytes) = &change else {
                if random.chance(50) {
                    change.apply(&mut self.disk);
                }
                continue;
            };
            let mut from = 0;
            while from < bytes.len() {
                let to = (from + 1 + random.below(24)).min(bytes.len());
                if random.chance(50) {
                    Change::Write(at + from, bytes[from..to].to_vec()).apply(&mut self.disk);
                }
                from = to;
            }
        }
    }

    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            change.apply(&mut self.disk);
        }
    }

    fn lose_power(&mut self, random: &mut Random) {
        self.survive(random);
        self.cache.clone_from(&self.disk);
    }
}

/// What stopped the process that was at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Killed,
    PowerLost,
}

struct Host {
    random: Random,
    files: [SimFile; 6],
    trace: Vec<String>,
    faults: u32,
    calm: bool,
    stopped: Option<Stop>,
    /// Lines that nobody's leave was asked for, and whether each must still stand.
    foreign: BTreeMap<Vec<u8>, bool>,
    slips: u32,
    power_cuts: u32,
    /// Whether a sync of the CSV has failed.
    csv_lied: bool,
    /// Whether the disk runs full now and then: in one history of four.
    fills: bool,
    /// The last append found no room.
    full: bool,
}

fn at(place: Place) -> usize {
    match place {
        Place::Csv => 0,
        Place::Journal => 1,
        Place::Keys => 2,
        Place::Torn => 3,
        Place::Tail(which) => 4 + usize::from(which),
    }
}

impl Host {
    /// Everything can happen between two steps.
    fn step(&mut self, what: impl FnOnce() -> String) -> io::Result<()> {
        if self.stopped.is_some() {
            return Err(io::Error::other("dead"));
        }
        self.trace.push(what());
        if self.calm || self.faults >= FAULTS_MAX {
            return Ok(());
        }
        let stop = match self.random.below(100) {
            0..=2 => Stop::Killed,
            3..=5 => Stop::PowerLost,
            _ => return Ok(()),
        };
        self.faults += 1;
        self.stop(stop);
        Err(io::Error::other("stopped"))
    }

    fn stop(&mut self, stop: Stop) {
        self.trace.push(format!("{stop:?}"));
        self.stopped = Some(stop);
        if stop == Stop::PowerLost {
            self.lose_power();
        }
    }

    fn lose_power(&mut self) {
        self.power_cuts += 1;
        // What a power cut may not touch: others' lines that are on the disk whole.
        let durable = self.files[0].disk.clone();
        for (line, must_stand) in &mut self.foreign {
            *must_stand = *must_stand && contains(&durable, line);
        }
        for file in &mut self.files {
            file.lose_power(&mut self.random);
        }
        self.trace.push(format!("csv is now {:?}", text(&self.files[0].cache)));
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

/// Who appends by the rules looks first whether the last line was left open.
fn ends_whole(csv: &[u8]) -> bool {
    csv.ends_with(b"\n") && crate::csv::scanner::split_rows(csv).1.is_empty()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The disk as one process sees it.
#[derive(Clone)]
struct SimDisk(Rc<RefCell<Host>>);

impl Disk for SimDisk {
    fn len(&self, place: Place) -> io::Result<u64> {
        Ok(self.0.borrow().files[at(place)].cache.len() as u64)
    }

    fn read_at(&self, place: Place, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let host = self.0.borrow();
        if host.stopped.is_some() {
            return Err(io::Error::other("dead"));
        }
        let rest = host.files[at(place)].cache.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_parts_at(&self, place: Place, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        assert!(place != Place::Csv, "the CSV is only ever appended to");
        let bytes = &*parts.concat();
        if (place, offset, bytes) == (Place::Journal, LAYOUT.mark(), &[1]) {
            // One byte, microseconds after the failed sync: a kill in between is the limit of what is promised.
            let mut host = self.0.borrow_mut();
            if host.stopped.is_none() {
                host.files[at(place)].change(Change::Write(offset as usize, bytes.to_vec()));
            }
            return Ok(());
        }
        self.write(place, offset as usize, bytes)
    }

    fn append(&self, place: Place, bytes: &[u8]) -> io::Result<Landed> {
        if place == Place::Csv {
            self.slip();
        }
        let start = self.len(place)?;
        if place == Place::Csv && self.runs_full() {
            let fits = self.0.borrow_mut().random.below(bytes.len() + 1);
            self.write(place, start as usize, &bytes[..fits])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.write(place, start as usize, bytes)?;
        Ok(Landed { start, end: start + bytes.len() as u64 })
    }

    fn cut(&self, place: Place, len: u64) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        host.step(|| format!("cut {place:?} to {len}"))?;
        if place == Place::Csv {
            let cut = host.files[0].cache[len as usize..].to_vec();
            let taken_back = std::mem::take(&mut host.full);
            let aside = contains(&host.files[at(Place::Torn)].disk, &cut);
            assert!(taken_back || aside, "{:?} was cut and not set aside", text(&cut));
        }
        host.files[at(place)].change(Change::Cut(len as usize));
        host.step(|| "cut".to_owned())
    }

    fn reserve(&self, _: Place, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, place: Place) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        host.step(|| format!("before sync {place:?}"))?;
        if !host.calm && host.faults < FAULTS_MAX && host.random.chance(2) {
            host.faults += 1;
            host.trace.push(format!("SYNC OF {place:?} FAILS"));
            // The cache now lies: clean, yet not on the disk. What others sync behind it has a hole before it after a power
            // cut, and then nobody can tell whether it is whole.
            host.csv_lied = host.csv_lied || place == Place::Csv;
            let host = &mut *host;
            host.files[at(place)].survive(&mut host.random);
            return Err(io::Error::other("sync failed"));
        }
        host.files[at(place)].sync();
        host.step(|| format!("synced {place:?}"))
    }
}

impl SimDisk {
    fn write(&self, place: Place, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        host.step(|| format!("write {place:?} at {offset}: {:?}", text(&bytes[..bytes.len().min(120)])))?;
        // A kill may come in the middle of a write, too.
        let first = host.random.below(bytes.len() + 1);
        host.files[at(place)].change(Change::Write(offset, bytes[..first].to_vec()));
        host.step(|| format!("wrote {first} of {}", bytes.len()))?;
        host.files[at(place)].change(Change::Write(offset + first, bytes[first..].to_vec()));
        host.step(|| "wrote the rest".to_owned())
    }

    /// No room could be made sure of, and now there is none.
    fn runs_full(&self) -> bool {
        let mut host = self.0.borrow_mut();
        host.full = host.fills && !host.calm && host.stopped.is_none() && host.random.chance(6);
        if host.full {
            host.trace.push("DISK IS FULL".to_owned());
        }
        host.full
    }

    /// Somebody appends without any lock, just now.
    fn slip(&self) {
        let mut host = self.0.borrow_mut();
        if host.calm || host.stopped.is_some() || !host.random.chance(4) {
            return;
        }
        host.slips += 1;
        let line = format!(",s{:02}\n", host.slips).into_bytes();
        let half = host.random.chance(25);
        let end = host.files[0].cache.len();
        if !ends_whole(&host.files[0].cache) {
            return;
        }
        let line = if half { b"\"sl".to_vec() } else { line };
        host.trace.push(format!("slip {:?}", text(&line)));
        host.files[0].change(Change::Write(end, line));
    }
}

type SimLedger = Ledger<SimDisk>;

/// One process: gone when it is killed.
struct Replica {
    ledger: Option<SimLedger>,
    checkpoint: Option<(Pending, bool)>,
}

struct World {
    host: Rc<RefCell<Host>>,
    schema: Arc<Schema>,
    replicas: Vec<Replica>,
    counter: FencingToken,
    leases: LeaseId,
    issued: Vec<(FencingToken, LeaseId)>,
    /// Which leases wrote under each token.
    wrote: BTreeMap<FencingToken, Vec<LeaseId>>,
    acked: Vec<String>,
    refused: Vec<String>,
    unknown: Vec<String>,
    keyed: BTreeMap<usize, String>,
    answers: BTreeMap<usize, u64>,
}

const HEADER: &[u8] = b"token,data\n";

impl World {
    fn new(seed: u64) -> Self {
        let mut files: [SimFile; 6] = Default::default();
        let schema = Arc::new(Schema::from_header(b"token,data").expect("a header"));
        files[0].change(Change::Write(0, HEADER.to_vec()));
        files[1].change(Change::Write(0, vec![0; JOURNAL_BYTES as usize]));
        files[2].change(Change::Write(0, preamble(KEYS as u64)));
        let host = Host {
            random: Random(seed),
            files,
            trace: Vec::new(),
            faults: 0,
            calm: true,
            stopped: None,
            foreign: BTreeMap::new(),
            slips: 0,
            power_cuts: 0,
            csv_lied: false,
            fills: seed % 4 == 3,
            full: false,
        };
        let host = Rc::new(RefCell::new(host));
        let disk = SimDisk(Rc::clone(&host));
        let csv_bytes = HEADER.len() as u64;
        let head = Header {
            journal: 7,
            number: 0,
            bytes: JOURNAL_BYTES,
            base: 0,
            next: LAYOUT.space(),
            csv_bytes,
            csv_print: print_of(&disk, csv_bytes).expect("memory reads"),
            mark: 0,
            lease: 0,
            keys: 0,
            rebuild: None,
        };
        for (page, number) in [(0, 1), (1, 0)] {
            disk.write_at(Place::Journal, page * LAYOUT.page, &Header { number, ..head.clone() }.encode())
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
            answers: BTreeMap::new(),
        }
    }

    fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.host.borrow_mut().random)
    }

    fn note(&self, what: String) {
        self.host.borrow_mut().trace.push(what);
    }

    /// Brings processes back that were stopped.
    fn settle(&mut self, at_work: usize) {
        let stopped = self.host.borrow_mut().stopped.take();
        match stopped {
            Some(Stop::Killed) => self.replicas[at_work] = Replica { ledger: None, checkpoint: None },
            Some(Stop::PowerLost) => {
                self.replicas.iter_mut().for_each(|replica| *replica = Replica { ledger: None, checkpoint: None });
            }
            None => {}
        }
        if self.replicas[at_work].ledger.as_ref().is_some_and(|ledger| ledger.failed) {
            self.replicas[at_work] = Replica { ledger: None, checkpoint: None };
        }
    }

    fn ledger(&mut self, replica: usize) -> Option<&mut SimLedger> {
        if self.replicas[replica].ledger.is_none() {
            let disk = SimDisk(Rc::clone(&self.host));
            let path = PathBuf::from("rows.csv");
            let format = Format::read(&disk, &path, &self.schema).ok()?;
            let (replica_name, meter) = (format!("r{replica}"), Arc::clone(&METER));
            let options = LedgerOptions { path, layout: LAYOUT, format, replica: replica_name, keys: KEYS, meter };
            let mut ledger = Ledger::open(disk, options).expect("one header is whole, always");
            ledger.look(Repair::Forbidden).ok()?;
            self.replicas[replica].ledger = Some(ledger);
        }
        self.replicas[replica].ledger.as_mut()
    }

    fn grant(&mut self) -> (FencingToken, LeaseId) {
        if !self.issued.is_empty() && self.random(|random| random.chance(15)) {
            // A stale holder wakes up.
            let which = self.random(|random| random.below(self.issued.len()));
            return self.issued[which];
        }
        self.leases += 1;
        match self.issued.last() {
            // The same token granted twice.
            Some(&(token, _)) if self.random(|random| random.chance(10)) => (token, self.leases),
            _ => {
                self.counter += 1;
                self.issued.push((self.counter, self.leases));
                (self.counter, self.leases)
            }
        }
    }

    /// One try at some rows, under one lease. `None`: nobody knows.
    fn attempt(
        &mut self,
        replica: usize,
        rows: &Rows,
        key: Option<&Key>,
        lease: (FencingToken, LeaseId),
    ) -> Option<Result<Placed, Option<FencingToken>>> {
        let sleeps = self.random(|random| random.chance(10));
        let placed = self.ledger(replica).map(|ledger| {
            let now = Instant::now();
            let (token, lease) = lease;
            let turn = Turn { token, lease, granted: now, timestamp: "", deadline: now, still_held: &|| true };
            let entry = Entry { rows, key, keys_seen: u64::MAX, waited_ms: 0, released: true };
            if sleeps {
                ledger.fence(key, &turn)?;
            }
            let placed = ledger.append(&[entry], &turn)?;
            Ok(placed.into_iter().next().expect("one answer"))
        });
        let stopped = self.host.borrow().stopped.is_some();
        self.settle(replica);
        match placed {
            _ if stopped => None,
            Some(Ok(Ok(placed))) => Some(Ok(placed)),
            Some(Ok(Err(Refusal::KeyReused | Refusal::Outrun))) | None => None,
            Some(Ok(Err(e))) => panic!("refused: {e}"),
            Some(Err(AppendError::Fenced { mark })) => Some(Err(Some(mark))),
            Some(Err(AppendError::Sync(_))) => None,
            Some(Err(AppendError::DiskFull(_))) => Some(Err(None)),
            Some(Err(e)) => panic!("refused: {e}"),
        }
    }

    fn rows(&self, data: &[String]) -> Rows {
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
        let mut outcome = None;
        for _ in 0..6 {
            let lease = self.grant();
            let replica = self.random(|random| random.below(3));
            self.note(format!("-- append {row} key {key_number:?} lease {lease:?} by r{replica}"));
            outcome = self.attempt(replica, &rows, key.as_ref(), lease);
            self.note(format!("-- {outcome:?}"));
            match &outcome {
                Some(Err(Some(mark))) => {
                    self.counter = self.counter.max(*mark);
                    continue;
                }
                // No room: nobody tries again.
                Some(Err(None)) => {}
                None if key.is_some() => continue,
                Some(Ok(Placed::Written { .. })) => self.wrote.entry(lease.0).or_default().push(lease.1),
                Some(Ok(Placed::Replayed(_))) | None => {}
            }
            break;
        }
        match outcome {
            Some(Ok(placed)) => self.acknowledge(data, key_number, &placed),
            Some(Err(_)) if key.is_none() => self.refused.extend(data),
            Some(Err(_)) => {}
            None => self.unknown.extend(data),
        }
    }

    fn acknowledge(&mut self, data: Vec<String>, key: Option<usize>, placed: &Placed) {
        let offset = match placed {
            Placed::Written { offset, .. } => *offset,
            Placed::Replayed(ack) => ack.offset,
        };
        if let Some(key) = key {
            let first = *self.answers.entry(key).or_insert(offset);
            // Where somebody slipped in, what was recorded is not where the rows landed, and a crash may forget the latter.
            let told = matches!(placed, Placed::Written { .. }) || first == offset || self.host.borrow().slips > 0;
            assert!(told, "key {key} got two answers");
        }
        if matches!(placed, Placed::Written { .. }) {
            let host = self.host.borrow();
            let stands = &host.files[0].cache[offset as usize..];
            assert!(
                contains(stands.split(|&byte| byte == b'\n').next().expect("a line"), data[0].as_bytes()),
                "answered a wrong offset"
            );
        }
        self.acked.extend(data);
    }

    /// Somebody who holds the lock appends a line of their own, if the last one is whole; or dies in the middle of one.
    fn foreign(&mut self, number: usize) {
        let mut host = self.host.borrow_mut();
        let half = host.random.chance(30);
        if !ends_whole(&host.files[0].cache) {
            return;
        }
        let (line, end) = (format!(",f{number:02}\n").into_bytes(), host.files[0].cache.len());
        let line = if half { b",\"f\nha".to_vec() } else { line };
        host.trace.push(format!("foreign {:?}", text(&line)));
        host.files[0].change(Change::Write(end, line.clone()));
        if !half {
            host.foreign.insert(line, true);
        }
        if host.random.chance(30) {
            host.trace.push("foreign sync".to_owned());
            host.files[0].sync();
        }
    }

    /// Any replica, at any time: begins a checkpoint, syncs for it, or ends it, perhaps much later.
    fn checkpoint(&mut self) {
        let replica = self.random(|random| random.below(3));
        self.note(format!("-- checkpoint by r{replica}"));
        if self.ledger(replica).is_some() {
            let Replica { ledger: Some(ledger), checkpoint } = &mut self.replicas[replica] else { unreachable!() };
            let result = match checkpoint.take() {
                None => ledger.look(Repair::Forbidden).and_then(|seen| {
                    if seen != Seen::NeedsRepair && ledger.is_dirty() {
                        *checkpoint = Some((ledger.begin_checkpoint()?, false));
                    }
                    Ok(())
                }),
                Some((pending, false)) => match sync_for_checkpoint(&ledger.disk, LAYOUT) {
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
        }
        self.settle(replica);
    }

    fn run(&mut self) {
        for number in 0..4 + self.random(|random| random.below(10)) {
            match self.random(|random| random.below(100)) {
                0..12 => self.foreign(number),
                12..35 => self.checkpoint(),
                35..40 => {
                    self.note("REDIS LOSES ITS DATA".to_owned());
                    self.counter = 0;
                }
                _ => self.append(number),
            }
        }
        self.finish();
    }

    /// One more power cut perhaps, one last append, and then everything must be as promised.
    fn finish(&mut self) {
        let power_cut = self.random(|random| random.chance(50));
        self.host.borrow_mut().calm = true;
        if power_cut {
            self.host.borrow_mut().lose_power();
            self.replicas.iter_mut().for_each(|replica| *replica = Replica { ledger: None, checkpoint: None });
        }
        self.replicas[0] = Replica { ledger: None, checkpoint: None };
        let end = self.rows(&["end".to_owned()]);
        let last = self.attempt(0, &end, None, (1_000_000, LeaseId::MAX));
        assert!(matches!(last, Some(Ok(Placed::Written { .. }))), "the last append was refused: {last:?}");
        self.check();
    }

    fn check(&self) {
        let host = self.host.borrow();
        let csv = &host.files[0].cache;
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&csv[..]);
        let records: Vec<_> = reader.records().map(|record| record.expect("the CSV parses")).collect();
        assert!(csv.ends_with(b"\n") && !csv.contains(&0), "not whole: {:?}", text(csv));
        assert!(csv.starts_with(HEADER));
        let mut tokens = Vec::new();
        let mut count: BTreeMap<&str, u32> = BTreeMap::new();
        // What nobody's leave was asked for, in the moment of a repair, is not ours to promise: a part of it may have been
        // kept, or
        // glued to a part of ours. Our rows stand all the same.
        for record in records[1..].iter().filter(|record| !record[0].starts_with('s')) {
            assert_eq!(record.len(), 2, "a torn or merged line {record:?} in {:?}", text(csv));
            let data = &record[1];
            // A line of others' may have been cut short by their own death, and look whole all the same.
            let known = if record[0].is_empty() { ['f', 's'] } else { ['r', 'e'] };
            let torn = !data.starts_with(known) && (!data.is_empty() || !record[0].is_empty());
            assert!(!torn && !data.contains('"'), "a torn or merged line {record:?} in {:?}", text(csv));
            *count.entry(data).or_default() += 1;
            if !record[0].is_empty() {
                tokens.push(record[0].parse::<u64>().expect("a token"));
            }
        }
        let times = |row: &String| count.get(row.as_str()).copied().unwrap_or_default();
        for row in &self.acked {
            assert_eq!(times(row), 1, "acknowledged {row:?} in {:?}", text(csv));
        }
        for row in self.unknown.iter().chain(self.keyed.values()) {
            assert!(times(row) <= 1, "{row:?} stands more than once in {:?}", text(csv));
        }
        for row in &self.refused {
            assert_eq!(times(row), 0, "refused {row:?} was written");
        }
        assert!(tokens.is_sorted(), "tokens go back: {tokens:?}");
        for (token, leases) in &self.wrote {
            assert!(leases.iter().all(|lease| lease == &leases[0]), "two leases wrote under token {token}");
        }
        for (line, must_stand) in &host.foreign {
            let stands = csv.split_inclusive(|&byte| byte == b'\n').filter(|found| found == line).count();
            let may_be_lost = !must_stand || host.csv_lied && host.power_cuts > 0;
            assert!(stands <= 1 && (stands == 1 || may_be_lost), "others' {:?} stands {stands} times", text(line));
        }
    }
}

/// Runs histories until one breaks a promise; then shows it.
fn histories(count: u64, first: u64) {
    for seed in first..first + count {
        let mut world = World::new(seed);
        let host = Rc::clone(&world.host);
        let run = std::panic::AssertUnwindSafe(|| world.run());
        if std::panic::catch_unwind(run).is_err() {
            if let Ok(host) = host.try_borrow() {
                eprintln!("{}", host.trace.join("\n"));
            }
            panic!("history {seed} breaks a promise");
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Found bad once, among more than a million: half a line with a stray quote that slipped in before our rows, a power cut, and
/// others' lines behind it.
#[test]
fn a_stray_quote_before_our_rows_does_not_swallow_others_lines() {
    histories(1, 1_135_188);
}

/// Found bad once: a rebuild that a power cut stopped after its cut, and then a writer that died in a line which begins as the
/// one did that had been cut.
#[test]
fn half_a_line_that_begins_as_the_cut_one_did_leaves_no_piece_behind() {
    histories(1, 1_156_388);
}

/// Found bad once: a cut that a power cut undid in part, under a line that another writer had put in the place of what was cut.
#[test]
fn parts_of_two_lines_that_a_power_cut_mixed_are_no_line() {
    histories(1, 2_328_990);
}

#[test]
fn random_histories_of_crashes_keep_every_promise() {
    histories(setting("ROWLOCK_HISTORIES", 20_000), setting("ROWLOCK_SEED", 0));
}
