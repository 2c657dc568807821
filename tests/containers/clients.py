"""Clients of the replicas: `rowlock load` in a container, and probes that send single rows."""

import http.client
import json
import re
import secrets
import subprocess
import threading
import time
from typing import NamedTuple

from stack import IMAGE, PROJECT, TEST_LABEL, append, docker, inspect, rows_csv
from steps import check, say


class Load:
    """`rowlock load` in a container on the load balancer's network, until it has finished or is ended."""

    def __init__(self, *args):
        # The volume is mounted read-only, for the verification.
        self.id = docker(
            "run", "--detach", f"--network={PROJECT}_front", f"--volume={PROJECT}_data:/data:ro", "--read-only",
            "--label", TEST_LABEL, IMAGE,
            "load", "--url", "http://lb:8080", "--concurrency", "64", "--verify", "/data/rows.csv", "--json", *args,
        ).strip()  # fmt: skip

    def is_running(self):
        return inspect(self.id, "{{.State.Running}}") == "true"

    def end(self):
        docker("kill", "--signal", "INT", self.id)
        return self.report()

    def report(self):
        """Waits for the end. Returns the report, and its answers as {(status, code): count}."""
        status = int(docker("wait", self.id).strip())
        output = docker("logs", self.id)
        report = json.loads(output) if output.startswith("{") else {}
        error = subprocess.run(["docker", "logs", self.id], capture_output=True, text=True).stderr
        docker("rm", self.id)
        verified = report.get("verification") or {}
        check(status == 0 and verified.get("pass"), f"rowlock load exited with status {status}: {output}{error}")
        requests, latency = report["requests"], report["latency"]
        say(
            f"load: {requests['sent']:,} requests, {requests['acknowledged']:,} acknowledged ({requests['acknowledged_per_s']:,.0f}/s), "
            f"{requests['not_written']} not written, {requests['unknown']} unknown; p50 {latency['p50_ms']:.0f} ms, "
            f"p99 {latency['p99_ms']:.0f} ms; verified: PASS"
        )
        answers = {(a["status"], "" if a["status"] == 201 else a["code"]): a["count"] for a in report["answers"]}
        say("answers: " + ", ".join(f"{status} {code} {count:,}".replace("  ", " ") for (status, code), count in answers.items()))
        return report, answers


class ProbeResult(NamedTuple):
    """A row that a probe sent, and its response."""

    data: str
    sent: float
    answered: float
    status: int
    code: str
    outcome: str
    replica: str


class Probe:
    """Sends a row without a key every 50 ms, each on its own connection, without waiting for earlier ones."""

    INTERVAL_SECS = 0.05

    def __init__(self):
        self.lock = threading.Lock()
        self.results = []
        self.threads = []
        self.done = threading.Event()
        self.pacer = threading.Thread(target=self.pace)
        self.pacer.start()

    def pace(self):
        number = 0
        while not self.done.wait(self.INTERVAL_SECS):
            thread = threading.Thread(target=self.send, args=[f"probe-{secrets.token_hex(6)}-{number}"])
            thread.start()
            self.threads.append(thread)
            number += 1

    def send(self, data):
        sent = time.monotonic()
        try:
            status, headers, body = append(data)
            # A body that is not JSON becomes a code that is not documented.
            problem = json.loads(body) if "json" in headers.get("Content-Type", "") else {"code": body[:60].decode(errors="replace")}
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, problem = 0, {"code": repr(error)}
        fields = [problem.get(name, "") for name in ("code", "outcome", "replica")]
        with self.lock:
            self.results.append(ProbeResult(data, sent, time.monotonic(), status, *fields))

    def acknowledged(self):
        with self.lock:
            return [result for result in self.results if result.status == 201]

    def outage(self, begin, end):
        """The longest time without an acknowledgement."""
        times = sorted(result.answered for result in self.acknowledged() if begin <= result.answered <= end)
        times = [begin, *times, end]
        return max(later - earlier for earlier, later in zip(times, times[1:]))

    def is_acknowledged_since(self, moment, by=""):
        """Whether five rows that were sent after the moment are acknowledged, by this replica if one is given."""
        return sum(result.sent >= moment and result.replica.startswith(by) for result in self.acknowledged()) >= 5

    def end(self):
        self.done.set()
        self.pacer.join()
        for thread in self.threads:
            thread.join()
        return self.results


def verify_probes(results):
    """Checks that acknowledged rows are in the file once, that no refused row is, and that no row is there twice: then no proxy
    has repeated a request. Returns status and code of the refused rows."""
    count = {}
    for row in rows_csv().decode().splitlines():
        if found := re.search(r"probe-[0-9a-f]{12}-\d+", row):
            count[found[0]] = count.get(found[0], 0) + 1
    for probe in results:
        times = count.get(probe.data, 0)
        allowed = {1} if probe.status == 201 else {0} if probe.outcome == "not_written" else {0, 1}
        check(times in allowed, f"{probe}: its row is {times} times in the file")
    refused = [(probe.status, probe.code) for probe in results if probe.status != 201]
    kinds = ", ".join(f"{status} {code} {refused.count((status, code))}" for status, code in sorted(set(refused))) or "none"
    say(f"probes: {len(results):,} rows without keys, {len(results) - len(refused):,} acknowledged, refused: {kinds}; verified")
    return refused
