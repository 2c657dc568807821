"""Clients that append on all hosts, in bursts with quiet phases between them, as real use has: a steady load hides stale caches."""

import collections
import contextlib
import http.client
import json
import random
import threading
import time

from cluster import PORT
from history import result_of

CONNECT_SECS_MAX = 3
RESPONSE_SECS_MAX = 20
# Retries with a key end so long after the load.
PATIENCE_SECS = 90
RETRY_PAUSE_SECS = 0.1
BURST_SECS = (0.5, 1.5, 2.5)
QUIET_SECS = (0.3, 1.2, 2.5, 4.0)


class Load:
    def __init__(self, history, hosts, clients_per_host=3, pause=0.0, quiet_secs=QUIET_SECS):
        self.history, self.hosts, self.pause, self.quiet_secs = history, hosts, pause, quiet_secs
        self.active, self.ended, self.is_busy = threading.Event(), threading.Event(), threading.Event()
        self.answers = collections.Counter()
        self.took = []
        # Periods in which clients were sending.
        self.bursts = []
        self.clients = [
            threading.Thread(target=self.client, args=(n, hosts[n % len(hosts)]), daemon=True) for n in range(clients_per_host * len(hosts))
        ]
        self.conductor = threading.Thread(target=self.conduct, daemon=True)

    def __enter__(self):
        for thread in [*self.clients, self.conductor]:
            thread.start()
        return self

    def __exit__(self, *_):
        """Waits for every client's last append."""
        self.ended.set()
        self.conductor.join()
        self.active.set()
        deadline = time.monotonic() + PATIENCE_SECS + RESPONSE_SECS_MAX + 5
        for thread in self.clients:
            thread.join(max(0, deadline - time.monotonic()))
        self.stuck = sum(thread.is_alive() for thread in self.clients)

    @contextlib.contextmanager
    def busy(self):
        """Without quiet phases: an outage must not hide in one."""
        self.is_busy.set()
        try:
            self.active.wait()
            yield
        finally:
            self.is_busy.clear()

    def conduct(self):
        rng = random.Random(f"{self.history.seed}-bursts")
        while not self.ended.is_set():
            began = time.monotonic()
            self.active.set()
            self.ended.wait(rng.choice(BURST_SECS))
            # An outage goes on until a row is acknowledged.
            while not self.ended.is_set() and (self.is_busy.is_set() or not self.history.acked_since(time.monotonic() - 0.5)):
                self.ended.wait(0.1)
            self.active.clear()
            self.bursts.append((began, time.monotonic()))
            quiet_until = time.monotonic() + rng.choice(self.quiet_secs)
            while not self.ended.is_set() and not self.is_busy.is_set() and time.monotonic() < quiet_until:
                self.ended.wait(0.05)

    def longest_outage(self):
        """The longest time without an acknowledgement while clients were sending."""
        acked = sorted(ack.at for ack in self.history.acknowledged)
        longest = 0
        for begin, end in self.bursts:
            inside = [begin, *(at for at in acked if begin < at < end), end]
            longest = max(longest, *(after - before for before, after in zip(inside, inside[1:])))
        return longest

    def client(self, number, home):
        rng = random.Random(f"{self.history.seed}-client-{number}")
        while True:
            self.active.wait()
            if self.ended.is_set():
                return
            count = rng.choice((2, 5, 40)) if rng.random() < 0.15 else 1
            self.append(rng, number, home, count, is_keyed=rng.random() < 0.3)
            time.sleep(self.pause)

    def append(self, rng, number, home, count, is_keyed):
        """Without a key, sends the append once. With a key, repeats it on any host until it is acknowledged."""
        first, rows = self.history.new_rows(count)
        key = f"key-{first}" if is_keyed else None
        target, give_up = home, None
        while True:
            sent = time.monotonic()
            result = send(target, rows, key)
            ended = time.monotonic()
            self.history.request(number, target, first, rows, key, sent, ended, result)
            kind = next(iter(result))
            if kind == "Acknowledged":
                self.took.append(ended - sent)
                return
            self.answers[" ".join(map(str, result[kind])) if kind in ("NotWritten", "Unknown") else f"{kind} {result[kind]}"] += 1
            time.sleep(RETRY_PAUSE_SECS)
            if self.ended.is_set():
                give_up = give_up or time.monotonic() + PATIENCE_SECS
            if not is_keyed or give_up and time.monotonic() > give_up:
                return
            target = rng.choice(self.hosts)


def send(host, rows, key):
    headers = {"Idempotency-Key": key} if key else {}
    if len(rows) == 1:
        path, body, headers["Content-Type"] = "/append", json.dumps({"data": rows[0]}), "application/json"
    else:
        path, body, headers["Content-Type"] = "/append/batch", "\n".join(map(json.dumps, rows)), "application/x-ndjson"
    connection = http.client.HTTPConnection(host.address, PORT, timeout=CONNECT_SECS_MAX)
    try:
        try:
            connection.connect()
        except OSError as e:
            return {"NotSent": type(e).__name__}
        connection.sock.settimeout(RESPONSE_SECS_MAX)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return result_of(response.status, response.headers, json.loads(response.read()))
        except (OSError, http.client.HTTPException, ValueError) as e:
            return {"NoResponse": type(e).__name__}
    finally:
        connection.close()
