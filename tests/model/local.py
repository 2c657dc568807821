"""Histories of a local volume: one page cache for all replicas, a kill or a power cut at any step, syncs that fail, a full disk.

Records are synced, rows are not; a checkpoint syncs the CSV; a failed sync leaves a flag. A history has several replicas with fresh,
stale and doubly granted tokens, batches of keyed requests that wait, readers without a lock, and lines that others append. Each guard can
be removed.
"""

import random
from typing import NamedTuple

from failures import Broken
from local_reader import Reader, check_shown
from local_replica import Entry, Replica
from local_volume import Host, Killed, PowerCut
from promises import check_tokens
from rows import is_whole, lines, rows, text_of

TRIES, BATCH, READERS_MAX = 5, 3, 3
GUARDS = {
    "fence": "a token older than the highest recorded one is refused",
    "lease": "so is an equal token from another lease",
    "journal_sync": "a record is synced before its rows are written",
    "checksum": "a torn record is no record",
    "sequence": "a record counts only with the next sequence number",
    "csv_before_header": "a checkpoint syncs the CSV before its header",
    "keys_before_header": "a checkpoint syncs the keys before its header",
    "token_in_header": "a header keeps the highest token",
    "two_headers": "a header only overwrites the older of two",
    "header_sync": "a header is synced before anything rests on it",
    "header_before_recycling": "another's header is synced before the space that it gave back is used",
    "sync_before_header": "the newer header is synced before the older one is overwritten",
    "known_keys": "a known key is answered as before",
    "repeated_keys": "a key stands once in a record: its repeat waits for the next one",
    "keys_remembered": "twice as many keys are remembered as are promised",
    "keys_seen": "a request is refused if a promised key of its arrival may be forgotten by now",
    "verify": "a refresh compares new records with the CSV",
    "sync_before_repair": "a record found is synced before its rows are completed",
    "scan_at_start": "the first refresh looks for holes after the checkpoint",
    "close_open_line": "an open last line is closed or cut before an append",
    "quarantine_before_truncate": "what is cut is first synced in quarantine",
    "rebuild_journaled": "a header notes a rebuild before the CSV is cut",
    "truncate_before_tail": "a rebuild syncs the cut CSV before it appends the new tail",
    "claims_token": "a line with a token that the journal does not know is not kept",
    "flag_failed_sync": "a failed sync leaves a flag in the journal",
    "cut_first": "if the disk is full, the rows are cut before the record is taken back",
    "cut_synced": "if the disk is full, the cut is synced before the record is taken back",
    "undo_synced": "if the disk is full, the record is taken back durably before the refusal",
    "undone_record": "a record that is taken back leaves a record without rows in its place",
    "reader_rows_stand": "a reader believes a record only if its rows stand in full",
    "reader_stops": "a reader shows nothing behind a record that it does not believe",
    "reader_whole_lines": "a reader shows others' lines only as far as they are whole",
    "reader_headers_again": "a reader starts over if the headers have changed",
    "reader_records_again": "a reader that shows others' lines starts over if another record has appeared",
    "reader_rows_before_look": "a reader has read the rows that it serves before it looks again",
    "reader_waits_for_rebuild": "a reader verifies nothing while a header notes a rebuild",
    "reader_cap_at_checkpoint": "while a header notes a rebuild, a reader shows nothing behind the checkpoint",
    "reader_goes_back": "a reader goes back to its checkpoint if the header counts another rebuild",
}
# Guards that another one covers for: both are removed.
COVERED_BY = {
    "header_sync": "header_before_recycling",
    "header_before_recycling": "header_sync",
    "sync_before_header": "header_before_recycling",
    "truncate_before_tail": "claims_token",
    "claims_token": "truncate_before_tail",
    "cut_synced": "claims_token",
}
# Without these, no history has broken a promise. They cost little.
SPARE = {
    "whole_lines_before": "rows are completed only behind whole lines",
    "keys_anew": "after a failed sync the keys are written anew, too",
    "reader_length_first": "a reader reads the CSV's length before the records",
    "reader_takes_over_last": "a reader takes over what it has found only after it has looked again",
    "reader_failed_sync": "a reader verifies nothing while a sync has failed",
}
ALL = GUARDS.keys() | SPARE.keys()


def without(guard):
    return ALL - {guard, COVERED_BY.get(guard)}


class Broke(NamedTuple):
    histories: int
    text: str
    trace: list


class Request:
    """A client's request: it waits in one replica's queue, and may be tried again."""

    def __init__(self, number, names, key):
        self.number, self.names, self.key, self.tries, self.is_uncertain = number, names, key, 0, False
        self.replica = self.keys_seen = self.keys_recorded = 0


class History:
    """Requests with all kinds of tokens against three replicas, and the promises at the end."""

    def __init__(self, seed, guards):
        self.chance = random.Random(seed)
        self.host = Host(self.chance, guards)
        self.replicas = [Replica(self.host) for _ in range(3)]
        self.token, self.leases, self.granted, self.number_of_readers = 0, 0, [], 0
        # Foreign lines, and whether they must stand: not if a power cut took them before anybody synced them.
        self.foreign, self.keyed, self.waiting = {}, {}, []
        self.refused, self.uncertain = set(), set()
        # Some histories are about keys; some about a full disk, with slow readers.
        self.about, self.foreign_rate = self.chance.choice((None, None, None, "keys", "full")), self.chance.choice((0.05, 0.25))
        if self.about == "full":
            self.host.full_rate, self.host.pace = 0.8, (0.4, 0)
            self.start_reader()
            self.start_reader()

    def grant(self, number):
        """Mostly a fresh token; at times a stale one, or the newest under another lease."""
        if self.granted and self.chance.random() < 0.12:
            return self.chance.choice(self.granted)
        if self.granted and self.chance.random() < 0.1:
            return self.granted[-1][0], 1000 + number
        self.token += 1
        self.leases += 1
        self.granted.append((self.token, self.leases))
        return self.granted[-1]

    def after_power_cut(self):
        self.host.power_cuts += 1
        self.host.readers = []
        for line in self.foreign:
            self.foreign[line] = self.foreign[line] and self.is_durable(line)

    def is_durable(self, line):
        durable = self.host.durable_csv
        # Without its line end it is known for a line only at the end.
        return any(line + end in durable for end in (b"\n", b"\r\n")) or bytes(self.host.csv.cache).endswith((line, line + b"\r"))

    # Requests

    def arrive(self, request):
        """The replica notes how many keys it knows. It may know fewer than are recorded."""
        request.replica = self.chance.randrange(3)
        request.keys_seen = self.replicas[request.replica].next_key
        request.keys_recorded = self.host.keys_recorded
        self.waiting.append(request)

    def new_request(self, number):
        is_large = self.about == "full"
        names = tuple(b"r%d" % number + b"'" * i for i in range(3 if is_large else self.chance.choice((1, 1, 2, 3))))
        key = None
        if not is_large and self.chance.random() < (0.9 if self.about == "keys" else 0.5):
            key = f"k{self.chance.randrange(6)}"
            names = self.keyed.setdefault(key, names)
        self.arrive(Request(number, names, key))

    def again(self, request):
        request.tries += 1
        if request.tries < TRIES:
            self.arrive(request)

    def turn(self, number):
        """One lease: a replica writes what waits there."""
        if not self.waiting:
            return
        index = self.chance.choice(self.waiting).replica
        batch = [request for request in self.waiting if request.replica == index][:BATCH]
        token, lease = self.grant(number)
        while batch:
            outcomes = self.attempt(index, token, lease, batch)
            for request, (outcome, offset) in zip(batch, outcomes):
                self.host.trace.append(f"{request.names} key {request.key} token {token} lease {lease}: {outcome} {offset}")
                if outcome == "fenced":
                    self.token = max(self.token, max(replica.highest_token for replica in self.replicas))
                    request.tries += 1
                    if request.tries < TRIES:
                        continue
                self.waiting.remove(request)
                self.answer(request, outcome)
            if "fenced" in [outcome for outcome, _ in outcomes]:
                return
            batch = batch[len(outcomes) :]

    def attempt(self, index, token, lease, batch):
        entries = [Entry(request.names, request.key, request.keys_seen, request.keys_recorded) for request in batch]
        try:
            return self.replicas[index].append(token, lease, entries)
        except Killed:
            self.replicas[index] = Replica(self.host)
            self.lose_waiting({index}, batch)
        except PowerCut:
            self.after_power_cut()
            self.replicas = [Replica(self.host) for _ in self.replicas]
            self.lose_waiting({0, 1, 2}, batch)
        return [("unknown", None)] * len(batch)

    def lose_waiting(self, replicas, batch):
        """Requests that waited in a process that ended are sent again, or given up."""
        for request in [request for request in self.waiting if request.replica in replicas and request not in batch]:
            self.waiting.remove(request)
            if request.key:
                self.again(request)

    def answer(self, request, outcome):
        if outcome in ("written", "known"):
            self.host.acknowledged.update(request.names)
        elif outcome == "unknown":
            self.uncertain.update(request.names)
            if request.key:
                self.again(request)
        else:
            self.refused.update(request.names)
            if outcome == "disk_full" and (self.about == "full" or self.chance.random() < 0.5):
                self.again(request)

    # What others do

    def append_foreign(self, number):
        """A whole line, a line without its line end or with half of it, or half a line."""
        host, kind = self.host, self.chance.random()
        if lines(host.csv.cache)[1]:
            return
        name = b"<f%d>" % number
        if kind < 0.15:
            host.append_foreign(b"<ha")
            return
        if kind < 0.4:
            host.append_foreign(b"<w%d,>" % number + host.line_end)
            return
        host.append_foreign(name + self.chance.choice((b"", b"\r", host.line_end, host.line_end, host.line_end)))
        self.foreign[name] = True

    def start_reader(self):
        self.number_of_readers += 1
        if len(self.host.readers) < READERS_MAX:
            self.host.readers.append(Reader(self.host, f"R{self.number_of_readers}").run())

    def run(self):
        for number in range(self.chance.randrange(8, 24)):
            kind = self.chance.random()
            if self.chance.random() < self.foreign_rate:
                self.append_foreign(number)
            elif kind < 0.03:
                self.token = 0
                self.host.trace.append("Redis loses its data")
            elif kind < 0.13:
                self.start_reader()
            elif kind < 0.57:
                self.new_request(number)
            else:
                self.turn(number)
        self.end()
        self.check()

    def end(self):
        """Faults end, a power cut may come, and a last append and a last reader must succeed."""
        host = self.host
        host.is_calm = True
        for number in range(len(self.waiting) * 2):
            self.turn(5000 + number)
        self.uncertain.update(name for request in self.waiting for name in request.names)
        if self.chance.random() < 0.5:
            host.lose_power()
            self.after_power_cut()
        host.readers = [*host.readers[:1], Reader(host, "last").run()]
        if Replica(host).append(10**6, -1, [Entry((b"end",), None, 0, 0)])[0][0] != "written":
            raise Broken("the last append is refused")
        host.acknowledged.add(b"end")
        last = Reader(host, "end")
        for _ in last.read():
            pass
        if last.known.end != len(host.csv.cache):
            raise Broken("a last reader does not show the whole file")

    # Promises

    def check(self):
        host = self.host
        whole, rest = lines(host.csv.cache)
        if rest or not all(is_whole(line) for line in whole):
            raise Broken(f"the CSV does not parse: {bytes(host.csv.cache)!r}")
        found = rows(host.csv.cache)
        names = [name for _, name in found]
        for name in host.acknowledged:
            if not names.count(name):
                raise Broken(f"acknowledged {name} is lost")
        for name in set(names) - host.forgotten:
            if names.count(name) > 1:
                raise Broken(f"{name} stands {names.count(name)} times")
        for name in self.refused - host.acknowledged - self.uncertain:
            if name in names:
                raise Broken(f"refused {name} was written")
        check_tokens(host.leases_of_row, found)
        if not host.power_cuts:
            self.foreign.update(dict.fromkeys(host.slipped, True))
        texts = [text_of(line) for line in whole]
        for line, must_stand in self.foreign.items():
            if must_stand and texts.count(line) != 1:
                raise Broken(f"the foreign line {line} stands {texts.count(line)} times")
        check_shown(host)


def search(guards, seed, histories):
    """None, or the first history that breaks a promise."""
    for number in range(histories):
        history = History(seed + number, guards)
        try:
            history.run()
        except Broken as broken:
            return Broke(number + 1, str(broken), history.host.trace)
    return None
