"""A host's kernel: a cache of its own for each file, and calls that hang while the host is cut off.

It follows the Linux client:
- A buffered read may be as old as the host's last lock of that file. The size may be new and the bytes old (zeros).
- A buffered write stays in the host until it is flushed: by itself at any time, by fsync, unlock or close, at its old offset. It may be
  extended to the start of its page with cached bytes.
- A flush sends unstable writes, and commits only if this host has sent something. An fsync makes nothing stable that another host sent.
- A direct write is stable when it returns. Before that, the server may have none, some or all of it in memory.
- A killed process does not wait for its calls. The close of a file waits for the calls under its lock, not for those of other files.
"""

from collections import defaultdict

from failures import Failed, NoSpace
from journal import Torn
from rows import overwrite
from server import CELL_FILES, PIECE, Lock

PAGE = 8


class Host:
    def __init__(self, world, name):
        self.world, self.server, self.name, self.is_cut_off = world, world.server, name, False
        # Locks by file, as this kernel sees them; locks and files to be closed for processes that ended; their calls in flight.
        self.locks, self.closing, self.in_flight = {}, [], []
        self.forget()

    def forget(self):
        """What a power cut takes: pages, dirty writes, writes sent and not committed, errors to report."""
        self.pages, self.dirty, self.sent, self.failed = defaultdict(list), defaultdict(list), defaultdict(list), set()

    def revalidate(self, file):
        self.pages[file] = list(self.server.memory[file])
        for offset, data, _ in self.dirty[file]:
            overwrite(self.pages[file], offset, data, self.server.fill(file))

    def round_trip(self):
        """Hangs while the host is cut off, as a hard mount does."""
        yield None
        while self.is_cut_off:
            yield lambda: not self.is_cut_off

    def lock(self, file):
        """Locks the file and so makes its cache true. A host's kernel gives a lock to one process only."""

        def is_free():
            elsewhere = file in self.server.locks and "lock_excludes" in self.world.rules
            return not self.is_cut_off and file not in self.locks and not elsewhere

        yield is_free
        while not is_free():
            yield is_free
        self.flush(file)
        lock = self.server.locks[file] = self.locks[file] = Lock(self, file)
        self.revalidate(file)
        return lock

    def unlock(self, lock):
        """Closing waits for the calls under this lock, and writes out the file's dirty pages."""
        for call in [call for call in self.in_flight if call[3] is lock]:
            self.land(call)
        self.flush(lock.file)
        if self.locks.get(lock.file) is lock:
            del self.locks[lock.file]
        if self.server.locks.get(lock.file) is lock:
            del self.server.locks[lock.file]

    def read(self, file, is_locked):
        """A buffered read: without the file's lock, size and pages may be old."""
        if file not in self.pages:
            self.revalidate(file)
        elif not is_locked and not self.is_cut_off:
            age = self.world.pick(4, "attributes")
            if age == 0:
                self.revalidate(file)
            elif age == 1:
                overwrite(self.pages[file], len(self.server.memory[file]), [], self.server.fill(file))
        return list(self.pages[file])

    def write(self, file, offset, data, lock):
        """A buffered write."""
        data = list(data)
        if file == "csv" and self.world.flip(0.3, "extend"):
            start = min(offset, len(self.pages[file])) // PAGE * PAGE
            data = (self.pages[file] + [0] * offset)[start:offset] + data
            offset = start
        overwrite(self.pages[file], offset, data, self.server.fill(file))
        self.dirty[file].append((offset, data, lock))

    def send(self, file, offset, data, lock):
        try:
            self.server.write(file, offset, data, lock)
            self.sent[file].append((offset, data, lock, self.server.boot))
        except Failed:
            # The error stays for the next fsync; the pages are dropped.
            self.failed.add(file)
            self.revalidate(file)

    def flush(self, file):
        for write in self.dirty.pop(file, []):
            self.send(file, *write)
        # After a restart of the server, the client sends again what was not committed.
        for *write, boot in list(self.sent[file]):
            if boot != self.server.boot:
                self.send(file, *write)
        if self.sent.pop(file, []):
            self.server.commit(file)

    def fsync(self, file):
        yield from self.round_trip()
        if self.world.flip(self.world.chooser.failure_rate, "failure"):
            for write in self.dirty.pop(file, []):
                self.send(file, *write)
            self.sent.pop(file, None)
            self.server.survive(file)
            raise Failed(f"fsync of {file} failed")
        self.flush(file)
        if file in self.failed:
            self.failed.remove(file)
            raise Failed(f"dirty pages of {file} were lost")

    def direct_read(self, file):
        yield from self.round_trip()
        self.flush(file)
        return list(self.server.memory[file])

    def direct_write(self, file, offset, data, lock):
        """One stable write, not atomic: the server has some of it in memory before it returns or fails."""
        server, data = self.server, list(data)
        try:
            yield from self.round_trip()
            server.check(lock)
            if server.is_full_for(file, offset + len(data)):
                self.run_out_of_space(file, offset, data, lock)
            for i in range(0, len(data), PIECE):
                self.arrive(file, offset + i, data[i : i + PIECE], lock)
            yield from self.round_trip()
            server.check(lock)
        except GeneratorExit:
            # The process is killed, its call is not: it lands before the file's lock goes, or at any time without one.
            if self.world.pick(2, "in flight"):
                self.in_flight.append((file, offset, data, lock))
            raise
        if self.world.flip(self.world.chooser.failure_rate, "failure"):
            server.write(file, offset, data, lock)
            server.survive(file)
            raise Failed(f"a direct write to {file} failed")
        server.write(file, offset, data, lock, stable=True)
        self.pages.pop(file, None)

    def arrive(self, file, offset, part, lock):
        """A piece may be in the server's memory before the whole write is stable."""
        if self.server.memory[file][offset : offset + len(part)] == part:
            return  # The same bytes again can't be torn.
        outcome = self.world.pick(self.server.outcomes(file), "arrive")
        if outcome:
            self.server.write(file, offset, part if outcome == 1 else [Torn(part[0])], lock)

    def run_out_of_space(self, file, offset, data, lock):
        """The server has none, a part, (with delayed allocation) all, or some rows of it in memory, and none is stable."""
        outcome = self.world.pick(4, "out of space")
        if outcome == 1 and file not in CELL_FILES:
            data = data[:PIECE]
        if outcome == 3 and file not in CELL_FILES:
            data = data[: bytes(data).find(b"\n") + 1]
        if outcome:
            self.server.write(file, offset, data, lock)
        raise NoSpace(f"no space for {file}")

    def truncate(self, file, length, lock, ours):
        yield from self.round_trip()
        self.flush(file)
        self.server.truncate(file, length, lock, ours)
        self.revalidate(file)

    def land(self, call):
        """A killed process's call is executed."""
        self.in_flight.remove(call)
        file, offset, data, lock = call
        self.world.say(f"a killed process's write to {file}[{offset}] lands")
        if self.server.is_full_for(file, offset + len(data)):
            return
        try:
            self.server.write(file, offset, data, lock, stable=True)
        except Failed:
            pass

    def close_next(self):
        """The kernel closes one file of a process that ended."""
        item = self.closing.pop(0)
        if isinstance(item, Lock):
            self.world.say(f"the kernel of {self.name} closes {item.file}")
            self.unlock(item)
        else:
            self.flush(item)

    def fail_power(self):
        self.forget()
        self.locks, self.closing, self.in_flight, self.is_cut_off = {}, [], [], False
