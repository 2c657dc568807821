"""What a replica does to the files under their locks: refresh, repair, rebuild, append, checkpoint.

Each method is a generator. It yields before everything that others may see or do in between.
"""

from failures import NoSpace, Stuck
from journal import Header, Record, Slot, known_keys, live, newest_header, records_since, slot_of
from rows import is_foreign, is_whole, lines, row_of
from rules import DIRECT


class Ledger:
    def __init__(self, world, host, name):
        self.world, self.host, self.name = world, host, name
        self.locks, self.lease_id = {}, 0
        # The call that is under way: a file that is written, or "truncate".
        self.calling = None
        # True while the next bytes at the CSV's end are ours: a foreign append in this moment is not protected.
        self.is_writing_rows = False
        self.forget()

    def forget(self):
        """Nothing that was known before a failure is believed."""
        self.calling = None
        self.header, self.sequence, self.stable, self.attempt, self.end = None, None, None, None, 0
        # What the batch's requests are answered with, if its rows are written.
        self.outcomes = []
        # Bytes of a foreign whole line without its line end, at the CSV's end.
        self.open_line = b""
        self.stored_keys = []

    def on(self, rule):
        return rule in self.world.rules

    def has_lost(self, file):
        return file in self.locks and self.locks[file].lost

    # Files

    def is_direct(self, file):
        if file == "journal":
            return self.on("direct_journal")
        if file == "csv":
            return self.on("direct_rows") and self.on("answer_after_rows")
        return self.world.protocol == DIRECT

    def put(self, file, offset, data):
        self.world.say(f"{self.name} writes {file}[{offset}] {bytes(data) if isinstance(data, bytes) else data}")
        self.calling = file
        if self.is_direct(file):
            yield from self.host.direct_write(file, offset, data, self.locks.get(file))
        else:
            self.host.write(file, offset, data, self.locks.get(file))
            yield None
        self.calling = None

    def sync(self, file):
        if not self.is_direct(file):
            yield from self.host.fsync(file)

    def read(self, file):
        if self.is_direct(file):
            return (yield from self.host.direct_read(file))
        yield None
        return self.host.read(file, file in self.locks)

    def write_cell(self, file, index, cell):
        yield from self.put(file, index, [cell])
        yield from self.sync(file)

    def write_record(self, record):
        yield from self.write_cell("journal", slot_of(record.sequence, self.world.slots), record)

    def fresh_size(self):
        yield from self.host.round_trip()
        return len(self.world.server.memory["csv"])

    # Refresh

    def refresh(self):
        """Learns what others recorded, and makes the CSV match the last record."""
        if self.sequence is not None and not self.on("refresh"):
            return
        journal = yield from self.read("journal")
        header, index = newest_header(journal)
        is_known = self.header is not None and header.number == self.header.number
        if not is_known:
            if self.on("header_anew"):
                yield from self.write_cell("journal", index, header)
            else:
                yield from self.sync("journal")
            keys = yield from self.read("keys")
            first = max(0, header.keys - self.world.key_slots)
            self.stored_keys = [cell for cell in keys if isinstance(cell, Slot) and first <= cell.number < header.keys]
        self.take_over(header, index, records_since(journal, header, self.world.slots, self.world.rules))
        if (yield from self.may_skip_csv(is_known)):
            return
        yield from self.match_csv()

    def take_over(self, header, index, records):
        self.header, self.header_index, self.records = header, index, records
        self.sequence, self.checksum = header.sequence, header.checksum
        self.highest_token, self.highest_lease = header.highest_token, header.lease
        for record in records:
            self.sequence, self.checksum = record.sequence, record.checksum
            if record.token >= self.highest_token:
                self.highest_token, self.highest_lease = record.token, record.lease

    def recorded_keys(self):
        return known_keys(self.records, self.header.keys)

    def key_count(self):
        return self.header.keys + len(self.recorded_keys())

    def find_key(self, key):
        count = self.key_count()
        for slot in reversed(self.stored_keys + self.recorded_keys()):
            if slot.key == key and slot.number >= count - self.world.key_slots:
                return slot
        return None

    def may_be_forgotten(self, keys_seen):
        """Whether a key that was among the newest when the request arrived may be forgotten by now."""
        if not self.on("keys_seen"):
            return False
        if not self.on("keys_remembered"):
            return self.key_count() - keys_seen >= self.world.keys_max
        return max(0, self.key_count() - self.world.key_slots) > max(0, keys_seen - self.world.keys_max)

    def may_skip_csv(self, is_known):
        """The rows are known to be stable, and the CSV ends where they end: there is nothing to read or to write anew."""
        end = self.records[-1].offset + len(self.records[-1].payload) if self.records else self.header.csv_length
        open_line = b""
        if self.on("skip_own_rows") and is_known and self.stable == self.checksum:
            end, open_line = self.end, self.open_line
        elif not self.on("skip_hinted_rows") or self.world.hint != self.checksum:
            return False
        if (yield from self.fresh_size()) != end:
            return False
        self.end, self.stable, self.open_line = end, self.checksum, open_line
        return True

    def match_csv(self):
        self.is_writing_rows = True
        csv = yield from self.read("csv")
        last = live(self.records)[-1:]
        if last and self.on("repair"):
            yield from self.repair(last[0], csv)
        csv = yield from self.read("csv")
        rest = lines(csv)[1]
        if self.on("close_open_line") and is_whole(rest.rstrip(b"\r") + b"\n"):
            self.open_line, rest = rest, b""
        else:
            self.open_line = b""
        if rest:
            yield from self.quarantine(rest)
            yield from self.truncate(len(csv) - len(rest))
        self.end, self.is_writing_rows, self.stable = len(csv) - len(rest), False, self.checksum

    def repair(self, record, csv):
        """Makes the record's rows stand in the CSV, stable."""
        if not record.payload:
            # Rows that stand prove that their record is stable. This one has none.
            if self.on("rowless_anew"):
                yield from self.write_record(record)
            return
        found = csv[record.offset : record.offset + len(record.payload)]
        if bytes(found) == record.payload:
            if self.on("rows_anew") and self.stable != record.checksum:
                yield from self.put("csv", record.offset, record.payload)
                yield from self.sync("csv")
            return
        if self.on("record_anew"):
            yield from self.write_record(record)
        else:
            yield from self.sync("journal")
        is_old_tail = record.replaced and bytes(csv[record.offset :]).startswith(record.replaced)
        if is_part(found, record.payload) and not is_old_tail:
            yield from self.put("csv", record.offset, record.payload)
            if self.on("rows_anew"):
                yield from self.sync("csv")
        else:
            yield from self.rebuild(record, csv)

    def rebuild(self, record, csv):
        """Foreign bytes stand where the record's rows belong. Its rows are written there, and foreign whole lines behind them."""
        old = bytes(csv[record.offset :])
        ours = lines(record.payload)[0]
        whole, rest = lines(old)
        found = [line.split(b"\0")[-1] for line in whole + [rest.rstrip(b"\r") + self.world.line_end]]
        new = record.payload + b"".join(line for line in found if line not in ours and is_foreign(line))
        yield from self.quarantine(old)
        if self.on("rebuild_record") and (record.replaced is None or new != record.payload):
            # The highest token and its lease go on: the rebuilding replica's own token may yet be refused.
            tail = self.next_record(self.highest_token, self.highest_lease, record.offset, new)
            yield from self.record(tail._replace(replaced=old))
        yield from self.truncate(record.offset)
        yield from self.put("csv", record.offset, new)
        yield from self.sync("csv")
        self.end, self.stable, self.open_line = record.offset + len(new), self.checksum, b""

    def quarantine(self, data):
        if not self.on("quarantine_first") or not data:
            return
        file = f"quarantine{self.lease_id}" if self.on("own_quarantine") else "quarantine"
        offset = len((yield from self.read(file)))
        yield from self.put(file, offset, data)
        yield from self.sync(file)

    def truncate(self, length, ours=b""):
        self.world.say(f"{self.name} truncates the CSV to {length}")
        self.calling = "truncate"
        yield from self.host.truncate("csv", length, self.locks.get("csv"), ours)
        self.calling = None

    # Append

    def next_record(self, token, lease, offset, payload):
        return Record(self.sequence + 1, token, lease, offset, payload, (), None, None, self.checksum, self.world.new_checksum())

    def record(self, record):
        if record.sequence - self.header.sequence > self.world.slots:
            raise Stuck()
        yield from self.write_record(record)
        self.take_over(self.header, self.header_index, self.records + [record])

    def make_space(self):
        """A rebuild and a cancellation need a slot, too."""
        used = self.sequence - self.header.sequence
        if used >= max(1, self.world.slots - 3) or used and self.world.flip(0.25, "checkpoint"):
            yield from self.checkpoint()

    def append(self, requests, token, lease):
        """One record. Returns (outcome, offset) of as many requests as it holds, one at least."""
        self.attempt = None
        is_stale = token < self.highest_token or token == self.highest_token and lease != self.highest_lease
        if self.on("fence") and is_stale:
            return [("fenced", None)]
        prefix = self.line_end_prefix()
        outcomes, written, keys, payload = [], [], [], prefix
        for request in requests:
            if request.key and self.on("known_keys"):
                if self.on("repeated_keys") and request.key in [key for key, _ in keys]:
                    break
                if slot := self.find_key(request.key):
                    outcomes.append(("known", slot.offset))
                    continue
                if self.may_be_forgotten(request.keys_seen):
                    outcomes.append(("unknown", None))
                    continue
            outcomes.append(("written", self.end + len(payload)))
            if request.key:
                keys.append((request.key, self.end + len(payload)))
            written.append(request)
            payload += b"".join(row_of(token, name, self.world.line_end) for name in request.names)
        if not written:
            return outcomes
        self.outcomes = outcomes
        return self.outcomes_if((yield from self.write_batch(token, lease, tuple(keys), payload, written)))

    def outcomes_if(self, outcome):
        """The requests' outcomes, if this is what became of their rows."""
        if outcome == "written":
            return self.outcomes
        return [(outcome, None) if found == "written" else (found, offset) for found, offset in self.outcomes]

    def line_end_prefix(self):
        """The line end that closes a foreign open line; half of a line end may stand there."""
        if not self.open_line:
            return b""
        return b"\n" if self.open_line.endswith(b"\r") and self.world.line_end == b"\r\n" else self.world.line_end

    def write_batch(self, token, lease, keys, payload, requests):
        yield from self.make_space()
        offset, open_line = self.end, self.open_line
        record = self.next_record(token, lease, offset, payload)._replace(keys=keys)
        if not self.on("record_first"):
            self.host.write("csv", offset, record.payload, self.locks.get("csv"))
            yield None
        self.attempt = record
        self.world.will_record(token, lease, requests, self.key_count())
        yield from self.record(record)
        self.world.recorded(token)
        self.end = offset + len(record.payload)
        try:
            yield from self.append_rows(record)
        except NoSpace:
            yield from self.revoke(record)
            self.open_line = open_line
            return "disk_full"
        return "written"

    def fence(self, token, lease):
        """Before a replica sleeps under its lease, a record without rows refuses all older tokens."""
        if token < self.highest_token or token == self.highest_token and lease != self.highest_lease:
            return
        yield from self.make_space()
        yield from self.record(self.next_record(token, lease, self.end, b""))
        self.stable = self.checksum
        self.world.fenced(token)

    def append_rows(self, record):
        offset = record.offset
        if self.on("fresh_size"):
            size = yield from self.fresh_size()
            self.is_writing_rows = True
            if size > offset:
                yield from self.rebuild(record, (yield from self.host.direct_read("csv")))
                self.is_writing_rows = False
                return
        else:
            yield None
        self.is_writing_rows = True
        if not self.is_direct("csv") and not self.on("fresh_size"):
            offset = len(self.host.pages["csv"])  # O_APPEND: the end by the host's cache.
        yield from self.put("csv", offset, record.payload)
        self.end, self.open_line = offset + len(record.payload), b""
        if self.on("answer_after_rows"):
            yield from self.sync("csv")
        self.stable, self.is_writing_rows = record.checksum, False

    def revoke(self, record):
        """The disk is full after the record is stable. No row is written; and no reader can have seen one, or the outcome is unknown."""
        csv = yield from self.host.direct_read("csv")
        tail, is_written = csv[record.offset :], len(csv) >= record.offset + len(record.payload)
        is_seen = is_written and self.on("doubt_whole_rows")
        if is_seen or self.sequence != record.sequence or not is_part(tail, record.payload) or self.on("leave_when_full"):
            raise NoSpace("the rows may have been seen")
        # A record that is taken back while its rows stand would leave them, if somebody appends behind them.
        if tail:
            yield from self.truncate(record.offset, record.payload)
        if self.on("erase_when_full"):
            yield from self.write_cell("journal", slot_of(record.sequence, self.world.slots), None)
            self.take_over(self.header, self.header_index, self.records[:-1])
        elif self.on("cancel_when_full"):
            cancellation = self.next_record(record.token, record.lease, record.offset, b"")
            yield from self.record(cancellation._replace(replaced=b"", cancels=record.sequence))
        self.end, self.stable, self.is_writing_rows = record.offset, self.checksum, False

    def outcome_of_attempt(self):
        """After a failure, new locks and a refresh: was the record of the failed append written? None: certainly not."""
        attempt = self.attempt
        if attempt is None:
            return None
        cancelled = {record.cancels for record in self.records}
        for record in self.records:
            if self.is_own(record, attempt):
                return "disk_full" if record.sequence in cancelled else "written"
        if attempt.sequence > self.header.sequence:
            return None
        if attempt.checksum == self.header.checksum:
            return "written"
        return "unknown" if self.on("doubt_checkpointed") else None

    def is_own(self, record, attempt):
        if self.on("own_by_checksum"):
            return record.checksum == attempt.checksum
        return record[:3] == attempt[:3]

    # Checkpoint

    def checkpoint(self):
        """Gives up the journal's records: their rows are stable, and so are their keys before the header says so."""
        yield from self.sync("csv")
        if self.on("keys_before_header"):
            yield from self.store_keys()
        token, lease = (self.highest_token, self.highest_lease) if self.on("token_in_header") else (0, 0)
        length = self.end - len(self.open_line)
        header = Header(self.header.number + 1, self.sequence, self.checksum, length, token, lease, self.key_count())
        keys = self.recorded_keys()
        index = 1 - self.header_index if self.on("two_headers") else self.header_index
        yield from self.write_cell("journal", index, header)
        if not self.on("keys_before_header"):
            yield from self.store_keys()
        self.stored_keys = [slot for slot in self.stored_keys + keys if slot.number >= header.keys - self.world.key_slots]
        highest = self.highest_token, self.highest_lease
        self.take_over(header, index, [])
        self.highest_token, self.highest_lease = highest

    def store_keys(self):
        """The key's number chooses its slot, so each holder writes the same content for it."""
        keys = self.recorded_keys()
        if not keys:
            return
        if self.on("lock_keys"):
            self.locks["keys"] = yield from self.host.lock("keys")
        for slot in keys:
            yield from self.put("keys", slot.number % self.world.key_slots, [slot])
        yield from self.sync("keys")
        if "keys" in self.locks:
            yield from self.host.round_trip()
            self.host.unlock(self.locks.pop("keys"))


def is_part(found, payload):
    """Nothing but the payload's bytes stands there, perhaps with holes or cut short."""
    return len(found) <= len(payload) and all(byte in (0, own) for byte, own in zip(found, payload))
