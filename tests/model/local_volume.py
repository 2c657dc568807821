"""A local volume for local.py: files with one page cache and a disk, the journal's contents, and what can go wrong between two steps."""

from typing import NamedTuple

from failures import Broken
from rows import overwrite

# The journal has SLOTS records. Bytes are lost in pieces; both tiny, so that short histories meet their ends.
PIECE, SLOTS, FAULTS_MAX = 4, 5, 6


class Killed(Exception):
    """The process ends in the middle of a step."""


class PowerCut(Exception):
    """The host loses what was not synced."""


class Header(NamedTuple):
    number: int
    sequence: int
    csv_length: int
    highest_token: int
    keys: int
    rebuild: object


class Rebuild(NamedTuple):
    """A rebuild under way: the last record of the new tail, its length, the keys stored, and the tail file."""

    sequence: int
    length: int
    keys: int
    tail: int


class Record(NamedTuple):
    sequence: int
    token: int
    lease: int
    offset: int
    payload: bytes
    key: object


class Torn(NamedTuple):
    cell: object


class Bytes:
    """A file of bytes: the page cache, the disk, and unsynced pieces, each of which a power cut may lose."""

    def __init__(self):
        self.cache, self.disk, self.unsynced = [], [], []

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
                self.disk[index] = cell if outcome == 1 else Torn(cell)
        self.unsynced = []

    def sync(self):
        self.disk.update(self.unsynced)
        self.unsynced = []

    def lose_power(self, chance):
        self.survive(chance)
        self.cache = dict(self.disk)


class Host:
    """The volume and its faults."""

    def __init__(self, chance, guards):
        self.chance, self.guards, self.trace, self.faults, self.is_calm = chance, guards, [], 0, False
        self.csv, self.quarantine, self.tails = Bytes(), Bytes(), (Bytes(), Bytes())
        self.journal, self.keys, self.durable_csv = Cells(), Cells(), b""
        self.slipped, self.leases_of_token = [], {}
        self.journal.write("header 0", Header(1, 0, 0, 0, 0, None))
        self.journal.write("header 1", Header(0, 0, 0, 0, 0, None))
        self.journal.sync()

    def on(self, guard):
        return guard in self.guards

    def may_fail(self, probability):
        if self.is_calm or self.faults >= FAULTS_MAX or self.chance.random() >= probability:
            return False
        self.faults += 1
        return True

    def step(self, what):
        """Between two steps, the process may be killed and the power may be cut."""
        self.trace.append(what)
        if self.may_fail(0.03):
            self.trace.append("KILL")
            raise Killed()
        if self.may_fail(0.03):
            self.lose_power()
            raise PowerCut()

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
            if self.on("flag_failed_sync"):
                self.journal.cache["sync failed"] = True
            raise Killed()
        file.sync()
        self.step(f"{what} synced")

    def sync_failed(self):
        return self.journal.cache.get("sync failed")

    def newest_header(self):
        both = [(cell, i) for i in (0, 1) if isinstance(cell := self.journal.cache.get(f"header {i}"), Header)]
        if not both:
            raise Broken("both headers are lost")
        return max(both, key=lambda pair: pair[0].number)

    def write_header(self, header):
        newest, index = self.newest_header()
        if self.on("two_headers"):
            index = 1 - index
        if self.on("sync_before_header"):
            self.sync(self.journal, "the newest header")
        self.journal.write(f"header {index}", header._replace(number=newest.number + 1))
        if self.on("header_sync"):
            self.sync(self.journal, "the header")

    def records(self, header):
        found = []
        for sequence in range(header.sequence + 1, header.sequence + SLOTS + 1):
            cell = self.journal.cache.get(sequence % SLOTS)
            if isinstance(cell, Torn) and not self.on("checksum") and isinstance(cell.cell, Record):
                cell = cell.cell._replace(payload=cell.cell.payload[:2])
            if not isinstance(cell, Record) or self.on("sequence") and cell.sequence != sequence:
                break
            found.append(cell)
        return found

    def append(self, data):
        offset = len(self.csv.cache)
        for i in range(0, len(data), PIECE):
            self.csv.write(offset + i, data[i : i + PIECE])
            self.step(f"CSV piece at {offset + i}")
        return offset

    def quarantine_from(self, length, what):
        """Quarantines what stands from there on, and returns it."""
        old = bytes(self.csv.cache[length:])
        if self.on("quarantine_before_truncate"):
            self.quarantine.write(len(self.quarantine.cache), old)
            self.sync(self.quarantine, what)
        return old

    def truncate(self, length):
        old = bytes(self.csv.cache[length:])
        if old not in bytes(self.quarantine.disk):
            raise Broken(f"{old!r} was cut without quarantine")
        self.csv.truncate(length)
        self.step("CSV truncated")
