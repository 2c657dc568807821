"""Histories of a local volume: one page cache for all replicas, a kill or a power cut at any step, syncs that fail.

Records are synced, rows are not; a checkpoint syncs the CSV; a failed sync leaves a flag. A history has several replicas with fresh,
stale and doubly granted tokens, keyed retries, and rows that others append. Each guard can be removed.
"""

import random
from typing import NamedTuple

from failures import Broken
from local_replica import Replica
from local_volume import Host, Killed, PowerCut
from rows import is_whole, lines, rows

TRIES = 6
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
    "known_keys": "a known key is answered as before",
    "verify": "a refresh compares new records with the CSV",
    "quarantine_before_truncate": "what is cut is first synced in quarantine",
    "rebuild_journaled": "a header notes a rebuild before the CSV is cut",
    "flag_failed_sync": "a failed sync leaves a flag in the journal",
    "close_open_line": "an open last line is closed or cut before an append",
    "header_sync": "a header is synced before anything rests on it",
    "scan_at_start": "the first refresh looks for holes after the checkpoint",
    "claims_token": "a line with a token that the journal does not know is not kept",
    "sync_before_header": "the newer header is synced before the older one is overwritten",
    "sync_before_repair": "a record found is synced before its rows are completed",
}


class Broke(NamedTuple):
    histories: int
    text: str
    trace: list


class History:
    """Requests with all kinds of tokens against three replicas, and the promises at the end."""

    def __init__(self, seed, guards):
        self.chance = random.Random(seed)
        self.host = Host(self.chance, guards)
        self.replicas = [Replica(self.host) for _ in range(3)]
        self.token, self.leases, self.granted, self.power_cuts = 0, 0, [], 0
        # Foreign lines, and whether they must stand: not if a power cut took them before anybody synced them.
        self.foreign, self.keyed = {}, {}
        self.acknowledged, self.refused, self.uncertain = set(), set(), set()

    def grant(self, number):
        """Mostly a fresh token; at times a stale one, or the newest under another lease."""
        if self.granted and self.chance.random() < 0.15:
            return self.chance.choice(self.granted)
        if self.granted and self.chance.random() < 0.1:
            return self.granted[-1][0], 1000 + number
        self.token += 1
        self.leases += 1
        self.granted.append((self.token, self.leases))
        return self.granted[-1]

    def after_power_cut(self):
        self.power_cuts += 1
        for line in self.foreign:
            self.foreign[line] = self.foreign[line] and line in self.host.durable_csv

    def attempt(self, index, token, lease, row, key):
        try:
            return self.replicas[index].append(token, lease, row, key)
        except Killed:
            self.replicas[index] = Replica(self.host)
        except PowerCut:
            self.after_power_cut()
            self.replicas = [Replica(self.host) for _ in self.replicas]
        return "unknown", None

    def append_foreign(self, number, line, is_whole_line):
        csv = self.host.csv
        if is_whole_line and lines(csv.cache)[1]:
            return
        csv.write(len(csv.cache), line)
        self.host.trace.append(f"foreign {line}")
        if is_whole_line:
            self.foreign[line] = True

    def request(self, number):
        row, key = b"r%d" % number, None
        if self.chance.random() < 0.5:
            key = f"k{self.chance.randrange(4)}"
            row = self.keyed.setdefault(key, row)
        for _ in range(TRIES):
            token, lease = self.grant(number)
            outcome, offset = self.attempt(self.chance.randrange(3), token, lease, row, key)
            self.host.trace.append(f"{row} key {key} token {token} lease {lease}: {outcome} {offset}")
            if outcome in ("written", "known"):
                self.acknowledged.add(row)
                return
            if outcome == "unknown":
                self.uncertain.add(row)
                if not key:
                    return
            else:
                self.token = max(self.token, max(replica.highest_token for replica in self.replicas))
                self.refused.add(row)

    def run(self):
        for number in range(self.chance.randrange(4, 12)):
            kind = self.chance.random()
            if kind < 0.12:
                self.append_foreign(number, b"<f%d>\n" % number, True)
            elif kind < 0.17:
                self.append_foreign(number, b"<ha", False)
            else:
                if kind < 0.22:
                    self.token = 0
                    self.host.trace.append("Redis loses its data")
                self.request(number)
        self.host.is_calm = True
        if self.chance.random() < 0.5:
            self.host.lose_power()
            self.after_power_cut()
        if Replica(self.host).append(10**6, -1, b"end", None)[0] != "written":
            raise Broken("the last append is refused")
        self.check()

    def check(self):
        csv = self.host.csv.cache
        whole, rest = lines(csv)
        if rest or not all(is_whole(line) for line in whole):
            raise Broken(f"the CSV does not parse: {bytes(csv)!r}")
        found = rows(csv)
        names = [name for _, name in found]
        for name in self.acknowledged:
            if names.count(name) != 1:
                raise Broken(f"acknowledged {name} stands {names.count(name)} times")
        for name in set(names):
            if names.count(name) > 1:
                raise Broken(f"{name} stands {names.count(name)} times")
        for name in self.refused - self.acknowledged - self.uncertain:
            if name in names:
                raise Broken(f"refused {name} was written")
        if any(len(leases) > 1 for leases in self.host.leases_of_token.values()):
            raise Broken("two leases wrote under one token")
        if any(first > second for (first, _), (second, _) in zip(found, found[1:])):
            raise Broken(f"tokens go back: {found}")
        if not self.power_cuts:
            self.foreign.update(dict.fromkeys(self.host.slipped, True))
        for line, must_stand in self.foreign.items():
            if must_stand and whole.count(line) != 1:
                raise Broken(f"the foreign line {line} stands {whole.count(line)} times")


def search(guards, seed, histories):
    """None, or the first history that breaks a promise."""
    for number in range(histories):
        history = History(seed + number, guards)
        try:
            history.run()
        except Broken as broken:
            return Broke(number + 1, str(broken), history.host.trace)
    return None
