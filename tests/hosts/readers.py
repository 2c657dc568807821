"""Readers on all hosts: what any host acknowledged before a reading began must be in it, whole."""

import collections
import contextlib
import csv
import http.client
import io
import json
import random
import threading
import time

from cluster import PORT, get

PAUSE_SECS = 0.15
# Of each kind.
EXAMPLES_MAX = 2
# How long an event may take to arrive.
EVENT_SECS_MAX = 3


class Readers:
    def __init__(self, history, hosts):
        self.history, self.hosts = history, hosts
        self.readings, self.stale, self.examples = collections.Counter(), collections.Counter(), []
        self.ended = threading.Event()
        self.event_ends = {}
        self.threads = [threading.Thread(target=work, args=(host,), daemon=True) for host in hosts for work in (self.read, self.follow)]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            if thread.ident:
                thread.join(25)

    def found(self, kind, example):
        self.stale[kind] += 1
        if self.stale[kind] <= EXAMPLES_MAX:
            self.examples.append(f"{kind}: {str(example)[:300]}")

    def read(self, host):
        rng = random.Random(f"{self.history.seed}-reader-{host.name}")
        ways = [self.from_offset, self.from_offset, self.plain, self.plain, self.last, self.last, self.whole]
        while not self.ended.wait(PAUSE_SECS):
            way, newest = rng.choice(ways), self.history.newest(but=host)
            if not newest:
                continue
            try:
                way(host, newest)
                self.readings[way.__name__] += 1
            except (OSError, http.client.HTTPException, ValueError) as e:
                self.readings[f"{way.__name__}: {type(e).__name__}"] += 1

    def answer(self, host, path):
        """None: the replica says that it cannot read now, which is no stale reading."""
        status, body = get(host, path)
        if status >= 500:
            self.readings[f"{path.split('?')[0]} {status}"] += 1
            return None
        return status, body

    def from_offset(self, host, ack):
        if answer := self.answer(host, f"/rows?from={ack.offset}&limit=1"):
            status, body = answer
            rows = json.loads(body).get("rows") or [{}]
            if status != 200 or rows[0].get("fields", {}).get("data") != self.history.texts[ack.first]:
                self.found("/rows?from", (host.name, ack.host.name, ack.offset, status, body[:160]))

    def last(self, host, ack):
        if answer := self.answer(host, "/rows?last=1"):
            status, body = answer
            rows = json.loads(body).get("rows") or [{"offset": -1}]
            # Its row may be a later one.
            is_behind = rows[0]["offset"] < ack.offset
            if status != 200 or is_behind or "\0" in json.dumps(rows):
                self.found("/rows?last=1", (host.name, ack.host.name, ack.offset, status, body[:160]))

    def whole(self, host, ack):
        """The checker compares it with the file."""
        sent = time.monotonic()
        if (answer := self.answer(host, "/rows.csv")) and answer[0] == 200:
            self.history.snapshot(host, sent, answer[1])

    def plain(self, host, ack):
        """Another program on the host, which opens the file only now: NFS promises that it sees what was closed or synced before."""
        content = host.read("/mnt/data/rows.csv", ack.offset, ack.bytes, secs_max=20)
        rows = list(csv.reader(io.StringIO(content.decode(errors="replace"), newline="")))
        if len(content) != ack.bytes or not rows or rows[0][-1:] != [self.history.texts[ack.first]]:
            self.found("open + read", (host.name, ack.host.name, ack.offset, ack.bytes, content[:160]))

    def follow(self, host):
        """Subscribes to /events, again whenever the connection breaks."""
        while not self.ended.wait(0.2):
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self.subscribe(host)

    def subscribe(self, host):
        connection = http.client.HTTPConnection(host.address, PORT, timeout=3)
        end, kind = self.event_ends.get(host), ""
        try:
            connection.request("GET", "/events?rows=100", headers={"Last-Event-ID": str(end)} if end else {})
            response = connection.getresponse()
            while response.status == 200 and not self.ended.is_set() and (line := response.readline()):
                if line.startswith(b"event:"):
                    kind = line[6:].strip().decode()
                elif line.startswith(b"data:") and kind == "rows":
                    self.readings["events"] += 1
                    end = self.check_event(host, end, json.loads(line[5:]))
                    self.event_ends[host] = end
        finally:
            connection.close()

    def check_event(self, host, end, event):
        if end is not None and event["offset"] != end:
            self.found("/events has a gap", (host.name, end, event["offset"]))
        for row in event["rows"]:
            if not row["fields"].get("data", "").startswith(f"{self.history.seed}-") or "\0" in json.dumps(row):
                self.found("/events shows no row", (host.name, row))
        return event["end"]

    def check_events(self):
        """All subscribers have received the newest acknowledged row."""
        end = max((ack.offset + ack.bytes for ack in self.history.acknowledged), default=0)
        deadline = time.monotonic() + EVENT_SECS_MAX
        while time.monotonic() < deadline and any(self.event_ends.get(host, 0) < end for host in self.hosts):
            time.sleep(0.05)
        for host in self.hosts:
            if self.event_ends.get(host, 0) < end:
                self.found("/events lacks the newest row", (host.name, self.event_ends.get(host), end))
