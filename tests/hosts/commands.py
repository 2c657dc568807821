"""Scenes of `rowlock append` alone: no replica, no load, no fault."""

import threading
import time

from history import result_of

# A file's attributes stay cached for so long, or longer.
SETTLE_SECS = 4
ROUNDS = 5


def at_once(works):
    """Runs all of them at the same time."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Appends:
    """`rowlock append` on one file, recorded."""

    def __init__(self, trial, csv):
        self.trial, self.csv, self.history = trial, csv, trial.new_history()

    def append(self, host):
        first, rows = self.history.new_rows(1)
        sent = time.monotonic()
        body, text = self.trial.cluster.append(host, self.csv, rows[0])
        result = result_of(201, {}, body) if body else {"Unknown": [500, text.strip()[-200:]]}
        self.history.request(0, host, first, rows, None, sent, time.monotonic(), result)

    def append_on_all(self):
        at_once([lambda host=host: self.append(host) for host in self.trial.hosts])


def three_appends(trial):
    """One append each on three hosts at the same time, then one more."""
    with trial.cluster_up():
        files = [Appends(trial, f"appends-{n}.csv") for n in range(ROUNDS)]
        home = trial.hosts[0]
        for file in files:
            file.append(home)
        time.sleep(SETTLE_SECS)
        for file in files:
            file.append_on_all()
        time.sleep(SETTLE_SECS)
        for file in files:
            # What the journal still owes is written with the next append.
            file.append(home)
        for file in files:
            trial.check_file(file.history, file.csv)


def first_starts(trial):
    """The first appends to a new file: alone, again and again, and on three hosts at the same time."""
    with trial.cluster_up():
        files = [Appends(trial, f"alone-{n}.csv") for n in range(ROUNDS)]
        for file in files:
            file.append(trial.hosts[0])
        together = [Appends(trial, f"together-{n}.csv") for n in range(ROUNDS)]
        for file in together:
            file.append_on_all()
        for file in [*files, *together]:
            file.append(trial.hosts[1])
            trial.check_file(file.history, file.csv)
