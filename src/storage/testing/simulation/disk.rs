//! A simulated disk: files that a kill, a power cut, a failed sync or a full disk can hit at every step.
//!
//! It is the disk of one host, with a page cache, or the server of several hosts that write directly. There, a power cut is the
//! server's: it loses what calls without an answer have written, the hosts go on, and their call is sent again.

use std::{cell::RefCell, io, mem, rc::Rc};

use crate::{
    random::Random,
    storage::{
        disk::{AppendedRange, Disk, FileKind},
        testing::{
            memory::copy_from,
            simulation::{
                file::{Change, SimFile},
                foreign_lines::ForeignLines,
                moments::Recording,
                scenario::{LAYOUT, Scenario},
                text::{contains, contains_remnant, text},
            },
        },
    },
};

const FAULTS_MAX: u32 = 6;

/// What stopped the current process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Killed,
    PowerLost,
    /// The server gave the locks of a host that was cut off to others: its calls fail until it takes them again.
    LockLost,
}

pub(super) struct Host {
    pub(super) scenario: Scenario,
    /// Whether this is the server of several hosts.
    pub(super) is_direct: bool,
    pub(super) random: Random,
    pub(super) files: [SimFile; 6],
    pub(super) trace: Vec<String>,
    faults: u32,
    /// The call after this many fails, as under a lost lock. `None`: no call is chosen.
    pub(super) calls_until_failure: Option<u32>,
    /// No more faults happen.
    pub(super) calm: bool,
    pub(super) fails_next_sync: bool,
    pub(super) stopped: Option<Stop>,
    pub(super) foreign: ForeignLines,
    /// How many lines were appended without the lock.
    pub(super) unlocked_lines: u32,
    /// What a reader sees of the current step.
    pub(super) recording: Recording,
    /// Everything before this offset of the CSV is as it was when a reader looked last, unless an error of ours moved it.
    pub(super) unmoved_end: usize,
    pub(super) power_cuts: u32,
    /// Whether a sync of the CSV has failed.
    pub(super) csv_sync_failed: bool,
    /// Whether the disk runs full now and then.
    runs_full: bool,
    /// The last append found the disk full.
    full: bool,
}

/// What a server answers under a lock that it gave to another host.
fn lost_lock() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn index(kind: FileKind) -> usize {
    match kind {
        FileKind::Csv => 0,
        FileKind::Journal => 1,
        FileKind::Keys => 2,
        FileKind::Torn => 3,
        FileKind::Tail(which) => 4 + usize::from(which),
    }
}

impl Host {
    /// A host without faults yet. The disk runs full now and then in one history of four.
    pub(super) fn new(seed: u64, scenario: Scenario, files: [SimFile; 6]) -> Self {
        Self {
            scenario,
            is_direct: scenario.is_direct,
            random: Random(seed),
            files,
            trace: Vec::new(),
            faults: 0,
            calls_until_failure: None,
            calm: true,
            fails_next_sync: false,
            stopped: None,
            foreign: ForeignLines::default(),
            unlocked_lines: 0,
            recording: Recording::default(),
            unmoved_end: usize::MAX,
            power_cuts: 0,
            csv_sync_failed: false,
            runs_full: seed % 4 == 3,
            full: false,
        }
    }

    /// Counts down to the call that is chosen to fail.
    fn count_call(&mut self) -> io::Result<()> {
        self.calls_until_failure = match self.calls_until_failure {
            Some(0) => {
                self.calls_until_failure = None;
                return Err(lost_lock());
            }
            left => left.map(|left| left - 1),
        };
        Ok(())
    }

    /// A step of the current process, at which it may be stopped.
    fn step(&mut self, what: impl FnOnce() -> String) -> io::Result<()> {
        if self.stopped.is_some() {
            return Err(lost_lock());
        }
        self.trace.push(what());
        self.recording.add(&self.files);
        if self.calm || self.faults >= FAULTS_MAX {
            return Ok(());
        }
        let stop = match self.random.below(100) {
            0..=2 => Stop::Killed,
            3..=5 => Stop::PowerLost,
            6..=8 if self.is_direct => Stop::LockLost,
            _ => return Ok(()),
        };
        self.faults += 1;
        if self.is_direct && stop == Stop::PowerLost {
            self.trace.push("SERVER LOSES POWER".to_owned());
            self.lose_power();
            return Ok(());
        }
        self.stop(stop);
        Err(lost_lock())
    }

    fn draw_failed_sync(&mut self) -> bool {
        self.random.chance(self.scenario.sync_failures)
    }

    fn stop(&mut self, stop: Stop) {
        self.trace.push(format!("{stop:?}"));
        self.stopped = Some(stop);
        if stop == Stop::PowerLost {
            self.lose_power();
        }
    }

    pub(super) fn lose_power(&mut self) {
        self.power_cuts += 1;
        self.recording.lose_power();
        let (durable, before) = (self.files[0].durable().to_vec(), self.files[0].cache.clone());
        for file in &mut self.files {
            file.lose_power(&mut self.random);
        }
        let csv = &self.files[0].cache;
        self.foreign.lose_power(&durable, csv);
        self.unmoved_end =
            self.unmoved_end.min(before.iter().zip(csv).take_while(|(before, now)| before == now).count());
        self.trace.push(format!("csv is now {:?}", text(csv)));
    }
}

/// The disk as one process sees it.
#[derive(Clone)]
pub(super) struct SimDisk(pub(super) Rc<RefCell<Host>>);

impl Disk for SimDisk {
    fn is_direct(&self) -> bool {
        self.0.borrow().is_direct
    }

    fn csv_inode(&self) -> u64 {
        1
    }

    fn forget_read_ahead(&self) {}

    fn len(&self, kind: FileKind) -> io::Result<u64> {
        Ok(self.0.borrow().files[index(kind)].cache.len() as u64)
    }

    fn read_at(&self, kind: FileKind, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut host = self.0.borrow_mut();
        if host.stopped.is_some() {
            return Err(lost_lock());
        }
        host.count_call()?;
        Ok(copy_from(&host.files[index(kind)].cache, offset, buffer))
    }

    fn write_parts_at(&self, kind: FileKind, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = &*parts.concat();
        if kind == FileKind::Csv {
            self.check_rows_anew(offset as usize, bytes);
        }
        if (kind, offset, bytes) == (FileKind::Journal, LAYOUT.sync_failed_flag_offset(), &[1]) {
            // Not a step: a kill in the microseconds between a failed sync and this byte is outside the promises.
            let mut host = self.0.borrow_mut();
            if host.stopped.is_none() {
                host.files[index(kind)].change(Change::Write(offset as usize, bytes.to_vec()));
            }
            return Ok(());
        }
        self.write(kind, offset as usize, bytes)
    }

    fn append(&self, kind: FileKind, bytes: &[u8]) -> io::Result<AppendedRange> {
        if kind == FileKind::Csv {
            self.append_without_lock();
        }
        let start = self.len(kind)?;
        if kind == FileKind::Csv && self.runs_full() {
            let fits = self.0.borrow_mut().random.below(bytes.len() + 1);
            // A local disk does not refuse what it has taken whole.
            let fits = if self.is_direct() { fits } else { fits.min(bytes.len().saturating_sub(1)) };
            self.write(kind, start as usize, &bytes[..fits])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.write(kind, start as usize, bytes)?;
        Ok(AppendedRange { start, end: start + bytes.len() as u64 })
    }

    fn truncate(&self, kind: FileKind, len: u64) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        host.step(|| format!("truncate {kind:?} to {len}"))?;
        if kind == FileKind::Csv {
            let removed = host.files[0].cache[len as usize..].to_vec();
            let is_undone = mem::take(&mut host.full);
            if !is_undone {
                host.unmoved_end = host.unmoved_end.min(len as usize);
            }
            let torn = &host.files[index(FileKind::Torn)].durable();
            // The server may have lost a part of it since.
            let is_quarantined = contains(torn, &removed) || host.is_direct && contains_remnant(torn, &removed);
            assert!(is_undone || is_quarantined, "{:?} was truncated and not quarantined", text(&removed));
        }
        host.files[index(kind)].change(Change::Truncate(len as usize));
        host.step(|| "truncated".to_owned())?;
        if host.is_direct {
            host.files[index(kind)].truncate_durably(len as usize);
        }
        Ok(())
    }

    fn reserve(&self, _: FileKind, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, kind: FileKind) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        if host.is_direct {
            // What other hosts wrote stays as it is.
            return Ok(());
        }
        host.step(|| format!("before sync {kind:?}"))?;
        if mem::take(&mut host.fails_next_sync) || !host.calm && host.faults < FAULTS_MAX && host.draw_failed_sync() {
            host.faults += 1;
            host.trace.push(format!("SYNC OF {kind:?} FAILS"));
            // The cache is now clean, but not on the disk. After a power cut there is a hole before foreign lines that were
            // synced later, and it is unknown whether they are whole.
            host.csv_sync_failed = host.csv_sync_failed || kind == FileKind::Csv;
            let host = &mut *host;
            host.files[index(kind)].survive(&mut host.random);
            return Err(io::Error::other("sync failed"));
        }
        host.files[index(kind)].sync();
        host.step(|| format!("synced {kind:?}"))
    }
}

impl SimDisk {
    fn write(&self, kind: FileKind, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let mut host = self.0.borrow_mut();
        host.count_call()?;
        host.step(|| format!("write {kind:?} at {offset}: {:?}", text(&bytes[..bytes.len().min(120)])))?;
        // A kill may also come in the middle of a write.
        let first = host.random.below(bytes.len() + 1);
        host.files[index(kind)].change(Change::Write(offset, bytes[..first].to_vec()));
        host.step(|| format!("wrote {first} of {}", bytes.len()))?;
        host.files[index(kind)].change(Change::Write(offset + first, bytes[first..].to_vec()));
        host.step(|| "wrote the rest".to_owned())?;
        if host.is_direct {
            host.files[index(kind)].write_durably(offset, bytes);
        }
        Ok(())
    }

    /// The only bytes that may be written into the CSV are there already, or were lost.
    fn check_rows_anew(&self, offset: usize, bytes: &[u8]) {
        let host = self.0.borrow();
        let present = host.files[0].cache.get(offset..).unwrap_or_default();
        let is_same = present.iter().zip(bytes).all(|(present, new)| present == new || *present == 0);
        assert!(host.is_direct && is_same, "{:?} is overwritten by {:?}", text(present), text(bytes));
    }

    /// Whether this append finds the disk full, although space was reserved for it.
    fn runs_full(&self) -> bool {
        let mut host = self.0.borrow_mut();
        host.full = host.runs_full && !host.calm && host.stopped.is_none() && host.random.chance(6);
        if host.full {
            host.trace.push("DISK IS FULL".to_owned());
        }
        host.full
    }

    /// Another process may append without the lock at this moment.
    fn append_without_lock(&self) {
        let mut host = self.0.borrow_mut();
        if host.calm || host.stopped.is_some() || !host.random.chance(4) {
            return;
        }
        if let Some(text) = host.draw_unlocked_text() {
            host.append_foreign(&text);
        }
    }
}
