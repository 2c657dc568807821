"""Speed: one host and three on the network volume, and the local disk of a guest. Closed loops of `rowlock load` in the guests."""

import json
import statistics
import threading
import time

from cluster import Replica, as_user, get
from load import send
from mountstats import Difference, per_batch
from steps import check, say

SECS = 5
ONE_HOST_CLIENTS = (4, 12, 32, 96)
THREE_HOSTS_CLIENTS = (12, 96)
SINGLE_REQUESTS = 100
COLUMNS = ["volume", "hosts", "clients", "rows/s", "p50 ms", "p99 ms", "Jain", "rows a batch", "batches a hold", "RPCs a batch"]
LOCAL_MOUNT = "/mnt/local"


class Setting:
    """Replicas of some hosts on one file, until the end of the `with` block."""

    def __init__(self, trial, hosts, volume, csv):
        self.trial, self.hosts, self.volume, self.csv = trial, hosts, volume, csv

    def __enter__(self):
        self.replicas = [Replica(self.trial.cluster, host, self.csv).start() for host in self.hosts]
        for replica in self.replicas:
            replica.wait_until_ready()
        # A host alone gets a delegation, and its locks would cost no call: another host keeps the files open.
        self.keepers = [] if self.volume == "ext4" else self.trial.cluster.others(self.hosts[0])[:1]
        for keeper in self.keepers:
            names = " ".join(f"{self.csv}{suffix}" for suffix in ("", ".journal", ".keys"))
            keeper.shell(f"for name in {names}; do (exec 3<> $name; exec sleep 1000) > /dev/null 2>&1 & echo $! >> /tmp/keepers; done")
        time.sleep(1)
        return self

    def __exit__(self, *_):
        for keeper in self.keepers:
            keeper.shell("kill $(cat /tmp/keepers); rm /tmp/keepers")
        for replica in self.replicas:
            replica.terminate()

    def counters(self):
        metrics = [replica.metrics() for replica in self.replicas]
        names = ("rowlock_appended_rows_total", "rowlock_batch_rows_count", "rowlock_lock_acquired_total")
        return [[m.get(name, 0) for name in names] for m in metrics]

    def measure(self, clients):
        """One line of the table, and its figures."""
        reports = {}
        before, calls = self.counters(), Difference(self.hosts)

        def work(host):
            command = f"/tools/rowlock load --url http://127.0.0.1:8080 --duration {SECS}s --concurrency {clients // len(self.hosts)} --json --verify {self.csv}"
            output = host.shell(f"{as_user(command)}; echo status $?", secs_max=100)
            text, _, status = output.rpartition("status ")
            reports[host] = json.loads(text[text.index("{") : text.rindex("}") + 1])
            if status.strip() != "0":
                self.trial.result.add("LoadFailed", f"{host.name}, {clients} clients: {text[-300:]}")

        threads = [threading.Thread(target=work, args=(host,)) for host in self.hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(len(reports) == len(self.hosts), "a load has no report")
        counts = calls.calls()
        rows, batches, holds = [[after[n] - b[n] for b, after in zip(before, self.counters())] for n in range(3)]
        latencies = [report["latency"] for report in reports.values()]
        p50 = statistics.mean(latency["p50_ms"] for latency in latencies)
        p99 = max(latency["p99_ms"] for latency in latencies)
        rate = sum(report["requests"]["acknowledged_per_s"] for report in reports.values())
        jain = sum(rows) ** 2 / (len(rows) * sum(n * n for n in rows))
        self.trial.result.acked_rows += int(sum(rows))
        rpcs = "" if self.volume == "ext4" else per_batch(counts, sum(batches))
        cells = [
            self.volume, len(self.hosts), clients, f"{rate:.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{jain:.3f}",
            f"{sum(rows) / sum(batches):.1f}", f"{sum(batches) / max(1, sum(holds)):.1f}", rpcs,
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        return {"rate": rate, "jain": jain, "p99": p99}


def perf(trial):
    with trial.cluster_up(local_disk=True):
        hosts, nfs = trial.hosts, f"NFSv{trial.options.version}"
        mount_local_disk(hosts[0])
        print("| " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * (len(COLUMNS) - 1))
        with Setting(trial, hosts[:1], "ext4", f"{LOCAL_MOUNT}/rows.csv") as setting:
            local = {clients: setting.measure(clients) for clients in ONE_HOST_CLIENTS}
        with Setting(trial, hosts[:1], nfs, "/mnt/data/one.csv") as setting:
            one = {clients: setting.measure(clients) for clients in ONE_HOST_CLIENTS}
            alone = lone_rows(setting)
        with Setting(trial, hosts, nfs, "/mnt/data/three.csv") as setting:
            three = {clients: setting.measure(clients) for clients in THREE_HOSTS_CLIENTS}
            in_turn, readings = hand_overs(setting), idle_readings(setting)
        say(f"RPCs of a row of one client alone: {alone}")
        say(f"RPCs of a row after a row of another host (hand-over and batch): {in_turn}")
        say(f"RPCs of a reading of the newest row, which another host has just written: {readings}")
        say(
            f"one host on {nfs} against ext4, 12 clients: {one[12]['rate'] / local[12]['rate']:.2f}; 96: {one[96]['rate'] / local[96]['rate']:.2f}"
        )
        say(f"three hosts with 96 clients against one host with 96: {three[96]['rate'] / one[96]['rate']:.2f}")
        say(f"three hosts with 12 clients against one host with 4: {three[12]['rate'] / one[4]['rate']:.2f}")
        for csv in ("one.csv", "three.csv"):
            check_file(trial, csv)


def mount_local_disk(host):
    host.shell(
        f"mkfs.ext4 -q -E lazy_itable_init=0 /dev/ubdb && mkdir -p {LOCAL_MOUNT} && mount /dev/ubdb {LOCAL_MOUNT} && chmod 777 {LOCAL_MOUNT}"
    )


def check_file(trial, csv):
    output = trial.hosts[0].shell(as_user(f"/tools/rowlock check /mnt/data/{csv} 2>&1; echo status $?"), secs_max=100)
    if not output.rstrip().endswith("status 0"):
        trial.result.add("CheckFailed", f"rowlock check {csv}: {output.strip()[-300:]}")


def acknowledged(host, text):
    result = send(host, [text], None)
    check("Acknowledged" in result, f"a row was not acknowledged: {result}")


def lone_rows(setting):
    """One row after the other at one host."""
    calls = Difference(setting.hosts)
    for n in range(SINGLE_REQUESTS):
        acknowledged(setting.hosts[0], f"alone {n}")
    return per_batch(calls.calls(), SINGLE_REQUESTS)


def hand_overs(setting):
    """One row after the other, at each host in turn."""
    calls = Difference(setting.hosts)
    for n in range(SINGLE_REQUESTS):
        acknowledged(setting.hosts[n % len(setting.hosts)], f"in turn {n}")
    return per_batch(calls.calls(), SINGLE_REQUESTS)


def idle_readings(setting):
    """The newest row, asked of a host right after another one has written it. Only the reader's calls count."""
    writer, reader = setting.hosts[:2]
    calls = Difference([reader])
    for n in range(SINGLE_REQUESTS):
        acknowledged(writer, f"to read {n}")
        status, body = get(reader, "/rows?last=1")
        rows = json.loads(body)["rows"] if status == 200 else []
        if not rows or rows[0]["fields"]["data"] != f"to read {n}":
            setting.trial.result.stale += 1
    return per_batch(calls.calls(), SINGLE_REQUESTS)
