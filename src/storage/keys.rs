//! Idempotency keys: the newest ones in memory, and in the fixed slots of `<csv>.keys` before the journal recycles them.

use std::{collections::VecDeque, io, os::unix::fs::FileExt, sync::Arc};

use bytes::{Buf, BufMut};
use hashbrown::HashTable;

use crate::{
    api::acknowledgement::Acknowledgement,
    fencing::FencingToken,
    storage::disk::{Disk, FileKind},
};

/// Starts the file; the number of slots follows.
const MAGIC: &[u8; 8] = b"rowlockK";
const SLOT_BYTES: u64 = 128;
const NAME_BYTES: usize = 64;
/// Slots read or written at once.
const RUN_SLOTS: u64 = 4096;
/// A bit of the stored `held_ms`: the lock was left to expire.
const ABANDONED: u32 = 1 << 31;

/// A remembered key: a fingerprint of the request's data, and the answer. 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// 128 bits of the key's SHA-256.
    hash: u128,
    pub(crate) fingerprint: u64,
    pub(crate) offset: u64,
    token: FencingToken,
    bytes: u32,
    rows: u32,
    waited_ms: u32,
    held_ms: u32,
    released: bool,
    /// An index into `Keys::names`, set by `Keys::learn`.
    replica: u16,
}

/// Stands for a key whose slot could not be read: it is older than the keys that must be remembered.
const VACANT: Remembered = Remembered {
    hash: 0,
    fingerprint: 0,
    offset: 0,
    token: 0,
    bytes: 0,
    rows: 0,
    waited_ms: 0,
    held_ms: 0,
    released: true,
    replica: 0,
};

impl Remembered {
    /// The encoded size in a record, without token and replica, which the record itself has.
    pub(crate) const BYTES: usize = 48;

    pub(crate) fn new(hash: u128, fingerprint: u64, ack: &Acknowledgement) -> Self {
        let u32_of = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            hash,
            fingerprint,
            offset: ack.offset,
            token: ack.token,
            bytes: u32_of(ack.bytes),
            rows: u32_of(ack.rows as u64),
            waited_ms: u32_of(ack.waited_ms),
            held_ms: u32_of(ack.held_ms).min(ABANDONED - 1),
            released: ack.released,
            replica: 0,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u128_le(self.hash);
        out.put_u64_le(self.fingerprint);
        out.put_u64_le(self.offset);
        out.put_u32_le(self.bytes);
        out.put_u32_le(self.rows);
        out.put_u32_le(self.waited_ms);
        out.put_u32_le(self.held_ms | if self.released { 0 } else { ABANDONED });
    }

    pub(crate) fn decode(body: &mut &[u8], token: FencingToken) -> Result<Self, bytes::TryGetError> {
        let mut key = Self { token, ..VACANT };
        key.hash = body.try_get_u128_le()?;
        key.fingerprint = body.try_get_u64_le()?;
        key.offset = body.try_get_u64_le()?;
        key.bytes = body.try_get_u32_le()?;
        key.rows = body.try_get_u32_le()?;
        key.waited_ms = body.try_get_u32_le()?;
        let held = body.try_get_u32_le()?;
        (key.held_ms, key.released) = (held & !ABANDONED, held & ABANDONED == 0);
        Ok(key)
    }
}

/// The newest keys, in order of their numbers.
#[derive(Debug)]
pub(crate) struct Keys {
    capacity: usize,
    ring: VecDeque<Remembered>,
    /// The number of the next key.
    next: u64,
    /// The low half of the number of each key in the ring, by the key's hash.
    index: HashTable<u32>,
    names: Vec<Arc<str>>,
}

impl Keys {
    pub(crate) fn new(capacity: usize) -> Self {
        // Growing the ring would need twice its memory for a moment. Reserved memory costs nothing until it is used.
        let ring = VecDeque::with_capacity(capacity);
        Self { capacity, ring, next: 0, index: HashTable::new(), names: Vec::new() }
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// How many keys are remembered.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    fn first(&self) -> u64 {
        self.next - self.ring.len() as u64
    }

    fn slot_of(&self, low: u32) -> usize {
        low.wrapping_sub(self.first() as u32) as usize
    }

    pub(crate) fn find(&self, hash: u128) -> Option<&Remembered> {
        let low = self.index.find(hash as u64, |&low| self.ring[self.slot_of(low)].hash == hash)?;
        self.ring.get(self.slot_of(*low))
    }

    /// The answer to the key's first request.
    pub(crate) fn ack(&self, key: &Remembered) -> Acknowledgement {
        Acknowledgement {
            rows: key.rows as usize,
            offset: key.offset,
            bytes: u64::from(key.bytes),
            token: key.token,
            replica: self.names.get(usize::from(key.replica)).map_or_else(|| "".into(), |name| (&**name).into()),
            waited_ms: u64::from(key.waited_ms),
            held_ms: u64::from(key.held_ms),
            released: key.released,
            replayed: true,
            sync: std::time::Duration::ZERO,
        }
    }

    /// Remembers the keys of a record or of slots, numbered from `first` on. Known keys are skipped.
    pub(crate) fn learn(&mut self, first: u64, keys: &[Remembered], replica: &str) {
        if keys.is_empty() {
            return;
        }
        let replica = self.name(replica);
        for (number, key) in (first..).zip(keys) {
            if number >= self.next {
                self.skip_to(number);
                self.push(Remembered { replica, ..*key });
            }
        }
    }

    fn name(&mut self, name: &str) -> u16 {
        let known = self.names.iter().position(|known| &**known == name);
        let at = known.unwrap_or_else(|| {
            // Beyond this many names, the newest names share the last index.
            self.names.truncate(usize::from(u16::MAX));
            self.names.push(name.into());
            self.names.len() - 1
        });
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    /// Skips keys before `number` that can't be read any more: they are older than the keys that must be remembered.
    pub(crate) fn skip_to(&mut self, number: u64) {
        if number.saturating_sub(self.next) >= self.capacity as u64 {
            self.ring.clear();
            self.index.clear();
            self.next = number;
        }
        while self.next < number {
            self.push(VACANT);
        }
    }

    fn push(&mut self, key: Remembered) {
        if self.ring.len() == self.capacity {
            self.forget_oldest();
        }
        let low = self.next as u32;
        self.next += 1;
        self.ring.push_back(key);
        if key == VACANT {
            return;
        }
        let (first, ring) = (self.next - self.ring.len() as u64, &self.ring);
        let slot_of = |low: u32| low.wrapping_sub(first as u32) as usize;
        let hasher = |&low: &u32| ring[slot_of(low)].hash as u64;
        match self.index.entry(key.hash as u64, |&low| ring[slot_of(low)].hash == key.hash, hasher) {
            hashbrown::hash_table::Entry::Occupied(mut known) => *known.get_mut() = low,
            hashbrown::hash_table::Entry::Vacant(free) => {
                free.insert(low);
            }
        }
    }

    fn forget_oldest(&mut self) {
        let low = self.first() as u32;
        let Some(oldest) = self.ring.pop_front() else { return };
        if let Ok(known) = self.index.find_entry(oldest.hash as u64, |&known| known == low) {
            known.remove();
        }
    }

    /// Moves the offsets of the keys from number `first` on by `by`, which wraps around to move them back.
    pub(crate) fn move_since(&mut self, first: u64, by: u64) {
        let skipped = usize::try_from(first.saturating_sub(self.first())).unwrap_or(usize::MAX);
        self.ring.iter_mut().skip(skipped).for_each(|key| key.offset = key.offset.wrapping_add(by));
    }

    /// Reads the keys numbered below `end` from the file.
    pub(crate) fn load(&mut self, disk: &impl Disk, end: u64) -> io::Result<()> {
        let slots = slots(disk)?;
        let mut from = self.next.max(end.saturating_sub(slots.min(self.capacity as u64)));
        self.skip_to(from);
        while from < end {
            let run = run_of(from, end, slots);
            let text = disk.read(FileKind::Keys, slot_offset(from, slots), run * SLOT_BYTES)?;
            for (number, slot) in (from..from + run).zip(text.chunks(SLOT_BYTES as usize)) {
                if let Some((key, name)) = decode_slot(number, slot) {
                    self.learn(number, &[key], &name);
                }
            }
            from += run;
            self.skip_to(from);
        }
        Ok(())
    }

    /// Writes the slots of the keys from number `from` on.
    pub(crate) fn store(&self, disk: &impl Disk, from: u64) -> io::Result<()> {
        let slots = slots(disk)?;
        let mut from = from.max(self.first()).max(self.next.saturating_sub(slots));
        while from < self.next {
            let run = run_of(from, self.next, slots);
            let mut text = Vec::with_capacity((run * SLOT_BYTES) as usize);
            for number in from..from + run {
                self.encode_slot(number, &mut text);
            }
            disk.write_at(FileKind::Keys, slot_offset(from, slots), &text)?;
            from += run;
        }
        Ok(())
    }

    fn encode_slot(&self, number: u64, out: &mut Vec<u8>) {
        let key = &self.ring[(number - self.first()) as usize];
        let name = self.names.get(usize::from(key.replica)).map_or(&[][..], |name| name.as_bytes());
        let start = out.len();
        out.put_u32_le(0);
        out.put_u32_le(number as u32);
        key.encode(out);
        out.put_u64_le(key.token);
        out.extend_from_slice(&name[..name.len().min(NAME_BYTES)]);
        out.resize(start + SLOT_BYTES as usize, 0);
        let crc = crc32c::crc32c(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// `None` for a slot that another key has overwritten, or whose write was not completed.
fn decode_slot(number: u64, mut slot: &[u8]) -> Option<(Remembered, String)> {
    let crc = slot.try_get_u32_le().ok()?;
    if crc32c::crc32c(slot) != crc || slot.try_get_u32_le().ok()? != number as u32 {
        return None;
    }
    let mut key = Remembered::decode(&mut slot, 0).ok()?;
    key.token = slot.try_get_u64_le().ok()?;
    let name = slot.split(|&byte| byte == 0).next().unwrap_or_default();
    Some((key, String::from_utf8_lossy(name).into_owned()))
}

/// Writes a file of `wanted` slots with the keys around number `end`, including those that no header counts yet.
pub(crate) fn copy_slots(disk: &impl Disk, end: u64, wanted: u64, out: &impl FileExt) -> io::Result<()> {
    let slots = slots(disk)?;
    out.write_all_at(&preamble(wanted), 0)?;
    for number in end.saturating_sub(slots)..end + slots {
        let slot = disk.read(FileKind::Keys, slot_offset(number, slots), SLOT_BYTES)?;
        if decode_slot(number, &slot).is_some() {
            out.write_all_at(&slot, slot_offset(number, wanted))?;
        }
    }
    Ok(())
}

/// The number after the highest one in the file, for a journal whose header is lost.
pub(crate) fn end_of_file(disk: &impl Disk) -> io::Result<u64> {
    let slots = slots(disk)?;
    let mut end = 0;
    for slot in 0..slots {
        let slot = disk.read(FileKind::Keys, (1 + slot) * SLOT_BYTES, SLOT_BYTES)?;
        if slot.is_empty() {
            break;
        }
        let number = slot.get(4..8).unwrap_or_default().try_get_u32_le().map_or(0, u64::from);
        if decode_slot(number, &slot).is_some() {
            end = end.max(number + 1);
        }
    }
    Ok(end)
}

/// How many neighbouring slots to read or write at once.
fn run_of(from: u64, end: u64, slots: u64) -> u64 {
    (end - from).min(slots - from % slots).min(RUN_SLOTS)
}

fn slot_offset(number: u64, slots: u64) -> u64 {
    (1 + number % slots) * SLOT_BYTES
}

/// The first bytes of a file with this many slots.
pub(crate) fn preamble(slots: u64) -> Vec<u8> {
    let mut text = MAGIC.to_vec();
    text.put_u64_le(slots);
    text.put_u32_le(crc32c::crc32c(&slots.to_le_bytes()));
    text.resize(SLOT_BYTES as usize, 0);
    text
}

/// How many slots the file has.
pub(crate) fn slots(disk: &impl Disk) -> io::Result<u64> {
    let text = disk.read(FileKind::Keys, 0, SLOT_BYTES)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "not a keys file");
    let mut rest = text.strip_prefix(MAGIC).ok_or_else(broken)?;
    let slots = rest.try_get_u64_le().map_err(|_| broken())?;
    let crc = rest.try_get_u32_le().map_err(|_| broken())?;
    if crc32c::crc32c(&slots.to_le_bytes()) == crc && slots > 0 { Ok(slots) } else { Err(broken()) }
}
