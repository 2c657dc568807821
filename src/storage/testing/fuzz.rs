//! Checks what must hold for any bytes that storage may find in its files. The targets in `fuzz/` run them on inputs of a
//! fuzzer, `cargo test` on the inputs in `fuzz/corpus`.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
    time::Instant,
};

use crate::{
    csv::{
        encode::quote,
        idempotency_key::Key,
        scanner::split_rows,
        schema::{Data, RowLayout, Schema, ServiceCells},
    },
    metrics::Meter,
    storage::{
        disk::{Disk, FileKind},
        format::Format,
        journal::{Cursor, Header, Layout, csv_tail_checksum, read_after, records_since},
        keys::preamble,
        ledger::{Ledger, LedgerOptions, Purpose, RefreshOutcome, RepairMode},
        testing::memory::Memory,
        types::{AppendEntry, Turn},
    },
};

pub(super) const LAYOUT: Layout = Layout { page: 256 };
const JOURNAL_BYTES: u64 = 24 * LAYOUT.page;
const KEYS: usize = 4;
const HEADER: &[u8] = b"token,key,a,b\n";
/// Shared by all ledgers, since no check reads it.
static METER: LazyLock<Arc<Meter>> = LazyLock::new(Arc::default);

/// A CSV of these bytes either has no valid header, or a CSV reader reads its rows back as wide as the header.
pub fn csv_header(data: &[u8]) {
    let disk = Memory::default();
    disk.edit(FileKind::Csv, |file| file.extend_from_slice(data));
    let new = Arc::new(Schema::from_header(b"token,data").expect("a header"));
    let Ok(format) = Format::read(&disk, Path::new("rows.csv"), &new) else { return };
    let (names, header) = (format.schema.names().expect("a header"), format.schema.header().expect("a header"));
    assert!(names.iter().all(|name| !name.is_empty()) && format.width() == Some(names.len()));
    assert_eq!(Schema::from_header(&header).as_ref(), Ok(&*format.schema), "encoding preserves the header");

    let mut rows = format.schema.rows();
    if format.schema.push(&Data::Text("\"x\",\r\n".into()), &mut rows).is_err() {
        return;
    }
    let service = ServiceCells { timestamp: "T", replica: b"r", token: 1, key: b"k" };
    let mut text = [&*header, format.line_end].concat();
    format.schema.write_rows(&mut text, &rows, &service, RowLayout { headerless_width: 0, line_end: format.line_end });
    let mut reader = csv::Reader::from_reader(&*text);
    assert_eq!(reader.headers().expect("UTF-8"), names);
    let read: Vec<_> = reader.records().map(|row| row.expect("a row as wide as the header")).collect();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].iter().filter(|cell| *cell == "\"x\",\r\n").count(), 1);
}

/// A header or a record of these bytes, with correct lengths and checksums: what was decoded is the same after encoding.
pub fn journal_record(data: &[u8]) {
    let mut page = [b"rowlockJ", &[0; 8][..], data].concat();
    page[8..12].copy_from_slice(&(data.len() as u32).to_le_bytes());
    page[12..16].copy_from_slice(&crc32c::crc32c(data).to_le_bytes());
    let layout = Layout { page: page.len() as u64 };
    if let Ok((header, _)) = Header::newest(&page, layout) {
        // A header of the first version becomes longer.
        let encoded = header.encode();
        let layout = Layout { page: encoded.len() as u64 };
        assert_eq!(Header::newest(&encoded, layout), Ok((header, 0)));
    }

    let (disk, journal, sequence) = (Memory::default(), 7_u128, 1_u64);
    let body = [&sequence.to_le_bytes(), data].concat();
    let mut text = (data.len() as u32).to_le_bytes().to_vec();
    text.extend_from_slice(&body);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&journal.to_le_bytes()), &text);
    let text = [&crc.to_le_bytes(), &*text].concat();
    disk.write_at(FileKind::Journal, LAYOUT.space(), &text).expect("memory writes");
    let bytes = disk.len(FileKind::Journal).expect("memory");
    let head = Header { journal, bytes, ..first_header(&disk) };
    let read = read_after(&disk, LAYOUT, &head, Cursor { sequence: 0, next: LAYOUT.space() }).expect("memory reads");
    if let Some((record, _)) = read {
        assert_eq!([record.encode_head(journal), record.payload].concat(), text);
    }
}

pub(super) fn first_header(disk: &Memory) -> Header {
    let csv_bytes = disk.len(FileKind::Csv).expect("memory");
    Header {
        journal: 7,
        number: 1,
        bytes: JOURNAL_BYTES,
        base: 0,
        next: LAYOUT.space(),
        csv_bytes,
        csv_tail_checksum: csv_tail_checksum(disk, csv_bytes).expect("memory reads"),
        highest_token: 0,
        highest_token_lease: 0,
        keys: 0,
        csv_inode: 1,
        rebuild: None,
        rebuilds: 0,
    }
}

fn open(disk: &Memory) -> Option<Ledger<Memory>> {
    let schema = Arc::new(Schema::from_header(HEADER.trim_ascii_end()).expect("a header"));
    let options = LedgerOptions {
        path: "rows.csv".into(),
        layout: LAYOUT,
        format: Format { schema, line_end: b"\n", headerless_width: None, start: 0, rows_start: 0 },
        replica: "r".to_owned(),
        keys: KEYS,
        purpose: Purpose::Append,
        meter: Arc::clone(&METER),
    };
    Ledger::open(disk.clone(), options).ok()
}

/// A CSV with a header, and a journal for it.
fn new_files() -> Memory {
    let disk = Memory::default();
    disk.edit(FileKind::Csv, |file| file.extend_from_slice(HEADER));
    disk.edit(FileKind::Journal, |file| file.resize(JOURNAL_BYTES as usize, 0));
    disk.edit(FileKind::Keys, |file| *file = preamble(KEYS as u64));
    let header = first_header(&disk);
    disk.write_at(FileKind::Journal, 0, &header.encode()).expect("memory writes");
    disk
}

/// Appends a row under the next token, and returns its line.
fn append(ledger: &mut Ledger<Memory>, a: &str, key: Option<&str>) -> Option<Vec<u8>> {
    let (schema, token) = (Arc::clone(&ledger.format().schema), ledger.highest_token().saturating_add(1));
    let mut rows = schema.rows();
    // A damaged header may have no data column.
    schema.push(&Data::Text(a.into()), &mut rows).ok()?;
    let key = key.map(|key| Key::new(key, &rows).expect("a key"));
    let (timestamp, now) = ("", Instant::now());
    let turn = Turn { token, lease: 1, granted: now, timestamp, deadline: now, still_held: &|| true };
    let entry = AppendEntry { rows: &rows, key: key.as_ref(), keys_seen: 0, waited_ms: 0, released: true };
    ledger.append(&[entry], &turn).ok()?;
    let key = key.map(|key| quote(&key.text)).unwrap_or_default();
    let mut text = Vec::new();
    let service = ServiceCells { timestamp, replica: b"r", token, key: &key };
    schema.write_rows(&mut text, &rows, &service, RowLayout { headerless_width: 0, line_end: b"\n" });
    Some(text)
}

/// Input bytes as a sequence of actions.
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

    /// Appends rows, with some checkpoints.
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

    /// Overwrites a part of a file, truncates it, or appends to it.
    fn damage(&mut self, disk: &Memory) {
        let (action, position) = (self.byte(), u16::from_le_bytes([self.byte(), self.byte()]));
        let bytes = self.bytes();
        let which = [FileKind::Csv, FileKind::Journal, FileKind::Keys, FileKind::Torn][usize::from(action) % 4];
        disk.edit(which, |file| {
            let at = usize::from(position) % (file.len() + 1);
            match action / 4 % 3 {
                0 => file[at..].iter_mut().zip(bytes).for_each(|(byte, new)| *byte = *new),
                1 if which != FileKind::Journal => file.truncate(at),
                _ => file.extend_from_slice(bytes),
            }
        });
    }
}

/// Damaged files of a ledger: a refresh returns an error or what is true. Without permission to repair it leaves the CSV alone;
/// with permission the CSV has only whole rows afterwards, with all rows of the journal, and appends continue.
pub fn journal(data: &[u8]) {
    let (mut script, disk) = (Script(data), new_files());
    script.write(&mut open(&disk).expect("sound files"));
    while !script.0.is_empty() {
        script.damage(&disk);
    }
    let csv = || disk.edit(FileKind::Csv, |file| file.clone());
    let before = csv();
    let Some(mut reader) = open(&disk) else { return };
    let found = reader.refresh(RepairMode::Forbidden);
    assert!(csv() == before, "a refresh without permission changes nothing");

    let Some(mut ledger) = open(&disk) else { return };
    let pages = disk.read(FileKind::Journal, 0, LAYOUT.space()).expect("memory reads");
    let (head, _) = Header::newest(&pages, LAYOUT).expect("the ledger was opened");
    let records = records_since(&disk, LAYOUT, &head).expect("memory reads");
    let Ok(RefreshOutcome::Consistent(open_line)) = ledger.refresh(RepairMode::Allowed) else { return };
    let repaired = csv();
    if matches!(found, Ok(RefreshOutcome::Consistent(_))) {
        assert!(repaired == before, "a consistent CSV is not changed");
    }
    assert_eq!(ledger.whole_end() + open_line.map_or(0, |open| open.bytes), repaired.len() as u64);
    for record in records.iter().filter(|record| !record.payload.is_empty()) {
        let rows = &record.payload[usize::from(record.line_end_prefix_len)..];
        assert!(memchr::memmem::find(&repaired, rows).is_some(), "{:?} is missing", String::from_utf8_lossy(rows));
    }
    let again = open(&disk).expect("sound files").refresh(RepairMode::Forbidden);
    assert!(matches!(again, Ok(RefreshOutcome::Consistent(open)) if open == open_line), "{again:?}");
    if let Some(row) = append(&mut ledger, "the next", None) {
        let now = csv();
        assert!(now.ends_with(&row) && split_rows(&now).1.is_empty(), "no line is left open");
    }
}

#[cfg(test)]
mod tests {
    use crate::fuzz_corpus::replay;

    #[test]
    fn fuzz_corpus_is_read_correctly_or_refused() {
        replay("csv_header", super::csv_header);
        replay("journal_record", super::journal_record);
        replay("journal", super::journal);
    }
}
