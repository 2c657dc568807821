"""Checks of an idle stack: hardening, the load balancer, Prometheus, size and start time."""

import json
import subprocess
from datetime import datetime

import bases
from stack import (
    IMAGE, PORT, PROJECT, compose, container_of, docker, inspect, memory_kib, replicas, request, restart, run_on_volume,
)  # fmt: skip
from steps import check, say, wait_until

READY_MS_GOAL, IMAGE_MB_GOAL, IDLE_MIB_GOAL = 200, 40, 15


def measure_image_and_start():
    size = int(inspect(IMAGE, "{{.Size}}")) - int(inspect(bases.DEBIAN, "{{.Size}}"))
    compare_with_goal("image without its base", size / 1e6, IMAGE_MB_GOAL, "MB")
    # One of them creates and syncs the journal, on a disk that still has images to write.
    say(f"first start on a new volume until ready, the slowest of three: {max(map(ready_ms, replicas())):.1f} ms")
    replica = replicas()[0]
    restart(replica)
    compare_with_goal("start until ready", ready_ms(replica), READY_MS_GOAL, "ms")
    resident_kib = max(memory_kib(replica)[1] for replica in replicas())
    compare_with_goal("idle memory (resident, the largest of three)", resident_kib / 1024, IDLE_MIB_GOAL, "MiB")
    say(f"binary: {run_on_volume('/usr/local/bin/rowlock', entrypoint='sha256sum').split()[0]}")


def compare_with_goal(what, value, most, unit):
    verdict = "reached" if value < most else "MISSED"
    say(f"{what}: {value:.1f} {unit} (goal: under {most} {unit}, {verdict})")


def ready_ms(replica):
    """From the start of the process to its log line `serving`, both by the engine's clock."""
    started = inspect(replica, "{{.State.StartedAt}}")
    log = subprocess.run(["docker", "logs", "--timestamps", replica], capture_output=True, text=True).stderr
    serving = [line.split()[0] for line in log.splitlines() if " serving" in line and "listening" in line]
    check(serving, f"the log has no line `serving`:\n{log}")
    check(inspect(replica, "{{.State.Health.Status}}") == "healthy", "a replica that serves is not healthy")
    first, second = (datetime.fromisoformat(text[:26].rstrip("Z").ljust(26, "0")) for text in (started, serving[-1]))
    return (second - first).total_seconds() * 1000


def check_hardening():
    for container in [*replicas(), container_of("lb"), container_of("redis")]:
        user = docker("exec", container, "id", "-u").strip()
        check(user != "0", f"{container} runs as root")
        status = docker("exec", container, "cat", "/proc/1/status")
        check("NoNewPrivs:\t1" in status and "CapBnd:\t0000000000000000" in status, f"{container} has capabilities:\n{status}")
        written = subprocess.run(["docker", "exec", container, "touch", "/var/x"], capture_output=True)
        check(b"Read-only file system" in written.stderr, f"the root of {container} is writable: {written}")
        limit = inspect(container, "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}}")
        check("0" not in limit.split()[:2] and limit.endswith("unless-stopped"), f"{container} has no limits: {limit}")
    published = docker("ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", "{{.Ports}}").split()
    published = [port for port in published if "->" in port]
    check(published == [f"127.0.0.1:{PORT}->8080/tcp"], f"published ports: {published}")
    policy = docker("exec", container_of("redis"), "redis-cli", "config", "get", "maxmemory-policy")
    check("noeviction" in policy, f"Redis evicts keys: {policy}")
    reply = docker("exec", "--env", "REDISCLI_AUTH=", container_of("redis"), "redis-cli", "ping")
    check("NOAUTH" in reply, f"Redis requires no password: {reply}")
    say("no root, no capabilities, a read-only root, one published port, limits, a Redis with a password: checked")


def check_load_balancer():
    _, headers, _ = request("GET", "/livez")
    check(len(headers.get("X-Request-Id", "")) == 36, f"no X-Request-Id: {headers}")
    _, headers, _ = request("GET", "/livez", headers={"X-Request-Id": "mine"})
    check(headers["X-Request-Id"] == "mine", "the client's X-Request-Id is not kept")
    check(b"Statistics Report" in request("GET", "/haproxy")[2], "no statistics page")
    check(b"rowlock" in request("GET", "/")[2].lower(), "no live page")
    # The profile with Prometheus is off, so HAProxy itself responds.
    status, headers, body = request("GET", "/prometheus/graph")
    check((status, json.loads(body)["code"], headers["Retry-After"]) == (503, "no_replica", "1"), f"{status} {body}")
    say("X-Request-Id, statistics, the live page, problem bodies: checked")


def check_prometheus():
    compose("--profile", "metrics", "up", "--detach", "--no-build", "--no-recreate", "prometheus")

    def scrapes_three_replicas():
        status, _, body = request("GET", "/prometheus/api/v1/targets")
        return status == 200 and [t["health"] for t in json.loads(body)["data"]["activeTargets"]] == ["up"] * 3

    wait_until("Prometheus scrapes three replicas", scrapes_three_replicas)
    docker("rm", "--force", container_of("prometheus"))
    say("three targets: up")
