#!/usr/bin/env python3
"""Tests docker-compose.yml: three replicas on one volume, through the load balancer, under load and faults.

The test creates its images, network, volumes and containers and removes them again, and the engine, too, if none was running.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

# steps.py is shared with tests/hosts.
sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
import bases
import stack
from checks import check_hardening, check_load_balancer, check_prometheus, measure_image_and_start
from clients import Load, Probe, verify_probes
from engine import engine
from faults import FAULTS
from stack import (
    COMPOSE, IMAGE, TEST_LABEL, append, compose, docker, labels, memory_kib, replicas, restart, rows_csv, run_on_volume, start,
    wait_for_three_replicas,
)  # fmt: skip
from steps import check, say, step, wait_until

REQUESTS = 20_000
# Requests per second of both loads of the faults together.
RATE = 500
# docs/deployment.md, "The load balancer": 201, and the errors of replicas and load balancer while replicas and Redis restart.
DOCUMENTED = {
    (201, ""),
    (503, "redis_unavailable"),
    (503, "redis_rejected"),
    (503, "lock_lost"),
    (503, "wait_timeout"),
    (503, "file_busy"),
    (503, "draining"),
    (503, "no_replica"),
    (502, "bad_gateway"),
    # The connection broke after requests were sent on it, or closed before.
    (0, "connection broke"),
    (0, "connection closed"),
    # With keys: the first attempt is still in flight in the same replica.
    (409, "key_in_flight"),
}


def test_under_load():
    load = Load("--requests", str(REQUESTS))
    report, answers = load.report()
    check(set(answers) == {(201, "")} and report["requests"]["acknowledged"] == REQUESTS, "a request failed")
    check(len(report["replicas"]) == 3, f"not all replicas served requests: {report['replicas']}")
    _, resident_kib = memory_kib(replicas()[0])
    say(f"memory of a replica afterwards: {resident_kib / 1024:.1f} MiB")


def test_under_faults():
    """One load without keys, where a request that a proxy repeats is written twice, and one with keys."""
    loads = [Load("--duration", "1h", "--rate", str(RATE // 2), *keys) for keys in ([], ["--keys"])]
    probe = Probe()
    try:
        begin = time.monotonic()
        wait_until("rows are acknowledged", lambda: probe.is_acknowledged_since(begin))
        for title, fault in FAULTS:
            inject(probe, title, fault)
        # Until REQUESTS are sent, however long the faults took.
        time.sleep(max(0, REQUESTS / RATE - (time.monotonic() - begin)))
    finally:
        results = probe.end()
    refused = set(verify_probes(results))
    sent = 0
    for load in loads:
        report, answers = load.end()
        refused |= set(answers)
        sent += report["requests"]["sent"]
    check(refused <= DOCUMENTED, f"not documented: {refused - DOCUMENTED}")
    check(sent >= REQUESTS, f"only {sent} requests were sent")
    compose("up", "--detach", "--no-build", "--no-recreate", "--scale", "app=3", "app")
    wait_for_three_replicas()


def inject(probe, title, fault):
    """Injects the fault and checks that its outage is not too long."""
    begin, outage_secs_max = fault(probe)
    now = time.monotonic()
    wait_until("rows are acknowledged again", lambda: probe.is_acknowledged_since(now), secs_max=30)
    outage = probe.outage(begin, time.monotonic())
    say(f"{title}: {outage:.2f} s without an acknowledged row (at most {outage_secs_max:.1f} s)")
    check(outage <= outage_secs_max, f"{title}: no row was acknowledged for {outage:.2f} s, more than {outage_secs_max:.1f} s")


def test_rolling_restart():
    load, probe = Load("--duration", "1h", "--rate", str(RATE)), Probe()
    try:
        for replica in replicas():
            begun = time.monotonic()
            restart(replica)
            say(f"{replica[:12]} restarted in {time.monotonic() - begun:.1f} s")
    finally:
        results = probe.end()
    check(verify_probes(results) == [], "a request failed")
    report, answers = load.end()
    check(set(answers) == {(201, "")}, f"a request failed: {answers}")


def test_down_and_up():
    token = json.loads(append("before")[2])["token"]
    before = rows_csv()
    compose("down", "--timeout", "45")
    check(docker("ps", "--all", "--quiet", *labels("app")) == "", "`compose down` has left containers")
    say(run_on_volume("check", "/data/rows.csv").strip().replace("\n", "\n  "))
    start()
    after = rows_csv()
    check(after == before, f"the file changed: {len(before)} bytes before, {len(after)} after")
    next_token = json.loads(append("after")[2])["token"]
    check(next_token > token, f"token {next_token} after {token}")
    sha256 = hashlib.sha256(after).hexdigest()[:16]
    say(f"the file is complete ({len(after):,} bytes, sha256 {sha256}); token {token}, then {next_token}")


def test():
    with step("build"):
        compose("build", "app", quiet=False)
    with step("up"):
        start()
        check_hardening()
        check_load_balancer()
    with step("image, start and memory"):
        measure_image_and_start()
    with step("Prometheus"):
        check_prometheus()
    with step("1. under load"):
        test_under_load()
    with step("2. under load, with faults"):
        test_under_faults()
    with step("3. rolling restart"):
        test_rolling_restart()
    with step("4. down and up"):
        test_down_and_up()


def clean_up(bases_made):
    """Removes everything that the test created."""
    for container in docker("ps", "--all", "--quiet", "--filter", f"label={TEST_LABEL}").split():
        docker("rm", "--force", "--volumes", container, check=False)
    compose("down", "--volumes", "--timeout", "0", check=False)
    for image in [IMAGE, *bases_made]:
        docker("rmi", "--force", image, check=False)
    # The untagged image of the builder stage.
    docker("image", "prune", "--force", "--filter", "label=rowlock.stage=builder", check=False)


def print_logs():
    """The last log lines of replicas, load balancer and Redis."""
    for service in ["app", "lb", "redis"]:
        for container in docker("ps", "--all", "--quiet", *labels(service), check=False).split():
            done = subprocess.run(["docker", "logs", "--tail", "25", container], capture_output=True, text=True)
            print(f"--- {service} {container}\n{done.stdout}{done.stderr}", file=sys.stderr)


def main():
    begun = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(f"ended by signal {number}"))
    with engine() as stack.engine_is_ours:
        print(f"{docker('version', '--format', 'engine {{.Server.Version}}').strip()}, {' '.join(COMPOSE)}", flush=True)
        bases_made = []
        try:
            with step("base images"):
                bases.provide(bases_made)
            test()
        except BaseException:
            print_logs()
            raise
        finally:
            clean_up(bases_made)
    print(f"containers: all tests passed in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
