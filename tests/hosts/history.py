"""What was sent and answered, in the words of the checker of tests/faults."""

import json
import random
import re
import subprocess
import threading
import time
from typing import NamedTuple

PARTS = ['","', "\r\n", "å", ",", "\n", "plain"]
SNAPSHOTS_MAX = 150
VIOLATION = re.compile(r"^  (\w+): (\d+) times$", re.M)


class Acknowledged(NamedTuple):
    """An acknowledged append, for readers."""

    offset: int
    bytes: int
    first: int
    host: object
    at: float


class History:
    def __init__(self, folder, seed):
        self.folder, self.seed = folder, seed
        self.begun = time.monotonic()
        self.lock = threading.Lock()
        self.rows_sent = 0
        self.texts = {}
        self.acknowledged = []
        self.acked_rows = 0
        self.snapshots = 0
        folder.mkdir(parents=True)
        self.file = open(folder / "history.jsonl", "w")
        self.write({"seed": seed})

    def us(self, at):
        return int((at - self.begun) * 1e6)

    def write(self, line):
        with self.lock:
            self.file.write(json.dumps(line) + "\n")

    def new_rows(self, count):
        """The number of the first of new rows, and their data: of many lengths, with all characters that need quotes."""
        with self.lock:
            first = self.rows_sent
            self.rows_sent += count
        rows = [self.text(number) for number in range(first, first + count)]
        with self.lock:
            self.texts.update(zip(range(first, first + count), rows))
        return first, rows

    def text(self, number):
        rng = random.Random(f"{self.seed}-{number}")
        length = rng.randrange(3000) if rng.random() < 0.03 else rng.randrange(120)
        row = f"{self.seed}-{number}:"
        while len(row) < length:
            row += rng.choice(PARTS) + str(rng.randrange(1000))
        return row

    def request(self, client, host, first, rows, key, sent, ended, result):
        self.write({"request": {
            "client": client, "host": int(host.name[1:]), "first": first, "rows": rows, "key": key,
            "sent_us": self.us(sent), "ended_us": self.us(ended), "result": result,
        }})  # fmt: skip
        if ack := result.get("Acknowledged"):
            with self.lock:
                self.acknowledged.append(Acknowledged(ack["offset"], ack["bytes"], first, host, ended))
                self.acked_rows += 0 if ack["replayed"] else len(rows)

    def snapshot(self, host, sent, content):
        """The whole file as a host read it."""
        with self.lock:
            self.snapshots += 1
            name = f"snapshot-{self.snapshots}.csv"
            if self.snapshots > SNAPSHOTS_MAX:
                return
        (self.folder / name).write_bytes(content)
        self.write({"snapshot": {"host": int(host.name[1:]), "sent_us": self.us(sent), "file": name}})

    def newest(self, but=None):
        """The newest acknowledged append, of any other host than this one."""
        with self.lock:
            return next((ack for ack in reversed(self.acknowledged[-200:]) if ack.host is not but), None)

    def acked_since(self, at, host=None):
        with self.lock:
            return any(ack.at > at and host in (None, ack.host) for ack in self.acknowledged[-500:])

    def check(self, faults, csv, disk_errors=False):
        """Runs the checker. Returns the violations by kind, and its text."""
        with self.lock:
            self.file.flush()
        path = self.folder / "rows.csv"
        path.write_bytes(csv)
        command = [faults, "--history", self.folder / "history.jsonl", "--csv", path, *(["--disk-errors"] if disk_errors else [])]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        found = {kind: int(times) for kind, times in VIOLATION.findall(done.stdout)}
        if done.returncode not in (0, 1) or (done.returncode == 1) != bool(found):
            raise SystemExit(f"the checker failed ({done.returncode}): {done.stdout}{done.stderr}")
        return found, done.stdout


def result_of(status, headers, body):
    """A response as the checker reads it."""
    if status == 201:
        names = ("offset", "bytes", "token", "replica")
        return {"Acknowledged": {name: body[name] for name in names} | {"replayed": headers.get("idempotent-replayed") == "true"}}
    kind = "NotWritten" if body.get("outcome") == "not_written" else "Unknown"
    return {kind: [status, body.get("code", "")]}
