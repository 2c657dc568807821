"""One trial: a cluster, replicas, a load with readers, what happens meanwhile, and the verdict."""

import collections
import contextlib
import http.client
import random
import shutil
import time
from dataclasses import dataclass, field

from cluster import TTL_SECS, Cluster, Replica, StartFailed, as_user
from history import History
from load import Load
from image import CACHE, ROOT
from mountstats import Difference, per_batch
from readers import Readers
from sandbox import RUN
from steps import run, say, wait_until
from volume import LEASE_SECS

RECOVERY_SECS_MAX = 60
CALLS_SECS = 4
WRITE_FAILED_STATUS = 74
# How long others wait for the locks of a host that is away: the server's lease, the lock's time to live, and some seconds.
OTHERS_SECS_MAX = LEASE_SECS + TTL_SECS + 8
DETAIL_LINES_MAX = 12
# Attempts to catch a host with the OS lock, or without it.
CATCHES_MAX = 150


@dataclass
class Options:
    """What the command line says."""

    binary: str
    faults: str
    version: str = "4.2"
    mount_options: str = ""
    verbose: bool = False


@dataclass
class Result:
    scene: str
    version: str
    mount_options: str
    seed: int
    faults: int = 0
    acked_rows: int = 0
    stale: int = 0
    readings: int = 0
    longest_outage: float = 0.0
    # Remote procedure calls for so many batches.
    calls: collections.Counter = field(default_factory=collections.Counter)
    batches: int = 0
    # Whether the replicas refused the volume.
    refused: bool = False
    violations: collections.Counter = field(default_factory=collections.Counter)
    details: list = field(default_factory=list)

    def add(self, kind, detail, times=1):
        self.violations[kind] += times
        self.details.append(f"{kind}: {detail}")

    def is_clean(self):
        return not self.violations and not self.stale

    def summary(self):
        wrong = ", ".join(f"{kind} {n}" for kind, n in sorted(self.violations.items())) or "no violation"
        return (
            f"{self.scene}, NFS {self.version}{f' {self.mount_options}' if self.mount_options else ''}, seed {self.seed}: {self.acked_rows:,} rows "
            f"acknowledged, {self.faults} faults, {self.readings} readings, {self.stale} stale; longest outage {self.longest_outage:.1f} s; {wrong}"
        )


class Trial:
    def __init__(self, scene, options, seed):
        self.scene, self.options, self.seed = scene, options, seed
        self.rng = random.Random(f"{scene.name}-{seed}")
        self.result = Result(scene.name, options.version, options.mount_options, seed)
        self.replicas = {}
        self.histories = 0
        self.folder = RUN / "trial"

    @contextlib.contextmanager
    def cluster_up(self, **settings):
        began = time.monotonic()
        with Cluster(self.options.version, self.options.mount_options, **settings) as self.cluster:
            self.volume, self.hosts = self.cluster.volume, self.cluster.hosts
            if self.options.verbose:
                say(f"guests are up after {time.monotonic() - began:.1f} s")
            yield self.cluster

    def new_history(self):
        """A history with a seed of its own, since a trial may write several files."""
        self.histories += 1
        return History(self.folder / f"history-{self.histories}", self.seed * 1000 + self.histories)

    def start_replicas(self):
        for host in self.hosts:
            self.replicas[host] = Replica(self.cluster, host).start()
        for replica in self.replicas.values():
            replica.wait_until_ready()

    def restart(self, host):
        self.replicas[host].start().wait_until_ready()

    def supervise(self):
        """Starts replicas again that ended because a write had failed in the middle of a batch, as a supervisor does."""
        for host, replica in self.replicas.items():
            if self.scene.disk_fails and not replica.may_exit and replica.exit_status() == WRITE_FAILED_STATUS:
                say(f"the replica of {host.name} has ended, and is started again")
                replica.start()

    def under_load(self, happening, **load):
        """Lets it happen under a load with readers, and checks the file."""
        self.history = self.new_history()
        self.start_replicas()
        self.readers = Readers(self.history, self.hosts)
        try:
            with Load(self.history, self.hosts, **load) as self.load:
                self.wait_until_served("at the start")
                self.count_calls()
                self.readers.start()
                happening(self)
            self.readers.check_events()
        finally:
            self.readers.stop()
        self.conclude()

    def count_calls(self):
        """Counts the calls of some seconds, while nobody reads."""
        batches, calls = self.batches(), Difference(self.hosts)
        time.sleep(CALLS_SECS)
        # In the same order as before, so that both counts are of the same period.
        self.result.batches += self.batches() - batches
        self.result.calls += calls.calls()

    def batches(self):
        return int(sum(replica.metrics().get("rowlock_batch_rows_count", 0) for replica in self.replicas.values()))

    def fault(self, text):
        """Counts a fault, once it is proved."""
        self.result.faults += 1
        if self.options.verbose:
            say(f"{time.monotonic() - self.history.begun:6.1f} s  {text}")

    def wait_until_served(self, when, host=None, secs_max=RECOVERY_SECS_MAX):
        now = time.monotonic()
        try:
            with self.load.busy():
                wait_until("a row is acknowledged", lambda: self.supervise() or self.history.acked_since(now, host), secs_max)
        except SystemExit:
            self.result.add("SlowRecovery", f"{when}: no row was acknowledged{f' by {host.name}' if host else ''} in {secs_max} s")

    def wait_until_all_serve(self, when):
        for host in self.hosts:
            self.wait_until_served(when, host)

    def wait_until_others_served(self, when):
        """While one host is away. An NFSv3 server never gives the locks of that host to others."""
        if self.options.version != "3":
            self.wait_until_served(when, secs_max=OTHERS_SECS_MAX)

    def catch(self, holding):
        """A paused host that has, or has not, the OS lock of the journal or of the CSV. With NFSv3 the server cannot tell: any host."""
        host = self.rng.choice(self.hosts)
        if self.options.version == "3":
            host.pause()
            return host
        for _ in range(CATCHES_MAX):
            host = self.rng.choice(self.hosts)
            host.pause()
            if holding == any(self.volume.holds_os_lock(host, name) for name in ("rows.csv", "rows.csv.journal")):
                return host
            host.resume()
            time.sleep(self.rng.random() / 10)
        raise SystemExit(f"FAILED: in {CATCHES_MAX} attempts no host was caught {'with' if holding else 'without'} the OS lock")

    def conclude(self):
        """Ends the replicas, and compares the file with the history."""
        result, load = self.result, self.load
        for host in self.hosts:
            host.link.heal()
        result.longest_outage = max(result.longest_outage, load.longest_outage())
        if load.stuck:
            result.add("StuckClients", f"{load.stuck} clients have no answer")
        self.take_readings()
        self.end_replicas()
        self.check_file(self.history, "rows.csv")
        if load.answers and (self.options.verbose or not result.is_clean()):
            say(f"answers but 201: {dict(load.answers.most_common(8))}")

    def take_readings(self):
        self.result.readings += sum(self.readers.readings.values())
        if stale := sum(self.readers.stale.values()):
            self.result.stale += stale
            self.result.details += [f"stale: {dict(self.readers.stale)}", *self.readers.examples]
        if self.options.verbose:
            say(f"readings: {dict(self.readers.readings)}")

    def end_replicas(self):
        for host, replica in self.replicas.items():
            status = replica.exit_status()
            if status is not None and not replica.may_exit:
                self.result.add(
                    "UnexpectedExit", f"{host.name} exited with status {status}: {replica.host.shell('tail -n 2 /tmp/log')[-400:]}"
                )
            elif status is None and (status := replica.terminate()) != 0:
                self.result.add("UnexpectedExit", f"{host.name}: status {status} after SIGTERM")
        complaints = {host.name: found for host, replica in self.replicas.items() if (found := replica.complaints())}
        if complaints and (self.options.verbose or not self.result.is_clean()):
            for name, lines in complaints.items():
                say(f"{name} logged: " + " | ".join(lines))

    def check_file(self, history, name):
        """The checker's verdict on a file of the volume, and that of `rowlock check`."""
        host = self.hosts[0]
        output = host.shell(as_user(f"/tools/rowlock check /mnt/data/{name} 2>&1; echo status $?"), secs_max=100)
        if not output.rstrip().endswith("status 0"):
            self.result.add("CheckFailed", f"rowlock check {name}: {output.strip()[-300:]}")
        torn = self.volume.size(f"{name}.torn")
        if torn and not self.scene.crashes:
            self.result.add("Quarantined", f"{torn} bytes without a crash")
        self.result.acked_rows += history.acked_rows
        found, text = history.check(self.options.faults, self.volume.read(name), self.scene.disk_errors)
        self.result.violations.update(found)
        # Readings of the whole file count as stale reads as well.
        self.result.stale += self.result.violations.pop("WrongSnapshot", 0)
        if found:
            self.result.details += text.splitlines()

    def run(self):
        """Runs the scene. Keeps its histories if they show a violation: the folder in memory ends with the namespace."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        try:
            self.scene.play(self)
        except StartFailed as e:
            self.result.add("StartFailed", e)
        except (SystemExit, OSError, http.client.HTTPException) as e:
            self.result.add("BedFailed", repr(e) if isinstance(e, OSError) else e)
        if not self.result.acked_rows and not self.result.refused and not self.result.violations:
            self.result.add("BedFailed", "no row was acknowledged")
        say(self.result.summary())
        if self.result.batches:
            say(f"RPCs a batch: {per_batch(self.result.calls, self.result.batches)}")
        for detail in self.result.details[:DETAIL_LINES_MAX]:
            print(f"    {detail[:400]}")
        if not self.result.is_clean():
            kept = CACHE / "failed" / f"{self.scene.name}-{self.options.version}-{self.seed}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(exist_ok=True)
            run("cp", "-r", self.folder, kept)
            say(f"kept: {kept.relative_to(ROOT)}")
        return self.result
