"""A replica on a local volume: refresh, repair, rebuild, append and checkpoint, in the order of docs/design/storage.md."""

from typing import NamedTuple

from failures import NoSpace
from local_volume import SLOTS, Header, Killed, Rebuild, Record, Torn
from rows import is_foreign, is_whole, lines, row_of, text_of

# A record of more rows needs a second page.
PAGE_ROWS = 2


class Entry(NamedTuple):
    """One request of a batch: its rows, its key, and how many keys its replica knew, and how many there were, when it arrived."""

    names: tuple
    key: object
    keys_seen: int
    keys_recorded: int


class Key(NamedTuple):
    number: int
    key: str
    offset: int


class Replica:
    """What one process knows, and its way through refresh, append and checkpoint."""

    def __init__(self, host):
        self.host, self.highest_token, self.highest_lease = host, 0, None
        # The last known record and the page after it.
        self.sequence, self.next = 0, 0
        # The newest keys by number, and the number of the next.
        self.keys, self.next_key = {}, 0
        self.verified, self.has_started, self.known_header = 0, False, 0
        self.capacity = host.keys_max * (2 if host.on("keys_remembered") else 1)

    # Keys

    def learn_key(self, key):
        if key.number >= self.next_key:
            self.keys[key.number], self.next_key = key, key.number + 1

    def forget_old_keys(self):
        self.keys = {number: key for number, key in self.keys.items() if number >= self.next_key - self.capacity}

    def find_key(self, name):
        return next((key for key in reversed(self.keys.values()) if key.key == name), None)

    def may_be_forgotten(self, keys_seen):
        """Whether a key that was among the newest when the request arrived may be forgotten by now."""
        if not self.host.on("keys_seen"):
            return False
        if not self.host.on("keys_remembered"):
            return self.next_key - keys_seen >= self.host.keys_max
        return max(0, self.next_key - self.capacity) > max(0, keys_seen - self.host.keys_max)

    # Refresh

    def refresh(self):
        host = self.host
        header, _ = host.newest_header()
        in_doubt = host.sync_failed()
        if in_doubt:
            self.write_all_anew(header)
        if header.number != self.known_header and host.on("header_before_recycling"):
            host.sync(host.journal, "another's header")
        self.known_header = header.number
        if self.sequence < header.sequence or not self.has_started:
            self.highest_token, self.highest_lease = header.highest_token, header.lease
            self.verified = max(self.verified, header.sequence)
            stored = [cell for cell in host.keys.cache.values() if isinstance(cell, Key) and cell.number < header.keys]
            for key in sorted(stored):
                if key.number >= header.keys - self.capacity:
                    self.learn_key(key)
            self.next_key = max(self.next_key, header.keys)
        if self.sequence <= header.sequence:
            self.sequence, self.next = header.sequence, header.next
        records = host.records(header)
        for record in records:
            if record.sequence > self.sequence:
                self.learn(record)
        if not host.on("verify"):
            return
        self.verify(header, records, in_doubt)
        self.has_started, self.verified = True, self.sequence
        host.journal.cache.pop("sync failed", None)

    def learn(self, record):
        found = self.host.record_after(self.sequence, self.next)
        self.sequence, self.next = record.sequence, found[1] if found else self.next
        if record.token >= self.highest_token:
            self.highest_token, self.highest_lease = record.token, record.lease
        for number, (key, offset) in enumerate(record.keys, record.first_key):
            self.learn_key(Key(number, key, offset))
        self.forget_old_keys()

    def write_all_anew(self, header):
        """After a failed sync, nothing in the cache is believed before it is written and synced again."""
        host = self.host
        for index, cell in list(host.journal.cache.items()):
            if index != "sync failed":
                host.journal.write(index, cell)
        if host.on("keys_anew"):
            for index, cell in list(host.keys.cache.items()):
                host.keys.write(index, cell)
        if header.rebuild:
            tail = host.tails[header.rebuild.tail]
            tail.write(0, bytes(tail.cache))
        for file, what in ((host.tails[0], "tail 0"), (host.tails[1], "tail 1"), (host.keys, "keys"), (host.journal, "journal")):
            host.sync(file, f"{what}, after a failed sync")

    def verify(self, header, records, in_doubt):
        """Compares new records with the CSV. A record that was cut short by a kill is completed; all else is a rebuild."""
        host = self.host
        todo = records if in_doubt else [record for record in records if record.sequence > self.verified]
        must_rebuild = in_doubt or header.rebuild
        ends = {record.sequence: end for record, end in zip(records, ends_before(records, header.csv_length))}
        for record in todo:
            between = bytes(host.csv.cache[ends[record.sequence] : record.offset]) + record.payload[: record.prefix]
            if record.payload and lines(between)[1] and host.on("whole_lines_before"):
                must_rebuild = True
            found = bytes(host.csv.cache[record.offset : record.end()])
            if found == record.payload and not must_rebuild:
                continue
            tail = bytes(host.csv.cache[record.offset :])
            is_cut_short = len(host.csv.cache) >= record.offset and record.payload.startswith(tail)
            if record is todo[-1] and not must_rebuild and is_cut_short:
                if host.on("sync_before_repair"):
                    host.sync(host.journal, "a record found, before its rows are written")
                host.append(record.payload[len(tail) :])
                continue
            self.rebuild(header, records)
            return
        # A power cut may have left holes outside of our rows.
        found = lines(host.csv.cache[header.csv_length :])[0]
        has_hole = not all(is_whole(line) for line in found)
        if header.rebuild or has_hole and not self.has_started and host.on("scan_at_start"):
            self.rebuild(header, records)

    # Rebuild

    def rebuild(self, header, records):
        """What follows the checkpoint is quarantined and written anew: our rows from the journal, foreign whole lines kept."""
        host = self.host
        old = host.quarantine_from(header.csv_length, "the old tail in quarantine")
        new, which = self.new_tail(header, records, old)
        tail = host.tails[which]
        tail.truncate(0)
        tail.write(0, new)
        host.sync(tail, "the new tail")
        keys = self.store_keys(header, records, {})
        rebuilds = header.rebuilds + 1
        if host.on("rebuild_journaled"):
            host.write_header(header._replace(rebuilds=rebuilds, rebuild=Rebuild(len(new), which)))
        host.epoch += 1
        host.truncate(header.csv_length)
        if host.on("truncate_before_tail"):
            host.sync(host.csv, "the truncated CSV")
        host.append(new)
        host.sync(host.csv, "the rebuilt CSV")
        self.write_header(header.csv_length + len(new), keys, rebuilds)

    def new_tail(self, header, records, old):
        host, line_end = self.host, self.host.line_end
        ours = [line for record in records for line in lines(record.payload[record.prefix :])[0]]
        if not header.rebuild:
            old = close_lines(old, records, header.csv_length)
        # A hole ends what stands before it.
        old_lines, rest = lines(old)
        found, which = [line.split(b"\0")[-1] for line in old_lines + [rest.rstrip(b"\r") + line_end]], 0
        if header.rebuild:
            # An interrupted rebuild: its tail is durable, and rows appended since are kept.
            done = lines(host.tails[header.rebuild.tail].cache[: header.rebuild.length])[0]
            which = 1 - header.rebuild.tail
            known = {text_of(line) for line in done}
            found = done + [line for line in found if text_of(line) not in known]
        new, next_own = b"", 0
        for line in found:
            if line in ours[next_own:]:
                end = ours.index(line, next_own) + 1
                new += b"".join(ours[next_own:end])
                next_own = end
            elif line not in ours and (is_foreign(line) or is_whole(line) and b":" in line and not host.on("claims_token")):
                new += line
        return new + b"".join(ours[next_own:]), which

    # Checkpoint

    def store_keys(self, header, records, landed):
        """The key's number chooses its slot."""
        host, count = self.host, header.keys
        for record in records:
            for number, (key, offset) in enumerate(record.keys, record.first_key):
                host.keys.write(number % self.capacity, Key(number, key, offset + landed.get(record.sequence, 0)))
                count = number + 1
        if host.on("keys_before_header"):
            host.sync(host.keys, "keys")
        return count

    def write_header(self, csv_length, keys, rebuilds):
        token, lease = (self.highest_token, self.highest_lease) if self.host.on("token_in_header") else (0, None)
        self.host.write_header(Header(0, self.sequence, self.next, csv_length, token, lease, keys, rebuilds, None))
        self.known_header = self.host.newest_header()[0].number

    def checkpoint(self, landed):
        host = self.host
        header, _ = host.newest_header()
        if self.sequence == header.sequence:
            return
        length = len(host.csv.cache) - len(lines(host.csv.cache)[1])
        if host.on("csv_before_header"):
            host.sync(host.csv, "the CSV at a checkpoint")
        keys = self.store_keys(header, host.records(header), landed)
        self.write_header(length, keys, header.rebuilds)

    # Append

    def append(self, token, lease, entries):
        """One record under the OS lock. Returns (outcome, offset) of as many entries as it holds, one at least."""
        host = self.host
        self.refresh()
        if host.on("fence") and token < self.highest_token:
            return [("fenced", None)] * len(entries)
        if host.on("lease") and token == self.highest_token and lease != self.highest_lease:
            return [("fenced", None)] * len(entries)
        prefix = self.close_open_line() if host.on("close_open_line") else b""
        outcomes, written, keys, payload = [], [], [], prefix
        for entry in entries:
            if entry.key and host.on("known_keys"):
                if host.on("repeated_keys") and entry.key in [key for key, _ in keys]:
                    break
                if key := self.find_key(entry.key):
                    outcomes.append(("known", key.offset))
                    continue
                if self.may_be_forgotten(entry.keys_seen):
                    outcomes.append(("unknown", None))
                    continue
            outcomes.append(("written", len(payload)))
            if entry.key:
                keys.append((entry.key, len(payload)))
            written.append(entry)
            payload += b"".join(row_of(token, name, host.line_end) for name in entry.names)
        if written:
            offset, problem = self.write_batch(token, lease, keys, payload, len(prefix), written)
            outcomes = [(problem or found, at + offset) if found == "written" else (found, at) for found, at in outcomes]
        return outcomes

    def write_batch(self, token, lease, keys, payload, prefix, entries):
        """Returns where the payload landed, and why it did not."""
        host = self.host
        pages = 1 if payload.count(b"\n") <= PAGE_ROWS else 2
        at = self.find_space(pages)
        if at is None or host.chance.random() < 0.15:
            self.checkpoint({})
            at = self.find_space(pages)
        offset, sequence = len(host.csv.cache), self.sequence + 1
        host.slip(0.02)
        keys = tuple((key, offset + start) for key, start in keys)
        record = Record(sequence, pages, token, lease, offset, payload, prefix, self.next_key, keys)
        for entry in entries:
            for name in entry.names:
                host.leases_of_row[token, name].add(lease)
        host.note_keys(record, entries)
        host.write_record(record, at)
        if host.on("journal_sync"):
            host.sync(host.journal, f"record {sequence}")
        host.slip(0.05)
        try:
            landed = host.append(payload, may_be_full=True)
        except NoSpace:
            return self.undo(record, at), "disk_full"
        self.learn(record)
        self.verified = sequence
        if landed != offset:
            if prefix:
                self.rebuild(host.newest_header()[0], host.records(host.newest_header()[0]))
            else:
                for key in [key for key in self.keys.values() if key.number >= record.first_key]:
                    self.keys[key.number] = key._replace(offset=key.offset + landed - offset)
                self.checkpoint({sequence: landed - offset})
        return landed, None

    def find_space(self, pages):
        """Pages that hold no record since the checkpoint."""
        header = self.host.newest_header()[0]
        oldest, at = header.next, self.next
        if self.sequence == header.sequence:
            places = [(at, SLOTS), (0, at)]
        elif at > oldest:
            places = [(at, SLOTS), (0, oldest)]
        else:
            places = [(at, oldest)]
        return next((start for start, end in places if start + pages <= end), None)

    def undo(self, record, at):
        """The disk is full after the record is durable: its rows are cut, then it is taken back, then the batch is refused."""
        host = self.host
        tail = bytes(host.csv.cache[record.offset :])
        if not record.payload.startswith(tail):
            host.flag_failed_sync()
            raise Killed()
        steps = [self.cut_rows, self.revoke_record]
        if not host.on("cut_first"):
            steps.reverse()
        for step in steps:
            step(record, at)
        return record.offset

    def cut_rows(self, record, _):
        host = self.host
        host.truncate(record.offset, record.payload)
        if host.on("cut_synced"):
            host.sync(host.csv, "the CSV without the rows that found the disk full")

    def revoke_record(self, record, at):
        """A record without rows in its place tells readers that something was there."""
        host = self.host
        if host.on("undone_record"):
            empty = record._replace(pages=1, payload=b"", prefix=0, keys=())
            host.write_record(empty, at)
        else:
            host.write_cell(at, Torn(None))
        if host.on("undo_synced"):
            host.sync(host.journal, "the record taken back")
        if host.on("undone_record"):
            self.learn(empty)
            self.verified = empty.sequence

    def close_open_line(self):
        """Returns the line end that closes an open whole line. An open line that is not whole is cut, by a rebuild."""
        host = self.host
        rest = lines(host.csv.cache)[1]
        if not rest:
            return b""
        if is_whole(rest.rstrip(b"\r") + b"\n"):
            return b"\n" if host.line_end == b"\r\n" and rest.endswith(b"\r") else host.line_end
        header, _ = host.newest_header()
        self.rebuild(header, host.records(header))
        return b""


def ends_before(records, end):
    """Where the rows before each record end."""
    for record in records:
        yield end
        end = record.end() if record.payload else end


def close_lines(old, records, base):
    """Others' open lines in the old tail, closed as the records after them say, if the power cut took that line end."""
    image = list(old)
    for record in records:
        start, end = record.offset - base, record.offset - base + record.prefix
        if start <= len(image) and not any(image[start:end]):
            image[start:end] = record.payload[: record.prefix]
    return bytes(image)
