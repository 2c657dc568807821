//! What must hold for any bytes that storage may find in its files. The targets in `fuzz/` ask it of inputs that a fuzzer makes
//! up, and `cargo test` of those in `fuzz/corpus`.

use std::{
    cell::RefCell,
    io,
    path::Path,
    rc::Rc,
    sync::{Arc, LazyLock},
    time::Instant,
};

use crate::{
    csv::scanner::split_rows,
    storage::{
        Entry, Turn,
        disk::{Disk, Landed, Place},
        format::Format,
        journal::{Cursor, Header, Layout, read_after, records_since},
        keys::preamble,
        ledger::{Ledger, LedgerOptions, Repair, Seen, checkpoint::print_of},
    },
};
use crate::{
    csv::{
        idempotency_key::Key,
        schema::{Data, Schema, ServiceCells, quote},
    },
    metrics::Meter,
};

const LAYOUT: Layout = Layout { page: 256 };
const JOURNAL_BYTES: u64 = 24 * LAYOUT.page;
const KEYS: usize = 4;
const HEADER: &[u8] = b"token,key,a,b\n";
/// One for all: nobody reads it.
static METER: LazyLock<Arc<Meter>> = LazyLock::new(Arc::default);

/// Files in memory.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<[Vec<u8>; 6]>>);

impl Memory {
    fn edit<T>(&self, place: Place, edit: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let file = match place {
            Place::Csv => 0,
            Place::Journal => 1,
            Place::Keys => 2,
            Place::Torn => 3,
            Place::Tail(which) => 4 + usize::from(which),
        };
        edit(&mut self.0.borrow_mut()[file])
    }
}

impl Disk for Memory {
    fn len(&self, place: Place) -> io::Result<u64> {
        Ok(self.edit(place, |file| file.len()) as u64)
    }

    fn read_at(&self, place: Place, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |file: &mut Vec<u8>| {
            let rest = usize::try_from(offset).ok().and_then(|offset| file.get(offset..)).unwrap_or_default();
            let read = rest.len().min(buffer.len());
            buffer[..read].copy_from_slice(&rest[..read]);
            read
        };
        Ok(self.edit(place, read))
    }

    fn write_parts_at(&self, place: Place, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let (bytes, from) = (parts.concat(), offset as usize);
        self.edit(place, |file| {
            file.resize(file.len().max(from + bytes.len()), 0);
            file[from..from + bytes.len()].copy_from_slice(&bytes);
        });
        Ok(())
    }

    fn append(&self, place: Place, bytes: &[u8]) -> io::Result<Landed> {
        let start = self.len(place)?;
        self.edit(place, |file| file.extend_from_slice(bytes));
        Ok(Landed { start, end: start + bytes.len() as u64 })
    }

    fn cut(&self, place: Place, len: u64) -> io::Result<()> {
        self.edit(place, |file| file.resize(len as usize, 0));
        Ok(())
    }

    fn reserve(&self, _: Place, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self, _: Place) -> io::Result<()> {
        Ok(())
    }
}

/// A CSV of these bytes: its header is none, or one whose rows a CSV reader reads back as wide as it is.
pub fn csv_header(data: &[u8]) {
    let disk = Memory::default();
    disk.edit(Place::Csv, |file| file.extend_from_slice(data));
    let new = Arc::new(Schema::from_header(b"token,data").expect("a header"));
    let Ok(format) = Format::read(&disk, Path::new("rows.csv"), &new) else { return };
    let (names, header) = (format.schema.names().expect("a header"), format.schema.header().expect("a header"));
    assert!(names.iter().all(|name| !name.is_empty()) && format.width() == Some(names.len()));
    if names[0].starts_with('\u{feff}') {
        // Readers differ in how many byte order marks there may be.
        return;
    }
    assert_eq!(Schema::from_header(&header).as_ref(), Ok(&*format.schema), "written anew, it says the same");

    let mut rows = format.schema.rows();
    if format.schema.push(&Data::Text("\"x\",\r\n".into()), &mut rows).is_err() {
        return;
    }
    let service = ServiceCells { timestamp: "T", replica: b"r", token: 1, key: b"k" };
    let mut text = [&*header, format.line_end].concat();
    format.schema.write_rows(&mut text, &rows, &service, 0, format.line_end);
    let mut reader = csv::Reader::from_reader(&*text);
    assert_eq!(reader.headers().expect("UTF-8"), names);
    let read: Vec<_> = reader.records().map(|row| row.expect("a row as wide as the header")).collect();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].iter().filter(|cell| *cell == "\"x\",\r\n").count(), 1);
}

/// A header or a record of these bytes, with lengths and checksums put right: what is read is what is written for it.
pub fn journal_record(data: &[u8]) {
    let mut page = [b"rowlockJ", &[0; 8][..], data].concat();
    page[8..12].copy_from_slice(&(data.len() as u32).to_le_bytes());
    page[12..16].copy_from_slice(&crc32c::crc32c(data).to_le_bytes());
    let layout = Layout { page: page.len() as u64 };
    if let Ok((header, _)) = Header::newest(&page, layout) {
        assert_eq!(Header::newest(&header.encode(), layout), Ok((header, 0)));
    }

    let (disk, journal, sequence) = (Memory::default(), 7_u128, 1_u64);
    let body = [&sequence.to_le_bytes(), data].concat();
    let mut text = (data.len() as u32).to_le_bytes().to_vec();
    text.extend_from_slice(&body);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&journal.to_le_bytes()), &text);
    let text = [&crc.to_le_bytes(), &*text].concat();
    disk.write_at(Place::Journal, LAYOUT.space(), &text).expect("memory writes");
    let bytes = disk.len(Place::Journal).expect("memory");
    let head = Header { journal, bytes, ..first_header(&disk) };
    let read = read_after(&disk, LAYOUT, &head, Cursor { sequence: 0, next: LAYOUT.space() }).expect("memory reads");
    if let Some((record, _)) = read {
        assert_eq!([record.encode_head(journal), record.payload].concat(), text);
    }
}

fn first_header(disk: &Memory) -> Header {
    let csv_bytes = disk.len(Place::Csv).expect("memory");
    Header {
        journal: 7,
        number: 1,
        bytes: JOURNAL_BYTES,
        base: 0,
        next: LAYOUT.space(),
        csv_bytes,
        csv_print: print_of(disk, csv_bytes).expect("memory reads"),
        mark: 0,
        lease: 0,
        keys: 0,
        rebuild: None,
    }
}

fn open(disk: &Memory) -> Option<Ledger<Memory>> {
    let schema = Arc::new(Schema::from_header(HEADER.trim_ascii_end()).expect("a header"));
    let options = LedgerOptions {
        path: "rows.csv".into(),
        layout: LAYOUT,
        format: Format { schema, line_end: b"\n", headerless_width: None, start: 0 },
        replica: "r".to_owned(),
        keys: KEYS,
        meter: Arc::clone(&METER),
    };
    Ledger::open(disk.clone(), options).ok()
}

/// A file with a header, and a journal that knows of it.
fn new_files() -> Memory {
    let disk = Memory::default();
    disk.edit(Place::Csv, |file| file.extend_from_slice(HEADER));
    disk.edit(Place::Journal, |file| file.resize(JOURNAL_BYTES as usize, 0));
    disk.edit(Place::Keys, |file| *file = preamble(KEYS as u64));
    let header = first_header(&disk);
    disk.write_at(Place::Journal, 0, &header.encode()).expect("memory writes");
    disk
}

/// Appends a row under the next token; answers it as it stands in the file.
fn append(ledger: &mut Ledger<Memory>, a: &str, key: Option<&str>) -> Option<Vec<u8>> {
    let (schema, token) = (Arc::clone(&ledger.format.schema), ledger.mark.saturating_add(1));
    let mut rows = schema.rows();
    // The header may be another by now, without a place for data.
    schema.push(&Data::Text(a.into()), &mut rows).ok()?;
    let key = key.map(|key| Key::new(key, &rows).expect("a key"));
    let (timestamp, now) = ("", Instant::now());
    let turn = Turn { token, lease: 1, granted: now, timestamp, deadline: now, still_held: &|| true };
    let entry = Entry { rows: &rows, key: key.as_ref(), keys_seen: 0, waited_ms: 0, released: true };
    ledger.append(&[entry], &turn).ok()?;
    let key = key.map(|key| quote(&key.text)).unwrap_or_default();
    let mut text = Vec::new();
    schema.write_rows(&mut text, &rows, &ServiceCells { timestamp, replica: b"r", token, key: &key }, 0, b"\n");
    Some(text)
}

/// Bytes that say what to do.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()) % 32;
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Appends rows, with a checkpoint here and there.
    fn write(&mut self, ledger: &mut Ledger<Memory>) {
        for _ in 0..self.byte() % 8 {
            let kind = self.byte();
            let text = String::from_utf8_lossy(self.bytes()).replace('\0', "");
            let key = (kind & 2 != 0).then_some(["k1", "k,2", "k3"][usize::from(kind >> 2) % 3]);
            append(ledger, &text, key).expect("nothing fails here");
            if kind & 1 != 0 {
                ledger.checkpoint_now().expect("nothing fails here");
            }
        }
    }

    /// Writes over a place in a file, cuts it off there, or appends to it.
    fn damage(&mut self, disk: &Memory) {
        let (kind, place) = (self.byte(), u16::from_le_bytes([self.byte(), self.byte()]));
        let bytes = self.bytes();
        let which = [Place::Csv, Place::Journal, Place::Keys, Place::Torn][usize::from(kind) % 4];
        disk.edit(which, |file| {
            let at = usize::from(place) % (file.len() + 1);
            match kind / 4 % 3 {
                0 => file[at..].iter_mut().zip(bytes).for_each(|(byte, new)| *byte = *new),
                1 if which != Place::Journal => file.truncate(at),
                _ => file.extend_from_slice(bytes),
            }
        });
    }
}

/// Files that were written by us and damaged by anything: whoever looks gets an error or the truth. A look that may not repair
/// leaves the CSV alone; after one that may, it is whole rows, all that the journal tells of among them, and goes on.
pub fn journal(data: &[u8]) {
    let (mut script, disk) = (Script(data), new_files());
    script.write(&mut open(&disk).expect("sound files"));
    while !script.0.is_empty() {
        script.damage(&disk);
    }
    let csv = || disk.edit(Place::Csv, |file| file.clone());
    let before = csv();
    let Some(mut reader) = open(&disk) else { return };
    let seen = reader.look(Repair::Forbidden);
    assert!(csv() == before, "who may not repair changes nothing");

    let Some(mut ledger) = open(&disk) else { return };
    let records = records_since(&disk, LAYOUT, &ledger.head).expect("memory reads");
    let Ok(Seen::True(open_line)) = ledger.look(Repair::Allowed) else { return };
    let repaired = csv();
    if matches!(seen, Ok(Seen::True(_))) {
        assert!(repaired == before, "what was true was left alone");
    }
    assert_eq!(ledger.whole + open_line.map_or(0, |open| open.bytes), repaired.len() as u64);
    for record in records.iter().filter(|record| !record.payload.is_empty()) {
        let rows = &record.payload[usize::from(record.lead)..];
        assert!(memchr::memmem::find(&repaired, rows).is_some(), "{:?} is missing", String::from_utf8_lossy(rows));
    }
    let again = open(&disk).expect("sound files").look(Repair::Forbidden);
    assert!(matches!(again, Ok(Seen::True(open)) if open == open_line), "{again:?}");
    if let Some(row) = append(&mut ledger, "the next", None) {
        let now = csv();
        assert!(now.ends_with(&row) && split_rows(&now).1.is_empty(), "no line is left open");
    }
}

#[cfg(test)]
mod tests {
    use crate::fuzz_corpus::replay;

    #[test]
    fn what_fuzzing_found_is_read_as_it_was_written_or_not_at_all() {
        replay("csv_header", super::csv_header);
        replay("journal_record", super::journal_record);
        replay("journal", super::journal);
    }
}
