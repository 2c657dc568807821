//! Encodes the requests of one batch as the content of one record.

use std::{collections::HashSet, io, time::Duration};

use crate::{
    api::acknowledgement::Acknowledgement,
    csv::{
        encode::quote,
        idempotency_key::Key,
        row_splitter::ROW_BYTES_MAX,
        rows::Rows,
        schema::{InvalidField, RowLayout, ServiceCells},
    },
    storage::{
        disk::Disk,
        error::{AppendError, Refusal},
        journal::JournalRecord,
        keys::Remembered,
        ledger::Ledger,
        types::{AppendEntry, EntryOutcome, KnownKey, Turn},
    },
    time::ms,
};

/// The rows and keys of one record.
#[derive(Default)]
pub(super) struct RecordContent {
    /// Bytes at the start of `payload` that end an open line.
    pub(super) line_end_prefix_len: usize,
    /// Their offsets count from the first row.
    pub(super) keys: Vec<Remembered>,
    pub(super) payload: Vec<u8>,
    /// The width of the first row of a headerless file, if it has one.
    headerless_width: Option<usize>,
}

impl RecordContent {
    pub(super) fn has_rows(&self) -> bool {
        self.payload.len() > self.line_end_prefix_len
    }

    fn encoded_bytes_max(&self) -> usize {
        self.payload.len() + JournalRecord::overhead_bytes(self.keys.len())
    }
}

impl<D: Disk> Ledger<D> {
    /// The most that the encoded rows of one request may come to, in bytes.
    pub(crate) fn batch_bytes_max(&self) -> u64 {
        self.layout.record_bytes_max(self.head.bytes) - JournalRecord::overhead_bytes(1) as u64
    }

    /// Looks up an idempotency key.
    pub(super) fn find_replay(&self, key: &Key) -> Option<KnownKey> {
        // guard: lookup_key: a retried request is not written twice
        let known = self.keys.find(key.hash)?;
        let is_same = known.fingerprint == key.fingerprint;
        Some(if is_same { KnownKey::Replayed(self.keys.ack(known)) } else { KnownKey::Reused })
    }

    /// Encodes as many requests as fit one record. Offsets in their outcomes count from the first row.
    pub(super) fn encode(
        &mut self,
        entries: &[AppendEntry<'_>],
        turn: &Turn<'_>,
        line_end_prefix: &[u8],
    ) -> Result<(RecordContent, Vec<EntryOutcome>), AppendError> {
        let bytes_max = self.layout.record_bytes_max(self.head.bytes) as usize;
        let capacity: usize = entries.iter().map(|entry| self.encoded_bytes_max(entry, turn)).sum();
        let mut payload = Vec::with_capacity(line_end_prefix.len() + capacity.min(bytes_max));
        payload.extend_from_slice(line_end_prefix);
        let line_end_prefix_len = line_end_prefix.len();
        let width_of_file = self.width_of_first_row(line_end_prefix).map_err(AppendError::before("read"))?;
        let mut content =
            RecordContent { line_end_prefix_len, keys: Vec::new(), payload, headerless_width: width_of_file };
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut keys_in_batch = HashSet::new();
        for entry in entries {
            // guard: key_once_in_batch: a key that a batch holds twice writes once
            if entry.key.is_some_and(|key| !keys_in_batch.insert(key.hash)) {
                // A key that is repeated within the batch waits for the next record, and replays the first one's answer.
                break;
            }
            let start = content.payload.len();
            let outcome = self.encode_entry(entry, turn, &mut content);
            if content.payload.len() > start && content.encoded_bytes_max() > bytes_max {
                content.payload.truncate(start);
                if entry.key.is_some() {
                    content.keys.pop();
                }
                if content.has_rows() {
                    break;
                }
                content.headerless_width = width_of_file;
                outcomes.push(EntryOutcome::Refused(Refusal::TooLarge { bytes_max: bytes_max as u64 }));
                continue;
            }
            outcomes.push(outcome);
        }
        Ok((content, outcomes))
    }

    /// The most bytes that a request's rows encode to, whichever columns the file has, so that the payload of one record hardly ever reallocates.
    fn encoded_bytes_max(&self, entry: &AppendEntry<'_>, turn: &Turn<'_>) -> usize {
        let key = entry.key.map_or(0, |key| 2 * key.text.len() + 2);
        let service = turn.timestamp.len() + self.replica_cell.len() + "18446744073709551615append".len() + key;
        let commas = self.format.width().unwrap_or_default();
        entry.rows.cell_bytes() + entry.rows.len() * (service + commas + self.format.line_end.len())
    }

    fn encode_entry(&mut self, entry: &AppendEntry<'_>, turn: &Turn<'_>, content: &mut RecordContent) -> EntryOutcome {
        if let Some(key) = entry.key {
            if let Some(known) = self.find_replay(key) {
                return known.into();
            }
            // The key may have been among the newest when this request arrived, and be forgotten by now.
            // guard: key_window: a request whose key may be forgotten is not written twice
            if self.keys.may_be_forgotten(entry.keys_seen) {
                return EntryOutcome::Refused(Refusal::KeyMayBeForgotten);
            }
        }
        let start = content.payload.len();
        if let Err(e) = self.encode_rows(entry, turn, content) {
            content.payload.truncate(start);
            return EntryOutcome::Refused(e);
        }
        let offset = (start - content.line_end_prefix_len) as u64;
        let bytes = (content.payload.len() - start) as u64;
        let mut held_ms = None;
        if let Some(key) = entry.key {
            let held = ms(turn.granted.elapsed());
            held_ms = Some(held);
            let ack = Acknowledgement {
                rows: entry.rows.len(),
                offset,
                bytes,
                token: turn.token,
                replica: "".into(),
                waited_ms: entry.waited_ms,
                held_ms: held,
                released: entry.released,
                replayed: false,
                sync: Duration::ZERO,
            };
            content.keys.push(Remembered::new(key.hash, key.fingerprint, &ack));
        }
        EntryOutcome::Written { offset, bytes, held_ms }
    }

    fn encode_rows(
        &mut self,
        entry: &AppendEntry<'_>,
        turn: &Turn<'_>,
        content: &mut RecordContent,
    ) -> Result<(), Refusal> {
        let headerless_width = self.headerless_width_for(entry.rows, content)?;
        let (bytes_max, is_headerless) = (self.layout.record_bytes_max(self.head.bytes), headerless_width > 0);
        // guard: commas_bounded: short rows of a wide headerless file are refused before they are filled up
        if is_headerless && headerless_bytes(entry.rows, headerless_width) > bytes_max {
            return Err(Refusal::TooLarge { bytes_max });
        }
        let key = entry.key.map(|key| quote(&key.text)).unwrap_or_default();
        let cells =
            ServiceCells { timestamp: turn.timestamp, replica: &self.replica_cell, token: turn.token, key: &key };
        let layout = RowLayout { headerless_width, line_end: self.format.line_end };
        let longest = self.format.schema.write_rows(&mut content.payload, entry.rows, &cells, layout);
        // guard: row_bounded: no row is written that readers take for an endless quote
        if longest > ROW_BYTES_MAX {
            return Err(Refusal::RowTooLarge { bytes_max: ROW_BYTES_MAX as u64 });
        }
        if is_headerless {
            content.headerless_width = Some(headerless_width);
        }
        Ok(())
    }

    /// The width that a headerless file's rows are filled up to: that of its first row.
    fn headerless_width_for(&self, rows: &Rows, content: &RecordContent) -> Result<usize, InvalidField> {
        if self.format.schema.width().is_some() {
            return Ok(0);
        }
        let Some(first) = rows.iter().next() else { return Ok(0) };
        let width = content.headerless_width.unwrap_or(first.cells);
        if let Some(wide) = rows.iter().find(|row| row.cells > width) {
            return Err(InvalidField::new("data", format!("{} cells, but the file's rows have {width}", wide.cells)));
        }
        Ok(width)
    }

    /// The width of a headerless file's first row, if there is one. It may be an open line, which `line_end_prefix` ends.
    fn width_of_first_row(&mut self, line_end_prefix: &[u8]) -> io::Result<Option<usize>> {
        self.learn_width()?;
        let is_open = self.format.width().is_none() && !line_end_prefix.is_empty();
        Ok(if is_open { Some(self.format.first_row(&self.disk)?.width) } else { self.format.headerless_width })
    }

    /// Reads the width of a headerless file's first row, once it has one. Another replica may have written it.
    pub(super) fn learn_width(&mut self) -> io::Result<()> {
        let is_missing = self.format.width().is_none() && self.whole_end > self.format.start;
        if is_missing { self.format.read_first_row(&self.disk) } else { Ok(()) }
    }
}

/// Bytes of rows that are filled up to this width, with the shortest line end.
fn headerless_bytes(rows: &Rows, width: usize) -> u64 {
    let filling = |cells: usize| (width.saturating_sub(cells) + "\n".len()) as u64;
    rows.cell_bytes() as u64 + rows.iter().map(|row| filling(row.cells)).sum::<u64>()
}
