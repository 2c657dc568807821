//! Readers without the OS lock, between any two calls of a writer.
//!
//! A writer runs first, and the files are kept as they were at each step of it, also in the middle of a write. Readers then run through
//! these moments: at each call of a reader the writer may have gone on by some steps.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use crate::{
    csv::{
        scanner::split_rows,
        schema::{Data, Schema},
    },
    random::Random,
    storage::{
        disk::{AppendedRange, Disk, FileKind},
        error::AppendError,
        format::Format,
        journal::Header,
        keys::preamble,
        ledger::{Ledger, LedgerOptions, Purpose, RefreshOutcome},
        testing::{
            fuzz::{LAYOUT, first_header},
            memory::Memory,
            reader_disk::{Moving, ReaderDisk},
        },
        types::{AppendEntry, Turn},
    },
};

const HEADER: &[u8] = b"token,data\n";
/// Space for six small records, so that it is used again soon.
const JOURNAL_BYTES: u64 = 9 * LAYOUT.page;

/// A writer's disk: keeps the files as they were at each step.
#[derive(Clone)]
struct Recorder {
    files: Memory,
    moments: Rc<RefCell<Vec<Memory>>>,
    /// The next append to the CSV finds the disk full.
    runs_full: Rc<Cell<bool>>,
}

impl Recorder {
    fn step(&self) {
        self.moments.borrow_mut().push(self.files.copy());
    }
}

impl Disk for Recorder {
    fn is_direct(&self) -> bool {
        false
    }

    fn csv_inode(&self) -> u64 {
        self.files.csv_inode()
    }

    fn forget_read_ahead(&self) {}

    fn len(&self, kind: FileKind) -> io::Result<u64> {
        self.files.len(kind)
    }

    fn read_at(&self, kind: FileKind, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.files.read_at(kind, offset, buffer)
    }

    fn write_parts_at(&self, kind: FileKind, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = parts.concat();
        let half = bytes.len() / 2;
        self.files.write_at(kind, offset, &bytes[..half])?;
        self.step();
        self.files.write_at(kind, offset, &bytes)?;
        self.step();
        Ok(())
    }

    fn append(&self, kind: FileKind, bytes: &[u8]) -> io::Result<AppendedRange> {
        let start = self.len(kind)?;
        // Of several rows, the first one is whole then.
        let line_end = bytes.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let part = if line_end < bytes.len() { line_end } else { bytes.len() / 2 };
        self.files.append(kind, &bytes[..part])?;
        self.step();
        if kind == FileKind::Csv && self.runs_full.take() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.files.append(kind, &bytes[part..])?;
        self.step();
        Ok(AppendedRange { start, end: start + bytes.len() as u64 })
    }

    fn truncate(&self, kind: FileKind, len: u64) -> io::Result<()> {
        self.files.truncate(kind, len)?;
        self.step();
        Ok(())
    }

    fn reserve(&self, _: FileKind, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _: FileKind) -> io::Result<()> {
        Ok(())
    }
}

/// What a reader finds: the files of a moment that goes on.
#[derive(Clone)]
struct Moments {
    all: Rc<Vec<Memory>>,
    at: Rc<Cell<usize>>,
    /// How often the writer goes on, in percent of the reader's calls, and by how many steps at most.
    pace: (usize, usize),
    random: Rc<RefCell<Random>>,
}

impl Moments {
    fn now(&self) -> &Memory {
        &self.all[self.at.get()]
    }

    fn go_on(&self) {
        let (mut random, (percent, steps)) = (self.random.borrow_mut(), self.pace);
        if random.chance(percent) {
            self.at.set((self.at.get() + 1 + random.below(steps)).min(self.all.len() - 1));
        }
    }
}

impl Moving for Moments {
    fn is_direct(&self) -> bool {
        false
    }

    fn see<T>(&self, kind: FileKind, look: impl FnOnce(&[u8]) -> T) -> T {
        self.go_on();
        self.now().edit(kind, |file| look(file))
    }
}

fn open<D: Disk>(disk: D, purpose: Purpose) -> Ledger<D> {
    let path = "rows.csv".into();
    let schema = Arc::new(Schema::from_header(HEADER.trim_ascii_end()).expect("a header"));
    let format = Format { schema, line_end: b"\n", headerless_width: None, start: 0, rows_start: HEADER.len() as u64 };
    let options = LedgerOptions {
        path,
        layout: LAYOUT,
        format,
        replica: "r".to_owned(),
        keys: 1,
        purpose,
        meter: Arc::default(),
    };
    Ledger::open(disk, options).expect("one header is always valid")
}

/// What a writer did.
struct Written {
    moments: Vec<Memory>,
    /// From which moment on which row is acknowledged.
    acked: Vec<(usize, String)>,
}

/// A writer with batches, other programs' lines, full disks, checkpoints and rebuilds, in random order.
fn write(random: &mut Random) -> Written {
    let files = Memory::default();
    files.edit(FileKind::Csv, |file| file.extend_from_slice(HEADER));
    files.edit(FileKind::Keys, |file| *file = preamble(1));
    files.edit(FileKind::Journal, |file| file.resize(JOURNAL_BYTES as usize, 0));
    let head = Header { bytes: JOURNAL_BYTES, ..first_header(&files) };
    files.write_at(FileKind::Journal, 0, &head.encode()).expect("memory writes");
    let disk = Recorder { files, moments: Rc::default(), runs_full: Rc::default() };
    disk.step();
    let mut ledger = open(disk.clone(), Purpose::Append);
    let mut acked = Vec::new();
    let other_program = |text: &str| {
        disk.files.append(FileKind::Csv, text.as_bytes()).expect("memory writes");
        disk.step();
    };
    let fullness = [9, 17][random.below(2)];
    for number in 0..12 {
        let mut slips = false;
        match random.below(20) {
            0 => other_program(&format!(",f{number}\n")),
            1 => other_program("of another width\n"),
            2 | 3 => {
                ledger.recover().expect("nothing fails");
                ledger.checkpoint_now().expect("nothing fails");
            }
            4 => slips = true,
            other if (5..fullness).contains(&other) => disk.runs_full.set(true),
            _ => {}
        }
        let names: Vec<_> = (0..=random.below(3)).map(|nth| format!("r{number}.{nth}")).collect();
        let mut rows = ledger.format().schema.rows();
        for name in &names {
            ledger.format().schema.clone().push(&Data::Text(name.into()), &mut rows).expect("fits");
        }
        let held = || {
            if slips {
                other_program("half");
            }
            true
        };
        let now = Instant::now();
        let turn = Turn { token: number + 1, lease: 1, granted: now, timestamp: "", deadline: now, still_held: &held };
        let entry = AppendEntry { rows: &rows, key: None, keys_seen: 0, waited_ms: 0, released: true };
        match ledger.append(&[entry], &turn) {
            Ok(_) => {
                let at = disk.moments.borrow().len() - 1;
                acked.extend(names.iter().map(|name| (at, format!("{},{name}\n", number + 1))));
            }
            Err(AppendError::DiskFull(_)) => {}
            Err(e) => panic!("{e}"),
        }
    }
    let moments = disk.moments.take();
    Written { moments, acked }
}

fn contains(text: &[u8], row: &str) -> bool {
    memchr::memmem::find(text, row.as_bytes()).is_some()
}

fn check_reader(seed: u64) {
    let mut random = Random(seed);
    let Written { moments, acked } = write(&mut random);
    let last = moments.last().expect("some").clone();
    let final_csv = last.edit(FileKind::Csv, |file| file.clone());
    let pages = last.read(FileKind::Journal, 0, LAYOUT.space()).expect("memory reads");
    let rebuilds = Header::newest(&pages, LAYOUT).expect("a header").0.rebuilds;
    let paces = [(20, 2), (50, 3), (90, 2), (70, 8)];
    let (at, pace) = (Rc::new(Cell::new(random.below(moments.len()))), paces[random.below(4)]);
    let moments = Moments { all: Rc::new(moments), at, pace, random: Rc::new(RefCell::new(random)) };
    let disk = ReaderDisk(moments.clone());
    let mut reader = open(disk.clone(), Purpose::Read);
    loop {
        let begun = moments.at.get();
        let outcome = reader.refresh_unlocked().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let verified = reader.whole_end();
        let end = if reader.is_rebuilding() { verified.min(reader.checkpoint_end()) } else { verified };
        let shown = disk.read(FileKind::Csv, 0, end).expect("memory reads");
        // What was read while a rebuild moved rows is not shown.
        if !reader.has_moved().expect("memory reads") {
            let text = String::from_utf8_lossy(&shown);
            let is_whole = shown.len() as u64 == end && split_rows(&shown).1.is_empty();
            assert!(is_whole, "seed {seed}: {end} bytes of {text:?}");
            let stays = final_csv.starts_with(&shown) || reader.rebuilds() != rebuilds;
            assert!(stays, "seed {seed}: {text:?} does not stay: {:?}", String::from_utf8_lossy(&final_csv));
            for (_, row) in acked.iter().filter(|(from, _)| *from <= begun && !reader.is_rebuilding()) {
                assert!(contains(&shown, row), "seed {seed}: {row:?} is missing in {text:?}");
            }
        }
        if begun + 1 == moments.all.len() {
            assert!(matches!(outcome, RefreshOutcome::Consistent(_)), "seed {seed}: {outcome:?}");
            return;
        }
        moments.go_on();
    }
}

#[test]
fn reader_shows_only_what_stays_and_all_that_is_acknowledged() {
    (0..5_000).for_each(check_reader);
}
