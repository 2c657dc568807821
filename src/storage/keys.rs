//! Idempotency keys: the newest ones in memory, and in the fixed slots of `<csv>.keys` before the journal recycles them.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::unix::fs::FileExt,
    sync::Arc,
};

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
/// The most keys in memory beyond those that must be remembered: 16 MiB.
const SPARE_MAX: usize = 1 << 18;
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
    /// An index into the names of `Keys`, set by `Keys::learn`.
    replica: u16,
}

/// Stands for a key whose slot could not be read.
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

/// The names of replicas, each stored once.
#[derive(Debug, Default)]
struct Names {
    list: Vec<Arc<str>>,
    index: HashMap<Arc<str>, u16>,
}

impl Names {
    fn get(&self, at: u16) -> Option<&str> {
        self.list.get(usize::from(at)).map(|name| &**name)
    }

    /// Beyond 65,536 names, the newest names share the last index.
    fn index_of(&mut self, name: &str) -> u16 {
        if let Some(&at) = self.index.get(name) {
            return at;
        }
        self.list.truncate(usize::from(u16::MAX));
        let (at, name) = (u16::try_from(self.list.len()).unwrap_or(u16::MAX), Arc::<str>::from(name));
        self.list.push(Arc::clone(&name));
        if at < u16::MAX {
            self.index.insert(name, at);
        }
        at
    }
}

/// The newest keys, in order of their numbers.
///
/// More are in memory than must be remembered: a request is compared with the keys that were the newest when it arrived, and newer ones
/// are recorded while it waits.
#[derive(Debug)]
pub(crate) struct Keys {
    /// How many of the newest keys must be remembered.
    capacity: usize,
    /// How many are in memory at most.
    ring_max: usize,
    ring: VecDeque<Remembered>,
    /// The number of the next key.
    next: u64,
    /// The number after the newest key that was in memory and is forgotten.
    forgotten_end: u64,
    /// Keys before this number could not be read when `gap_known_at` keys were recorded. They are lost for requests that came later.
    gap_end: u64,
    gap_known_at: u64,
    /// The low half of the number of each key in the ring, by the key's hash.
    index: HashTable<u32>,
    names: Names,
}

impl Keys {
    pub(crate) fn new(capacity: usize) -> Self {
        let ring_max = capacity + capacity.min(SPARE_MAX);
        // Growing the ring would need twice its memory for a moment. Reserved memory costs nothing until it is used.
        let ring = VecDeque::with_capacity(ring_max);
        Self {
            capacity,
            ring_max,
            ring,
            next: 0,
            forgotten_end: 0,
            gap_end: 0,
            gap_known_at: 0,
            index: HashTable::new(),
            names: Names::default(),
        }
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// How many keys must be remembered.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// Whether a key may be forgotten that was among the newest ones when `seen` keys were recorded.
    pub(crate) fn may_be_forgotten(&self, seen: u64) -> bool {
        let oldest_wanted = seen.min(self.next).saturating_sub(self.capacity());
        let is_in_gap = seen < self.gap_known_at && self.gap_end > oldest_wanted;
        is_in_gap || self.forgotten_end > oldest_wanted
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
            replica: self.names.get(key.replica).unwrap_or_default().into(),
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
        let replica = self.names.index_of(replica);
        for (number, key) in (first..).zip(keys) {
            if number >= self.next {
                self.skip_to(number);
                self.push(Remembered { replica, ..*key });
            }
        }
    }

    /// Skips keys before `number` that can't be read any more.
    pub(crate) fn skip_to(&mut self, number: u64) {
        if number <= self.next {
            return;
        }
        if self.ring.is_empty() || number.saturating_sub(self.next) >= self.ring_max as u64 {
            self.ring.clear();
            self.index.clear();
            self.next = self.next.max(number);
        }
        while self.next < number {
            self.push(VACANT);
        }
        (self.gap_end, self.gap_known_at) = (number, self.gap_known_at.max(number));
    }

    fn push(&mut self, key: Remembered) {
        if self.ring.len() == self.ring_max {
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

    /// Makes room in the index, so that it does not grow step by step.
    fn reserve(&mut self, keys: usize) {
        let (first, ring) = (self.first(), &self.ring);
        self.index.reserve(keys, |&low| ring[low.wrapping_sub(first as u32) as usize].hash as u64);
    }

    fn forget_oldest(&mut self) {
        let low = self.first() as u32;
        let Some(oldest) = self.ring.pop_front() else { return };
        self.forgotten_end = self.first();
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
        let gap_end = self.gap_end;
        // Later requests can only repeat one of these.
        let wanted = if self.ring.is_empty() { self.capacity } else { self.ring_max };
        let mut from = self.next.max(end.saturating_sub(slots.min(wanted as u64)));
        self.skip_to(from);
        self.reserve(end.saturating_sub(from) as usize);
        while from < end {
            let run = run_of(from, end, slots);
            let text = disk.read(FileKind::Keys, slot_offset(from, slots), run * SLOT_BYTES)?;
            for (number, slot) in (from..from + run).zip(text.chunks(SLOT_BYTES as usize)) {
                if let Some((key, name)) = decode_slot(number, slot) {
                    self.learn(number, &[key], name);
                }
            }
            from += run;
            self.skip_to(from);
        }
        if self.gap_end > gap_end {
            // No later request can repeat a key that nobody can read.
            self.gap_known_at = self.next;
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
        let name = self.names.get(key.replica).unwrap_or_default().as_bytes();
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
fn decode_slot(number: u64, mut slot: &[u8]) -> Option<(Remembered, &str)> {
    let crc = slot.try_get_u32_le().ok()?;
    if crc32c::crc32c(slot) != crc || slot.try_get_u32_le().ok()? != number as u32 {
        return None;
    }
    let mut key = Remembered::decode(&mut slot, 0).ok()?;
    key.token = slot.try_get_u64_le().ok()?;
    let name = slot.split(|&byte| byte == 0).next().unwrap_or_default();
    Some((key, std::str::from_utf8(name).unwrap_or_default()))
}

/// Writes a file of `wanted` slots with the keys around number `end`, including those that no header counts yet.
pub(crate) fn copy_slots(disk: &impl Disk, end: u64, wanted: u64, out: &impl FileExt) -> io::Result<()> {
    let slots = slots(disk)?;
    out.write_all_at(&preamble(wanted), 0)?;
    let (mut from, to) = (end.saturating_sub(slots), end + slots);
    while from < to {
        let run = run_of(from, to, slots).min(run_of(from, to, wanted));
        let text = disk.read(FileKind::Keys, slot_offset(from, slots), run * SLOT_BYTES)?;
        let found: Vec<_> = (from..)
            .zip(text.chunks(SLOT_BYTES as usize))
            .filter(|(number, slot)| decode_slot(*number, slot).is_some())
            .collect();
        if found.len() as u64 == run {
            out.write_all_at(&text, slot_offset(from, wanted))?;
        } else {
            for (number, slot) in found {
                out.write_all_at(slot, slot_offset(number, wanted))?;
            }
        }
        from += run;
    }
    Ok(())
}

/// The number after the highest one in the file, for a journal whose header is lost.
pub(crate) fn end_of_file(disk: &impl Disk) -> io::Result<u64> {
    let slots = slots(disk)?;
    let mut end = 0;
    for first in (0..slots).step_by(RUN_SLOTS as usize) {
        let text = disk.read(FileKind::Keys, slot_offset(first, slots), RUN_SLOTS * SLOT_BYTES)?;
        for slot in text.chunks(SLOT_BYTES as usize) {
            let number = slot.get(4..8).unwrap_or_default().try_get_u32_le().map_or(0, u64::from);
            if decode_slot(number, slot).is_some() {
                end = end.max(number + 1);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const CAPACITY: usize = 50;

    fn key(number: u64) -> Remembered {
        Remembered { hash: u128::from(number) + 1, ..VACANT }
    }

    #[test]
    fn key_among_the_newest_at_arrival_is_found_or_may_be_forgotten() {
        let mut random = Random(1);
        let (mut found, mut refused) = (0, 0);
        for _ in 0..2_000 {
            let mut keys = Keys::new(CAPACITY);
            let mut record = |keys: &mut Keys, most: usize| {
                for _ in 0..random.below(most) {
                    // Now and then, keys are skipped that cannot be read any more.
                    let number = keys.next() + if random.chance(1) { 3 } else { 0 };
                    keys.learn(number, &[key(number)], "r");
                }
            };
            record(&mut keys, 150);
            let seen = keys.next();
            let oldest = seen.saturating_sub(CAPACITY as u64);
            let repeated: Vec<_> = (oldest..seen).filter(|&number| keys.find(key(number).hash).is_some()).collect();
            record(&mut keys, 110);
            if keys.may_be_forgotten(seen) {
                refused += 1;
                continue;
            }
            found += 1;
            let is_known = |number: &u64| keys.find(key(*number).hash).is_some();
            assert!(repeated.iter().all(is_known), "all of {oldest} to {seen} are known at {}", keys.next());
        }
        assert!(found > 200 && refused > 200, "{found} {refused}");
    }

    #[test]
    fn new_keys_are_accepted_while_as_many_as_are_remembered_wait() {
        let mut keys = Keys::new(CAPACITY);
        for number in 0..500 {
            keys.learn(number, &[key(number)], "r");
            assert!(!keys.may_be_forgotten(number.saturating_sub(CAPACITY as u64 - 1)), "{number}");
        }
        assert!(keys.may_be_forgotten(0) && !keys.may_be_forgotten(u64::MAX));
    }

    #[test]
    fn names_of_many_replicas_are_told_apart() {
        let mut keys = Keys::new(70_000);
        for number in 0..70_000 {
            keys.learn(number, &[key(number)], &format!("append-{number}"));
        }
        let name_of = |number| keys.ack(keys.find(key(number).hash).expect("known")).replica;
        assert_eq!((&*name_of(0), &*name_of(65_534)), ("append-0", "append-65534"));
        assert_eq!(&*name_of(65_535), "append-69999", "the newest names share the last index");
    }
}
