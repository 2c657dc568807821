"""One history: hosts, replicas, readers, foreign appends and faults, in an order that a chooser chooses."""

from collections import defaultdict
from typing import NamedTuple

import promises
import reader
from failures import Broken, Failed, Stuck
from host import Host
from replica import Replica
from rows import lines
from rules import DIRECT
from server import Server

FAULTS = ("fault", "power", "cut", "killed")
STEPS_MAX = 1500
# Removing a rule may leave a replica without progress; a last append is tried this often.
LAST_ATTEMPTS = 4


class Request(NamedTuple):
    names: tuple
    key: object
    # When it arrived: the keys that its replica knew, and all that were recorded.
    keys_seen: int = 0
    keys_recorded: int = 0


class Event(NamedTuple):
    """What may happen besides a step of a task."""

    weight: float
    kind: str
    run: object
    host: object = None


class Task:
    """A replica's or a reader's process: a generator that runs step by step."""

    def __init__(self, steps, host, replica=None):
        self.steps, self.host, self.replica, self.condition = steps, host, replica, None

    def is_ready(self):
        return self.condition is None or self.condition()


class World:
    def __init__(self, chooser, protocol, rules):
        self.chooser, self.protocol, self.rules, self.trace = chooser, protocol, rules, []
        # Once calm, no new fault comes.
        self.is_calm = False
        self.line_end = b"\r\n" if self.flip(0.3, "CRLF") else b"\n"
        self.server = Server(self, b"<head>" + self.line_end if self.flip(0.5, "first line") else b"")
        self.slots, self.keys_max = (3, 4, 8)[self.pick(3, "slots")], (1, 2, 8)[self.pick(3, "key slots")]
        # Slots of the keys file; as many keys are remembered.
        self.key_slots = self.keys_max * (2 if "keys_remembered" in rules else 1)
        self.copies_on_write = self.flip(0.2, "copies on write")
        # Redis: the lease's holder, the newest token, and what the last holder passed on.
        self.lease_holder, self.token, self.leases, self.fence, self.hint, self.checksums = None, 0, 0, 0, None, 0
        self.faults = self.foreign_appends = self.readers = self.processes = 0
        self.acknowledged, self.refused, self.foreign, self.shown = {}, set(), [], set()
        self.leases_of_row = defaultdict(set)
        # How many keys were recorded, the number of each, and rows whose key was rightly forgotten: they may stand twice.
        self.keys_recorded, self.key_numbers, self.forgotten = 0, {}, set()
        self.hosts = [Host(self, "ABC"[i]) for i in range(2 + self.pick(2, "hosts"))]
        for host in self.hosts:
            host.revalidate("journal")
        self.tasks = [self.start_replica(host) for host in self.hosts]
        if self.flip(0.3, "two on one host"):
            self.tasks.append(self.start_replica(self.hosts[0]))
        self.queue = self.first_requests()

    def first_requests(self):
        by_key, queue = {}, []
        for number in range(self.chooser.appends()):
            names, key = tuple(b"r%d" % number + b"'" * i for i in range(1 + self.pick(3, "rows"))), None
            if self.flip(0.4, "keyed"):
                key = f"k{self.pick(5, 'key')}"
                names = by_key.setdefault(key, names)
            queue.append(Request(names, key))
        return queue

    def arrive(self, request):
        """A replica notes how many keys it knows; it may know fewer than are recorded."""
        ledgers = [task.replica.ledger for task in self.tasks if task.replica]
        known = [ledger.key_count() for ledger in ledgers if ledger.header] + [0]
        seen = min(known[self.pick(len(known), "keys seen")], self.keys_recorded)
        self.queue.append(request._replace(keys_seen=seen, keys_recorded=self.keys_recorded))

    # What replicas ask of the world

    def say(self, text):
        self.trace.append(text)

    def pick(self, count, what):
        return self.chooser.pick(count, what)

    def flip(self, probability, what):
        if self.is_calm and what not in ("extend", "checkpoint"):
            return False
        return self.chooser.flip(probability, what)

    def new_checksum(self):
        self.checksums += 1
        return self.checksums

    def grant(self, name):
        """A lease and its token. After a failover of Redis, two leases may have one token."""
        self.leases += 1
        if not (self.token and self.flip(0.08, "token twice")):
            self.token += 1
        self.lease_holder = name
        self.say(f"{name} gets token {self.token}, lease {self.leases}")
        return self.token, self.leases

    def release(self, name, ledger):
        if self.lease_holder == name:
            self.lease_holder = None
            is_stable = ledger.sequence is not None and ledger.stable == ledger.checksum
            self.hint = ledger.stable if is_stable and not ledger.open_line else None

    def raise_token(self, highest):
        self.token = max(self.token, highest)

    def fenced(self, token):
        self.fence = max(self.fence, token)

    def will_record(self, token, lease, requests, number):
        """Notes a record's rows and keys, and which rows may stand twice: their key was rightly forgotten when they arrived."""
        for request in requests:
            for name in request.names:
                self.leases_of_row[token, name].add(lease)
            if request.key:
                before = self.key_numbers.get(request.key)
                if before is not None and before < request.keys_recorded - self.keys_max:
                    self.forgotten.update(request.names)
                self.key_numbers[request.key] = number
                number += 1
        self.keys_recorded = max(self.keys_recorded, number)

    def recorded(self, token):
        if token < self.fence:
            raise Broken(f"token {token} wrote after token {self.fence} was recorded")

    def answer(self, request, outcome, offset):
        self.say(f"{request.names} key {request.key} is answered: {outcome} {offset}")
        if outcome in ("written", "known"):
            for index, name in enumerate(request.names):
                self.acknowledged.setdefault(name, None if index else offset)
                promises.check_visible(self, name)
            if request.key and self.flip(0.3, "repeated") and len(self.queue) < 20:
                self.arrive(request)
        elif outcome == "disk_full":
            if not request.key:
                self.refused.update(request.names)
        elif request.key and len(self.queue) < 20 and not self.is_calm:
            self.arrive(request)

    # Processes

    def start_replica(self, host):
        self.processes += 1
        replica = Replica(self, host, f"{host.name}{self.processes}")
        return Task(replica.run(), host, replica)

    def start_reader(self):
        self.readers += 1
        host, name = self.hosts[self.pick(len(self.hosts), "reader's host")], f"R{self.readers}"
        self.say(f"{name} starts on {host.name}")
        self.tasks.append(Task(reader.read(self, host, name), host))

    def step(self, task):
        try:
            task.condition = next(task.steps)
        except StopIteration:
            self.tasks.remove(task)
        except Failed as failure:
            self.end_process(task, str(failure))

    def end_process(self, task, why):
        """Its kernel closes its files one after the other, in any order; its lease expires; it starts again."""
        replica = task.replica
        self.say(f"{replica.name if replica else 'a reader'} ends: {why}")
        task.steps.close()
        self.tasks.remove(task)
        if not replica:
            return
        for request in replica.requests:
            self.answer(request, "unknown", None)
        locks = list(replica.ledger.locks.values())
        if self.pick(2, "order"):
            locks.reverse()
        task.host.closing += locks + ["csv", "journal", "keys"] * (not locks)
        if self.lease_holder == replica.name:
            self.lease_holder = None
        self.tasks.append(self.start_replica(task.host))

    # Faults

    def expire_locks(self, host):
        """The server gives a host's locks away: it was cut off for longer than the NFS lease, or it has forgotten them."""
        self.say(f"the server takes the locks of {host.name}")
        for file, lock in list(self.server.locks.items()):
            if lock.host is host and (host.is_cut_off or host.locks.get(file) is not lock):
                lock.lost = True
                del self.server.locks[file]

    def cut_host_power(self, host):
        self.say(f"POWER CUT of host {host.name}")
        host.fail_power()
        for task in [task for task in self.tasks if task.host is host]:
            self.end_process(task, "power")
        host.closing, host.in_flight = [], []

    def cut_server_power(self):
        self.say("POWER CUT of the server")
        self.server.cut_power()

    def cut_off(self, host):
        self.say(f"host {host.name} is CUT OFF")
        host.is_cut_off = True

    def heal(self, host):
        self.say(f"host {host.name} is back")
        host.is_cut_off = False

    def set_full(self, full):
        self.say("the disk is FULL" if full else "the disk has space again")
        self.server.full = full

    def lose_redis(self, with_data):
        self.say("Redis loses its data" if with_data else "Redis loses the lease")
        self.lease_holder = self.hint = None
        if with_data:
            self.token = 0

    def append_foreign(self):
        """Somebody appends without any lock: a whole line, or a part of one. Not protected: the moment while rows are on their way."""
        writers = [task.replica.ledger for task in self.tasks if task.replica]
        if any(ledger.is_writing_rows and not ledger.has_lost("csv") for ledger in writers):
            return
        if any(file == "csv" and lock and not lock.lost for host in self.hosts for file, _, _, lock in host.in_flight):
            return
        csv = self.server.memory["csv"]
        if self.protocol != DIRECT and (self.server.locks or self.lease_holder) or lines(csv)[1] or self.server.full:
            return
        self.foreign_appends += 1
        is_half = self.flip(0.3, "half")
        line = b"<ha" if is_half else b"<f%d>" % self.foreign_appends
        if not is_half:
            self.foreign.append(line)
            line += (self.line_end, self.line_end, b"", b"\r")[self.pick(4, "foreign line end")]
        self.say(f"somebody appends {line}")
        self.server.write("csv", len(csv), line, None, stable=True)

    def kernel_events(self):
        """What kernels and the server do by themselves, faults or not."""
        found = []
        for host in self.hosts:
            if host.is_cut_off:
                found.append(Event(4, "heal", lambda host=host: self.heal(host)))
            elif host.in_flight:
                found.append(Event(2, "writeback", lambda host=host: host.land(host.in_flight[0])))
            if host.closing and not host.is_cut_off:
                found.append(Event(9, "close", host.close_next))
            if not host.is_cut_off:
                for file in [file for file in host.dirty if host.dirty[file]]:
                    found.append(Event(2, "writeback", lambda host=host, file=file: self.write_back(host, file)))
            held = [lock for lock in self.server.locks.values() if lock.host is host]
            if held and (host.is_cut_off or any(host.locks.get(lock.file) is not lock for lock in held)):
                found.append(Event(6, "expire", lambda host=host: self.expire_locks(host)))
        if self.server.full:
            found.append(Event(1, "space", lambda: self.set_full(False)))
        return found

    def write_back(self, host, file):
        self.say(f"host {host.name} sends a dirty page of {file}")
        host.send(file, *host.dirty[file].pop(self.pick(len(host.dirty[file]), "dirty page")))

    def faults_possible(self):
        found = []
        for host in self.hosts:
            found.append(Event(0.5, "power", lambda host=host: self.cut_host_power(host), host))
            if not host.is_cut_off:
                found.append(Event(1.5, "cut", lambda host=host: self.cut_off(host), host))
        for task in self.tasks:
            if task.replica and task.replica.ledger.locks:
                found.append(Event(0.7, "killed", lambda task=task: self.end_process(task, "killed"), task.host))
        found.append(Event(1, "power", self.cut_server_power))
        if self.lease_holder:
            found.append(Event(1, "fault", lambda: self.lose_redis(with_data=False)))
        found.append(Event(0.3, "fault", lambda: self.lose_redis(with_data=True)))
        if self.protocol == DIRECT and not self.server.full:
            found.append(Event(1, "fault", lambda: self.set_full(True)))
        return found

    def events(self):
        found = self.kernel_events()
        if self.is_calm:
            return found
        if self.faults < self.chooser.faults_max:
            found += self.faults_possible()
        if self.foreign_appends < self.chooser.foreign_max:
            found.append(Event(1, "foreign", self.append_foreign))
        if self.readers < self.chooser.readers_max:
            found.append(Event(2, "reader", self.start_reader))
        return found

    # The course of a history

    def is_idle(self):
        replicas = [task.replica for task in self.tasks if task.replica]
        return not self.queue and not any(replica.ledger.locks or self.lease_holder == replica.name for replica in replicas)

    def run_until_idle(self):
        last = None
        for _ in range(STEPS_MAX):
            if self.is_idle() and (self.is_calm or self.chooser.may_stop()):
                return True
            ready, events = [task for task in self.tasks if task.is_ready()], self.events()
            if not ready and not events:
                return False
            choice = self.chooser.schedule(ready, last, events)
            if isinstance(choice, Task):
                last = choice
                self.step(choice)
            else:
                if choice.kind in FAULTS:
                    self.faults += 1
                choice.run()
        return False

    def run(self):
        """Runs the history. Then all faults end, a power cut may come, and two last appends and a reader must succeed."""
        self.run_until_idle()
        self.is_calm = True
        for host in self.hosts:
            if host.is_cut_off and self.pick(2, "expired meanwhile"):
                self.expire_locks(host)
            host.is_cut_off = False
        self.server.full = False
        if not self.run_until_idle():
            raise Stuck()
        for name in (b"e1", b"e2"):
            if self.pick(2, "power at the end"):
                self.cut_server_power()
            if self.pick(2, "late"):
                self.flush_all()
            self.tasks = [self.start_replica(self.hosts[self.pick(len(self.hosts), "last host")])]
            self.token, self.lease_holder = max(self.token, 1000), None
            self.append_at_the_end(name)
            self.flush_all()
        self.tasks.append(Task(reader.read(self, self.hosts[0], "last reader"), self.hosts[0]))
        self.run_until_idle()
        promises.check_end(self)

    def append_at_the_end(self, name):
        for attempt in range(LAST_ATTEMPTS):
            self.queue.append(Request((name + b"x" * attempt,), None))
            self.run_until_idle()
            if name + b"x" * attempt in self.acknowledged:
                return
        raise Broken(f"the last append {name} is never acknowledged")

    def flush_all(self):
        """Everything that was late arrives."""
        for host in self.hosts:
            for file in list(host.dirty) + list(host.sent):
                host.flush(file)
            for call in list(host.in_flight):
                host.land(call)


