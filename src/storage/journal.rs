//! The journal's bytes: two headers, a flag for a failed sync, and numbered, checksummed records in recycled space.
//!
//! ```text
//! page 0, 1   the headers; the valid one with the higher number counts, and the other one is overwritten next
//! page 2      not zero: a sync failed, so the page cache may hold data that the disk does not
//! page 3 …    records, each at the start of a page; one that does not fit before the end of the file starts at page 3
//! ```
//!
//! Each checksum covers the journal's random number, so that neither a payload nor a record of another journal is taken for a
//! record of this one.

use std::io;

use bytes::{Buf, BufMut};

use crate::fencing::{FencingToken, LeaseId};
use crate::storage::{
    disk::{Disk, FileKind},
    keys::Remembered,
};

/// The version of this format. A newer one is refused. An older one would be read, and upgraded at a checkpoint.
pub(crate) const FORMAT: u32 = 1;
/// The start of a header in every version. The body's length and checksum follow; the body starts with the version.
const MAGIC: &[u8; 8] = b"rowlockJ";
/// Checksum, body length, sequence.
const RECORD_PREFIX_BYTES: usize = 16;
/// How much of the CSV before the checkpoint is compared when a file is opened.
const CHECKSUM_BYTES_MAX: u64 = 4096;

/// How the journal is divided into pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Bytes that many disks overwrite atomically.
    pub(crate) page: u64,
}

impl Layout {
    pub(crate) const REAL: Self = Self { page: 4096 };
    pub(crate) const HEADERS: u64 = 2;

    pub(crate) fn sync_failed_flag_offset(self) -> u64 {
        Self::HEADERS * self.page
    }

    /// Whether `pages`, the start of the journal, record a failed sync.
    pub(crate) fn sync_failed_flag_is_set(self, pages: &[u8]) -> bool {
        pages.get(self.sync_failed_flag_offset() as usize).is_some_and(|&flag| flag != 0)
    }

    /// Offset of the space for records.
    pub(crate) fn space(self) -> u64 {
        self.sync_failed_flag_offset() + self.page
    }

    pub(crate) fn whole_pages(self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.page)
    }

    /// The largest record that always fits an empty journal, on one side of any position in the space.
    pub(crate) fn record_bytes_max(self, journal_bytes: u64) -> u64 {
        (journal_bytes - self.space()) / 2 / self.page * self.page
    }
}

/// What the last checkpoint made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// This journal's random number.
    pub(crate) journal: u128,
    /// Increases with each header written.
    pub(crate) number: u64,
    /// The journal's size.
    pub(crate) bytes: u64,
    /// Sequence of the last record whose rows are durable in the CSV.
    pub(crate) base: u64,
    /// Offset of the following record, unless that starts at page 3.
    pub(crate) next: u64,
    /// Bytes of the CSV that are durable, whole rows.
    pub(crate) csv_bytes: u64,
    /// Checksum of the last of these bytes, to recognise the file.
    pub(crate) csv_tail_checksum: u32,
    /// The CSV's inode number, to tell a file that was put in its place; 0 in headers of the first version.
    pub(crate) csv_inode: u64,
    /// The highest token in the records up to `base`.
    pub(crate) highest_token: FencingToken,
    /// The lease that wrote under it.
    pub(crate) highest_token_lease: LeaseId,
    /// Keys written to `<csv>.keys` since this journal was created.
    pub(crate) keys: u64,
    /// Set while the CSV after `csv_bytes` is being rebuilt.
    pub(crate) rebuild: Option<Rebuild>,
    /// The number of the header that noted the last rebuild, so that readers notice each; 0 in headers of older versions.
    pub(crate) rebuilds: u64,
}

/// A rebuild whose new tail is durable in one of the two tail files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rebuild {
    pub(crate) bytes: u64,
    /// Which of the two tail files.
    pub(crate) which: u8,
    /// Offset in `<csv>.torn` of the CSV's old tail.
    pub(crate) torn_at: u64,
    /// Length of the old tail.
    pub(crate) old_bytes: u64,
}

/// Why there is no usable header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// Neither header is valid.
    Damaged,
    /// The format of a newer version.
    Newer(u32),
}

impl Header {
    /// The position after the last record that the checkpoint covers.
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { sequence: self.base, next: self.next }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(168);
        body.put_u32_le(FORMAT);
        body.put_u128_le(self.journal);
        for number in [self.number, self.bytes, self.base, self.next, self.csv_bytes] {
            body.put_u64_le(number);
        }
        body.put_u32_le(self.csv_tail_checksum);
        body.put_u64_le(self.highest_token);
        body.put_u128_le(self.highest_token_lease);
        body.put_u64_le(self.keys);
        let none = Rebuild { bytes: 0, which: u8::MAX, torn_at: 0, old_bytes: 0 };
        let Rebuild { bytes, which, torn_at, old_bytes } = self.rebuild.unwrap_or(none);
        body.put_u8(which);
        for number in [bytes, torn_at, old_bytes] {
            body.put_u64_le(number);
        }
        body.put_u64_le(self.csv_inode);
        body.put_u64_le(self.rebuilds);
        let mut page = MAGIC.to_vec();
        page.put_u32_le(u32::try_from(body.len()).expect("a header is short"));
        page.put_u32_le(crc32c::crc32c(&body));
        page.extend_from_slice(&body);
        page
    }

    /// Whether the CSV begins as it did at the checkpoint: a shorter or different file was replaced or truncated.
    pub(crate) fn matches_csv(&self, disk: &impl Disk) -> io::Result<bool> {
        let is_long_enough = disk.len(FileKind::Csv)? >= self.csv_bytes;
        Ok(is_long_enough && csv_tail_checksum(disk, self.csv_bytes)? == self.csv_tail_checksum)
    }

    fn decode(mut page: &[u8]) -> Result<Self, HeaderFault> {
        use HeaderFault::{Damaged, Newer};
        page = page.strip_prefix(MAGIC).ok_or(Damaged)?;
        let len = page.try_get_u32_le().map_err(|_| Damaged)? as usize;
        let crc = page.try_get_u32_le().map_err(|_| Damaged)?;
        let mut body = page.get(..len).ok_or(Damaged)?;
        if crc32c::crc32c(body) != crc {
            return Err(Damaged);
        }
        match body.try_get_u32_le().map_err(|_| Damaged)? {
            FORMAT => Self::decode_body(&mut body).map_err(|_| Damaged),
            newer => Err(Newer(newer)),
        }
    }

    fn decode_body(body: &mut &[u8]) -> Result<Self, bytes::TryGetError> {
        Ok(Self {
            journal: body.try_get_u128_le()?,
            number: body.try_get_u64_le()?,
            bytes: body.try_get_u64_le()?,
            base: body.try_get_u64_le()?,
            next: body.try_get_u64_le()?,
            csv_bytes: body.try_get_u64_le()?,
            csv_tail_checksum: body.try_get_u32_le()?,
            highest_token: body.try_get_u64_le()?,
            highest_token_lease: body.try_get_u128_le()?,
            keys: body.try_get_u64_le()?,
            rebuild: {
                let which = body.try_get_u8()?;
                let (bytes, torn_at, old_bytes) =
                    (body.try_get_u64_le()?, body.try_get_u64_le()?, body.try_get_u64_le()?);
                (which != u8::MAX).then_some(Rebuild { bytes, which, torn_at, old_bytes })
            },
            // The first version ends here.
            csv_inode: if body.has_remaining() { body.try_get_u64_le()? } else { 0 },
            rebuilds: if body.has_remaining() { body.try_get_u64_le()? } else { 0 },
        })
    }

    /// Reads the newer of the two headers; `None` if neither is valid.
    pub(crate) fn read_newest(disk: &impl Disk, layout: Layout) -> io::Result<Option<Self>> {
        let pages = disk.read(FileKind::Journal, 0, layout.sync_failed_flag_offset())?;
        Ok(Self::newest(&pages, layout).ok().map(|(head, _)| head))
    }

    /// Whether a rebuild has begun since the header had this value of `rebuilds`: then rows after the checkpoint may have moved.
    pub(crate) fn tells_of_moved_rows(disk: &impl Disk, layout: Layout, rebuilds: u64) -> io::Result<bool> {
        disk.forget_read_ahead();
        Ok(Self::read_newest(disk, layout)?.is_none_or(|head| head.rebuilds != rebuilds))
    }

    /// The newer of the two headers, and the page that it is on.
    pub(crate) fn newest(pages: &[u8], layout: Layout) -> Result<(Self, u64), HeaderFault> {
        let page = |slot: u64| {
            let (from, to) = ((slot * layout.page) as usize, ((slot + 1) * layout.page) as usize);
            Self::decode(pages.get(from..to.min(pages.len())).unwrap_or_default())
        };
        match (page(0), page(1)) {
            // A newer version has written one of the two: the other one is out of date.
            (Err(HeaderFault::Newer(format)), _) | (_, Err(HeaderFault::Newer(format))) => {
                Err(HeaderFault::Newer(format))
            }
            (Ok(a), Ok(b)) if a.number > b.number => Ok((a, 0)),
            (_, Ok(b)) => Ok((b, 1)),
            (Ok(a), Err(HeaderFault::Damaged)) => Ok((a, 0)),
            (Err(HeaderFault::Damaged), Err(HeaderFault::Damaged)) => Err(HeaderFault::Damaged),
        }
    }
}

/// One committed batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JournalRecord {
    pub(crate) sequence: u64,
    pub(crate) token: FencingToken,
    pub(crate) lease: LeaseId,
    /// Offset in the CSV at which the payload was to be appended.
    pub(crate) offset: u64,
    /// Bytes at the start of the payload that end a line which another process left open.
    pub(crate) line_end_prefix_len: u8,
    pub(crate) replica: Box<str>,
    /// The number of the first of `keys`.
    pub(crate) first_key: u64,
    pub(crate) keys: Vec<Remembered>,
    /// The rows; empty for a token that is recorded ahead of a sleep.
    pub(crate) payload: Vec<u8>,
}

impl JournalRecord {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.payload.len() as u64
    }

    /// The most bytes that a record needs besides its payload.
    pub(crate) fn overhead_bytes(keys: usize) -> usize {
        RECORD_PREFIX_BYTES + 8 + 16 + 8 + 1 + 1 + u8::MAX as usize + 8 + 4 + keys * Remembered::BYTES
    }

    /// Encodes everything before the payload, so that the payload is written without a copy.
    pub(crate) fn encode_head(&self, journal: u128) -> Vec<u8> {
        let mut text = Vec::with_capacity(Self::overhead_bytes(self.keys.len()));
        text.put_bytes(0, 8);
        text.put_u64_le(self.sequence);
        text.put_u64_le(self.token);
        text.put_u128_le(self.lease);
        text.put_u64_le(self.offset);
        text.put_u8(self.line_end_prefix_len);
        text.put_u8(u8::try_from(self.replica.len()).expect("a replica's name is bounded"));
        text.extend_from_slice(self.replica.as_bytes());
        text.put_u64_le(self.first_key);
        text.put_u32_le(u32::try_from(self.keys.len()).expect("a batch is bounded"));
        for key in &self.keys {
            key.encode(&mut text);
        }
        let body = text.len() - RECORD_PREFIX_BYTES + self.payload.len();
        text[4..8].copy_from_slice(&u32::try_from(body).expect("a batch is bounded").to_le_bytes());
        let crc = crc32c::crc32c_append(checksum(journal, &text[4..]), &self.payload);
        text[..4].copy_from_slice(&crc.to_le_bytes());
        text
    }

    /// Decodes the bytes of `text` after the first `skip`, and reuses the buffer for the payload. `None` if they are not a
    /// record.
    fn decode(sequence: u64, mut text: Vec<u8>, skip: usize) -> Option<Self> {
        let body = &mut &text[skip..];
        let token = body.try_get_u64_le().ok()?;
        let (lease, offset) = (body.try_get_u128_le().ok()?, body.try_get_u64_le().ok()?);
        let (line_end_prefix_len, name_len) = (body.try_get_u8().ok()?, usize::from(body.try_get_u8().ok()?));
        let replica = std::str::from_utf8(body.get(..name_len)?).ok()?.into();
        body.advance(name_len);
        let (first_key, count) = (body.try_get_u64_le().ok()?, body.try_get_u32_le().ok()?);
        let keys = (0..count).map(|_| Remembered::decode(body, token)).collect::<Result<_, _>>().ok()?;
        if usize::from(line_end_prefix_len) > body.len() || offset.checked_add(body.len() as u64).is_none() {
            return None;
        }
        let head = text.len() - body.len();
        text.drain(..head);
        text.shrink_to_fit();
        Some(Self { sequence, token, lease, offset, line_end_prefix_len, replica, first_key, keys, payload: text })
    }
}

/// Records in the journal that the page cache may hold data that the disk does not.
pub(crate) fn set_sync_failed_flag(disk: &impl Disk, layout: Layout) {
    // guard: flag_failed_sync: no process trusts a page cache whose sync failed
    if let Err(e) = disk.write_at(FileKind::Journal, layout.sync_failed_flag_offset(), &[1]) {
        tracing::error!(error = %e, "cannot set the failed-sync flag in the journal");
    }
}

/// The checksum of the last bytes before `csv_bytes`.
pub(crate) fn csv_tail_checksum(disk: &impl Disk, csv_bytes: u64) -> io::Result<u32> {
    let bytes = csv_bytes.min(CHECKSUM_BYTES_MAX);
    Ok(crc32c::crc32c(&disk.read(FileKind::Csv, csv_bytes - bytes, bytes)?))
}

fn checksum(journal: u128, text: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&journal.to_le_bytes()), text)
}

/// A position in the chain of records: the sequence of the last record before it, and the offset of the following one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) sequence: u64,
    pub(crate) next: u64,
}

/// Reads the following record, if it is complete.
pub(crate) fn read_after(
    disk: &impl Disk,
    layout: Layout,
    head: &Header,
    after: Cursor,
) -> io::Result<Option<(JournalRecord, Cursor)>> {
    for at in [after.next, layout.space()] {
        if let Some((record, bytes)) = read_at(disk, layout, head, at, after.sequence + 1)? {
            let next = at + layout.whole_pages(bytes);
            return Ok(Some((record, Cursor { sequence: after.sequence + 1, next })));
        }
    }
    Ok(None)
}

/// All records since the header's checkpoint.
pub(crate) fn records_since(disk: &impl Disk, layout: Layout, head: &Header) -> io::Result<Vec<JournalRecord>> {
    let (mut records, mut cursor) = (Vec::new(), head.cursor());
    while let Some((record, next)) = read_after(disk, layout, head, cursor)? {
        records.push(record);
        cursor = next;
    }
    Ok(records)
}

fn read_at(
    disk: &impl Disk,
    layout: Layout,
    head: &Header,
    at: u64,
    sequence: u64,
) -> io::Result<Option<(JournalRecord, u64)>> {
    let mut text = disk.read(FileKind::Journal, at, layout.page.min(head.bytes.saturating_sub(at)))?;
    let Some(mut prefix) = text.get(..RECORD_PREFIX_BYTES) else { return Ok(None) };
    let (crc, body, found) = (prefix.get_u32_le(), u64::from(prefix.get_u32_le()), prefix.get_u64_le());
    let bytes = RECORD_PREFIX_BYTES as u64 + body;
    // guard: sequence: an old record in recycled space is not read as a new one
    if found != sequence || at + bytes > head.bytes {
        return Ok(None);
    }
    let present = text.len().min(bytes as usize);
    text.resize(bytes as usize, 0);
    let rest = &mut text[present..];
    if disk.read_at(FileKind::Journal, at + present as u64, rest)? < rest.len() {
        return Ok(None);
    }
    // guard: crc: an incomplete record is not read
    if checksum(head.journal, &text[4..]) != crc {
        return Ok(None);
    }
    Ok(JournalRecord::decode(sequence, text, RECORD_PREFIX_BYTES).map(|record| (record, bytes)))
}

/// Offset and payload of everything that looks like a record, for a journal whose headers are damaged. Without its random
/// number the checksums can't be verified, so old records that were not overwritten yet are included.
pub(crate) fn plausible_payloads(disk: &impl Disk, layout: Layout) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let (mut found, bytes) = (Vec::new(), disk.len(FileKind::Journal)?);
    let mut at = layout.space();
    while at < bytes {
        let prefix = disk.read(FileKind::Journal, at, RECORD_PREFIX_BYTES as u64)?;
        let mut body = prefix.get(4..8).unwrap_or_default();
        let body = u64::from(body.try_get_u32_le().unwrap_or_default());
        at += RECORD_PREFIX_BYTES as u64;
        if body > 0 && at + body <= bytes {
            let body = disk.read(FileKind::Journal, at, body)?;
            let record = JournalRecord::decode(0, body, 0);
            found.extend(record.filter(|record| record.payload.ends_with(b"\n")).map(|it| (it.offset, it.payload)));
        }
        at = layout.whole_pages(at);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::acknowledgement::Acknowledgement;

    #[test]
    fn record_encoding_is_stable() {
        let ack = Acknowledgement {
            rows: 2,
            offset: 7,
            bytes: 8,
            token: 9,
            replica: "".into(),
            waited_ms: 1,
            held_ms: 2,
            released: true,
            replayed: false,
            sync: std::time::Duration::ZERO,
        };
        let record = JournalRecord {
            sequence: 3,
            token: 9,
            lease: 11,
            offset: 40,
            line_end_prefix_len: 1,
            replica: "r-1".into(),
            first_key: 5,
            keys: vec![Remembered::new(1 << 100, 77, &ack)],
            payload: b"\na,b\nc,d\n".to_vec(),
        };
        let text = [record.encode_head(1 << 90), record.payload.clone()].concat();
        assert_eq!((text.len(), crc32c::crc32c(&text)), (122, 0xd56d_aa8c));
        assert_eq!(JournalRecord::decode(3, text, RECORD_PREFIX_BYTES), Some(record));
    }
}
