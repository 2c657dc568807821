"""An NFSv4 server: files in its memory and on its disk, locks, and a disk that may be full."""

from collections import defaultdict

from failures import Broken, Failed
from journal import Torn, first_headers
from rows import overwrite

# Bytes that are written, lost and torn together. Tiny, so that short rows have several.
PIECE = 4
END = 10**9
CELL_FILES = ("journal", "keys")


class Lock:
    """The lock of one open file. Once lost, it stays lost: only closing and opening the file cures it."""

    def __init__(self, host, file):
        self.host, self.file, self.lost = host, file, False


class Server:
    def __init__(self, world, first_line):
        self.world, self.boot, self.locks, self.full = world, 0, {}, False
        self.memory, self.disk, self.unstable = defaultdict(list), defaultdict(list), defaultdict(list)
        # What was cut or overwritten and must stay in quarantine.
        self.quarantined = []
        self.write("csv", 0, first_line, None, stable=True)
        for i, header in enumerate(first_headers(len(first_line))):
            self.write("journal", i, [header], None, stable=True)

    def fill(self, file):
        return None if file in CELL_FILES else 0

    def outcomes(self, file):
        """Of a write that is not stable: lost or kept, and a page may be torn."""
        return 3 if file in CELL_FILES else 2

    def check(self, lock):
        if lock and lock.lost and "fenced_writes" in self.world.rules:
            raise Failed(f"the lock on {lock.file} is lost")

    def is_full_for(self, file, end):
        """Journal and keys have their space from the start, unless the file system copies on write."""
        if not self.full:
            return False
        return self.world.copies_on_write or file not in CELL_FILES and end > len(self.memory[file])

    def write(self, file, offset, data, lock, stable=False):
        self.check(lock)
        data = list(data)
        if file == "csv":
            old = self.memory[file][offset : offset + len(data)]
            differ = [i for i, (a, b) in enumerate(zip(old, data)) if a not in (0, b)]
            if differ:
                self.must_be_quarantined(old[differ[0] : differ[-1] + 1])
        overwrite(self.memory[file], offset, data, self.fill(file))
        if stable and "stable_is_stable" in self.world.rules:
            overwrite(self.disk[file], offset, data, self.fill(file))
            self.forget_unstable(file, offset, offset + len(data))
        else:
            self.unstable[file] += [(offset + i, data[i : i + PIECE]) for i in range(0, len(data), PIECE)]

    def truncate(self, file, length, lock, ours):
        """Cuts the file. Bytes of `ours` are in the journal and need no quarantine."""
        if "fenced_truncate" in self.world.rules:
            self.check(lock)
        old = self.memory[file][length:]
        if len(old) > len(ours) or any(byte not in (0, own) for byte, own in zip(old, ours)):
            self.must_be_quarantined(old)
        del self.memory[file][length:]
        del self.disk[file][length:]
        self.forget_unstable(file, length, END)

    def must_be_quarantined(self, old):
        """Bytes of the CSV go away: they must stand in quarantine, and stay there."""
        old = bytes(old).strip(b"\0")
        if not old:
            return
        if not self.is_quarantined(old):
            raise Broken(f"{old!r} was destroyed without quarantine")
        self.quarantined.append(old)

    def is_quarantined(self, data):
        return any(data in bytes(content) for file, content in self.disk.items() if file.startswith("quarantine"))

    def forget_unstable(self, file, low, high):
        """A stable write or a cut is newer than what was unstable there."""
        parts = [
            part
            for offset, data in self.unstable[file]
            for part in ((offset, data[: max(0, low - offset)]), (max(offset, high), data[max(0, high - offset) :]))
        ]
        self.unstable[file] = [(offset, data) for offset, data in parts if data]

    def commit(self, file):
        for offset, data in self.unstable.pop(file, []):
            overwrite(self.disk[file], offset, data, self.fill(file))

    def survive(self, file):
        """Each unstable piece reaches the disk, or is lost, or is torn."""
        for offset, data in self.unstable.pop(file, []):
            if self.disk[file][offset : offset + len(data)] == data:
                continue  # The same bytes again: nothing can be torn.
            outcome = self.world.pick(self.outcomes(file), "survive")
            if outcome:
                overwrite(self.disk[file], offset, data if outcome == 1 else [Torn(data[0])], self.fill(file))

    def cut_power(self):
        for file in list(self.unstable):
            self.survive(file)
        for file in list(self.memory):
            self.memory[file] = list(self.disk[file])
        self.boot += 1
        # Hosts claim their locks again in the grace period, unless they are cut off.
        for file, lock in list(self.locks.items()):
            if lock.host.is_cut_off and self.world.pick(2, "grace"):
                lock.lost = True
                del self.locks[file]
