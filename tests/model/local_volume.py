"""A local volume for local.py: files with one page cache and a disk, the journal's contents, and what can go wrong between two steps."""

from collections import defaultdict
from typing import NamedTuple

from failures import Broken, NoSpace
from rows import lines, overwrite

# The journal has SLOTS pages. Bytes are lost in pieces; both tiny, so that short histories meet their ends.
PIECE, SLOTS, FAULTS_MAX = 4, 6, 6
# How often readers wake up between two steps, and how often they take one more step.
PACES = ((0.02, 0.95), (0.05, 0.9), (0.2, 0.6), (0.8, 0.4), (0.4, 0))


class Killed(Exception):
    """The process ends in the middle of a step."""


class PowerCut(Exception):
    """The host loses what was not synced."""


class Header(NamedTuple):
    number: int
    # The last record whose rows are durable in the CSV, and the page after it.
    sequence: int
    next: int
    csv_length: int
    highest_token: int
    lease: object
    keys: int
    # How often the CSV's end was rebuilt, and the rebuild that is under way.
    rebuilds: int
    rebuild: object


class Rebuild(NamedTuple):
    """A rebuild under way: the length of the new tail, and its file."""

    length: int
    tail: int


class Record(NamedTuple):
    sequence: int
    pages: int
    token: int
    lease: int
    offset: int
    payload: bytes
    # How many of the payload's first bytes close another's line.
    prefix: int
    # The number of the first key, and (key, offset) of each.
    first_key: int
    keys: tuple

    def end(self):
        return self.offset + len(self.payload)


class Page(NamedTuple):
    record: Record
    part: int


class Torn(NamedTuple):
    cell: object


class Bytes:
    """A file of bytes: the page cache, the disk, and unsynced pieces, each of which a power cut may lose."""

    def __init__(self, content=b""):
        self.cache, self.disk, self.unsynced = list(content), list(content), []

    def write(self, offset, data):
        for i in range(0, len(data), PIECE):
            overwrite(self.cache, offset + i, data[i : i + PIECE], 0)
            self.unsynced.append((offset + i, data[i : i + PIECE]))

    def truncate(self, length):
        del self.cache[length:]
        self.unsynced.append((length, None))

    def apply(self, offset, data):
        if data is None:
            del self.disk[offset:]
        else:
            overwrite(self.disk, offset, data, 0)

    def survive(self, chance):
        for offset, data in self.unsynced:
            if chance.random() < 0.5:
                self.apply(offset, data)
        self.unsynced = []

    def sync(self):
        for offset, data in self.unsynced:
            self.apply(offset, data)
        self.unsynced = []

    def lose_power(self, chance):
        self.survive(chance)
        self.cache = list(self.disk)


class Cells:
    """A file of checksummed pages: a page that was being written is old, new or torn."""

    def __init__(self):
        self.cache, self.disk, self.unsynced = {}, {}, []

    def write(self, index, cell):
        self.cache[index] = cell
        self.unsynced.append((index, cell))

    def survive(self, chance):
        for index, cell in self.unsynced:
            if self.disk.get(index) != cell and (outcome := chance.randrange(3)):
                self.disk[index] = cell if outcome == 1 or isinstance(cell, Torn) else Torn(cell)
        self.unsynced = []

    def sync(self):
        self.disk.update(self.unsynced)
        self.unsynced = []

    def lose_power(self, chance):
        self.survive(chance)
        self.cache = dict(self.disk)


class Host:
    """The volume and its faults. Readers run between any two steps."""

    def __init__(self, chance, guards):
        self.chance, self.guards, self.trace, self.faults, self.is_calm = chance, guards, [], 0, False
        self.line_end = chance.choice((b"\n", b"\n", b"\r\n"))
        first_line = chance.choice((b"", b"<head>" + self.line_end))
        self.csv, self.quarantine, self.tails = Bytes(first_line), Bytes(), (Bytes(), Bytes())
        self.journal, self.keys, self.durable_csv = Cells(), Cells(), b""
        self.slipped, self.leases_of_row = [], defaultdict(set)
        # How many keys must be remembered; how often the disk is full; how eager readers are.
        self.keys_max = chance.choice((1, 2, 8))
        self.full_rate, self.pace = chance.choice((0, 0, 0.1, 0.3)), chance.choice(PACES)
        # Readers; what they showed; rebuilds and power cuts so far.
        self.readers, self.shown, self.epoch, self.power_cuts = [], set(), 0, 0
        # Rows that were acknowledged; how many keys were recorded, and the number of each; rows of keys that may be forgotten.
        self.acknowledged, self.keys_recorded, self.key_numbers, self.forgotten = set(), 0, {}, set()
        for i in (0, 1):
            self.journal.write(f"header {i}", Header(1 - i, 0, 0, len(first_line), 0, None, 0, 0, None))
        self.journal.sync()

    def on(self, guard):
        return guard in self.guards

    def may_fail(self, probability):
        if self.is_calm or self.faults >= FAULTS_MAX or self.chance.random() >= probability:
            return False
        self.faults += 1
        return True

    def step(self, what):
        """Between two steps readers go on, the process may be killed, and the power may be cut."""
        self.trace.append(what)
        self.run_readers()
        if self.may_fail(0.02):
            self.trace.append("KILL")
            raise Killed()
        if self.may_fail(0.02):
            self.lose_power()
            raise PowerCut()

    def run_readers(self):
        wakes, goes_on = self.pace
        if self.readers and self.chance.random() < wakes:
            next(self.chance.choice(self.readers))
            while self.chance.random() < goes_on:
                next(self.chance.choice(self.readers))

    def lose_power(self):
        self.durable_csv = bytes(self.csv.disk)
        for file in (self.csv, self.quarantine, *self.tails, self.journal, self.keys):
            file.lose_power(self.chance)
        self.trace.append(f"POWER CUT, CSV {bytes(self.csv.cache)!r}")

    def sync(self, file, what):
        self.step(f"before the sync of {what}")
        if self.may_fail(0.02):
            self.trace.append(f"the sync of {what} FAILS")
            # The cache is wrong from now on: clean, yet not on the disk.
            file.survive(self.chance)
            self.flag_failed_sync()
            raise Killed()
        file.sync()
        self.step(f"{what} synced")

    def flag_failed_sync(self):
        if self.on("flag_failed_sync"):
            self.journal.cache["sync failed"] = True

    def sync_failed(self):
        return self.journal.cache.get("sync failed")

    # Headers and records

    def headers(self):
        return [self.journal.cache.get(f"header {i}") for i in (0, 1)]

    def newest_header(self):
        both = [(cell, i) for i, cell in enumerate(self.headers()) if isinstance(cell, Header)]
        if not both:
            raise Broken("both headers are lost")
        return max(both, key=lambda pair: pair[0].number)

    def write_cell(self, index, cell):
        """Readers may see a page that is partly written."""
        self.journal.write(index, Torn(cell))
        self.step(f"half of {index}")
        self.journal.write(index, cell)

    def write_header(self, header):
        newest, index = self.newest_header()
        if self.on("two_headers"):
            index = 1 - index
        if self.on("sync_before_header"):
            self.sync(self.journal, "the newest header")
        self.write_cell(f"header {index}", header._replace(number=newest.number + 1))
        if self.on("header_sync"):
            self.sync(self.journal, "the header")

    def record_at(self, at):
        cells = self.journal.cache
        cell, is_torn = cells.get(at), False
        if isinstance(cell, Torn) and not self.on("checksum"):
            cell, is_torn = cell.cell, True
        if not isinstance(cell, Page) or cell.part:
            return None
        record = cell.record
        for part in range(1, record.pages):
            if cells.get(at + part) != (record, part):
                if self.on("checksum"):
                    return None
                is_torn = True
        return record._replace(payload=record.payload[:2]) if is_torn else record

    def record_after(self, sequence, at):
        """The next record and the page after it. A record that does not fit before the journal's end begins at page 0."""
        for start in (at, 0):
            record = self.record_at(start)
            if record and (record.sequence == sequence + 1 or not self.on("sequence")):
                return record, start + record.pages
        return None

    def records(self, header):
        found, sequence, at = [], header.sequence, header.next
        while len(found) < SLOTS and (next_one := self.record_after(sequence, at)):
            record, at = next_one
            sequence = record.sequence
            found.append(record)
        return found

    def write_record(self, record, at):
        for part in range(record.pages):
            self.write_cell(at + part, Page(record, part))
        self.step(f"record {record.sequence} on page {at}: {record.payload} at {record.offset}, keys {record.keys}")

    def note_keys(self, record, entries):
        """Notes which rows may stand twice: their key was forgotten rightly when this request arrived."""
        for number, entry in enumerate([entry for entry in entries if entry.key], record.first_key):
            before = self.key_numbers.get(entry.key)
            if before is not None and before < entry.keys_recorded - self.keys_max:
                self.forgotten.update(entry.names)
            self.key_numbers[entry.key] = number
            self.keys_recorded = max(self.keys_recorded, number + 1)

    # The CSV

    def append(self, data, may_be_full=False):
        """One write, in one piece for other writers; readers see any part of it, rows at a time, too."""
        offset = len(self.csv.cache)
        full_after = len(data)
        if may_be_full and not self.is_calm and self.chance.random() < self.full_rate:
            full_after = self.chance.choice([self.chance.randrange(len(data)), data[:-1].rfind(b"\n") + 1])
        begin = 0
        while begin < full_after:
            row_end = data.find(b"\n", begin) + 1 or len(data)
            end = min(begin + PIECE, row_end, full_after)
            self.csv.write(offset + begin, data[begin:end])
            begin = end
            self.step(f"CSV piece to {offset + begin}")
        if full_after < len(data):
            self.trace.append("the disk is FULL")
            raise NoSpace()
        return offset

    def append_foreign(self, line):
        self.trace.append(f"foreign {line}")
        self.csv.write(len(self.csv.cache), line)

    def slip(self, probability):
        """Somebody appends a line without any lock, in the middle of an append."""
        if not self.is_calm and self.chance.random() < probability and not lines(self.csv.cache)[1]:
            self.slipped.append(b"<s%d>" % len(self.slipped))
            self.append_foreign(self.slipped[-1] + self.line_end)

    def quarantine_from(self, length, what):
        """Quarantines what stands from there on, and returns it."""
        old = bytes(self.csv.cache[length:])
        if self.on("quarantine_before_truncate"):
            self.quarantine.write(len(self.quarantine.cache), old)
            self.sync(self.quarantine, what)
        return old

    def truncate(self, length, ours=b""):
        """Cuts the CSV. Bytes of `ours` are in the journal and need no quarantine."""
        old = bytes(self.csv.cache[length:])
        if not ours.startswith(old) and old not in bytes(self.quarantine.disk):
            raise Broken(f"{old!r} was cut without quarantine")
        self.csv.truncate(length)
        self.step(f"CSV truncated to {length}")
