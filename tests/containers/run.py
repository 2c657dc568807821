#!/usr/bin/env python3
"""docker-compose.yml at work: three replicas on one volume, through the load balancer, while all kinds of things happen to them.

Images, network, volumes and containers are made for it and taken away again; so is the engine, if none ran.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import bases
from engine import engine, run

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
PROJECT = f"rowlock-test-{os.getpid()}"
# What runs beside the compose file's own.
OURS = f"rowlock.test={PROJECT}"
TTL_SECS = 3
# The longest that a fault may keep everybody from writing: the dead holder's time to live, and a second to go on.
OUTAGE_SECS_MAX = TTL_SECS + 1
REQUESTS = 20_000
# Both loads of the faults together.
RATE = 500
READY_MS_GOAL, IMAGE_MB_GOAL, IDLE_MIB_GOAL = 200, 40, 15
# docs/deployment.md, "The load balancer". 201, and what replicas and load balancer refuse while replicas and Redis come and go.
DOCUMENTED = {
    (201, ""),
    (503, "redis_unavailable"),
    (503, "lock_lost"),
    (503, "wait_timeout"),
    (503, "file_busy"),
    (503, "draining"),
    (503, "no_replica"),
    (502, "bad_gateway"),
    # The same on a connection that served requests before; and a connection that ended before anything was sent on it.
    (0, "connection broke"),
    (0, "connection closed"),
    # With keys: the first try is still under way in the same replica.
    (409, "key_in_flight"),
}


def compose(*args, **kwargs):
    return run(*COMPOSE, "--project-name", PROJECT, "--project-directory", ROOT, "--file", COMPOSE_FILE, *args, **kwargs)


def docker(*args, **kwargs):
    return run("docker", *args, **kwargs)


def inspect(what, template):
    return docker("inspect", "--format", template, what).strip()


def replicas():
    return sorted(docker("ps", "--quiet", "--no-trunc", *labels("app")).split())


def labels(service):
    return [f"--filter=label=com.docker.compose.{key}={value}" for key, value in (("project", PROJECT), ("service", service))]


def the(service):
    (one,) = docker("ps", "--all", "--quiet", "--no-trunc", *labels(service)).split()
    return one


def ask(method, path, body=None, headers={}, timeout=100):
    """Status, headers and body, through the load balancer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=timeout)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def append(data, timeout=100):
    return ask("POST", "/append", json.dumps({"data": data}), {"Content-Type": "application/json"}, timeout)


def up():
    """Names of replicas that the load balancer finds ready."""
    table = ask("GET", "/haproxy;csv", timeout=5)[2].decode()
    return [line.split(",")[1] for line in table.splitlines() if line.startswith("app,app") and ",UP," in line]


def until(what, condition, secs_max=60):
    deadline = time.monotonic() + secs_max
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if condition():
                return
        check(time.monotonic() < deadline, f"waited {secs_max} s in vain until {what}")
        time.sleep(0.05)


def check(is_true, complaint):
    if not is_true:
        raise SystemExit(f"FAILED: {complaint}")


def say(text):
    print(f"  {text}", flush=True)


@contextlib.contextmanager
def step(title):
    print(title, flush=True)
    begun = time.monotonic()
    yield
    say(f"({time.monotonic() - begun:.1f} s)")


class Load:
    """`rowlock load` in a container beside the load balancer, until it is done or told to end."""

    def __init__(self, *args):
        # The file as it lies on the volume, which it can't change.
        self.id = docker(
            "run", "--detach", f"--network={PROJECT}_front", f"--volume={PROJECT}_data:/data:ro", "--read-only",
            "--label", OURS, IMAGE,
            "load", "--url", "http://lb:8080", "--concurrency", "64", "--verify", "/data/rows.csv", "--json", *args,
        ).strip()  # fmt: skip

    def is_running(self):
        return inspect(self.id, "{{.State.Running}}") == "true"

    def end(self):
        docker("kill", "--signal", "INT", self.id)
        return self.report()

    def report(self):
        status = int(docker("wait", self.id).strip())
        said = docker("logs", self.id)
        report = json.loads(said) if said.startswith("{") else {}
        error = subprocess.run(["docker", "logs", self.id], capture_output=True, text=True).stderr
        docker("rm", self.id)
        verified = report.get("verification") or {}
        check(status == 0 and verified.get("pass"), f"rowlock load ended with {status}: {said}{error}")
        requests, latency = report["requests"], report["latency"]
        say(
            f"load: {requests['sent']:,} requests, {requests['acknowledged']:,} acknowledged ({requests['acknowledged_per_s']:,.0f}/s), "
            f"{requests['not_written']} not written, {requests['unknown']} unknown; p50 {latency['p50_ms']:.0f} ms, "
            f"p99 {latency['p99_ms']:.0f} ms; verified: PASS"
        )
        answers = {(a["status"], "" if a["status"] == 201 else a["code"]): a["count"] for a in report["answers"]}
        say("answers: " + ", ".join(f"{status} {code} {count:,}".replace("  ", " ") for (status, code), count in answers.items()))
        return report, answers


class Seen(NamedTuple):
    """A probe, and what became of it."""

    data: str
    sent: float
    answered: float
    status: int
    code: str
    outcome: str
    replica: str


class Probe:
    """Rows without keys, a new one every 50 ms whatever became of those before, on a connection each."""

    EVERY_SECS = 0.05

    def __init__(self):
        self.lock = threading.Lock()
        self.seen = []
        self.threads = []
        self.done = threading.Event()
        self.pacer = threading.Thread(target=self.pace)
        self.pacer.start()

    def pace(self):
        number = 0
        while not self.done.wait(self.EVERY_SECS):
            thread = threading.Thread(target=self.one, args=[f"probe-{secrets.token_hex(6)}-{number}"])
            thread.start()
            self.threads.append(thread)
            number += 1

    def one(self, data):
        sent = time.monotonic()
        try:
            status, headers, body = append(data)
            # Whatever is no answer of ours is no documented one.
            problem = json.loads(body) if "json" in headers.get("Content-Type", "") else {"code": body[:60].decode(errors="replace")}
        except (OSError, http.client.HTTPException, ValueError) as error:
            status, problem = 0, {"code": repr(error)}
        said = [problem.get(name, "") for name in ("code", "outcome", "replica")]
        with self.lock:
            self.seen.append(Seen(data, sent, time.monotonic(), status, *said))

    def acknowledged(self):
        with self.lock:
            return [seen for seen in self.seen if seen.status == 201]

    def outage(self, begin, end):
        """The longest time without an acknowledgement."""
        times = sorted(seen.answered for seen in self.acknowledged() if begin <= seen.answered <= end)
        times = [begin, *times, end]
        return max(later - earlier for earlier, later in zip(times, times[1:]))

    def is_served_since(self, moment, by=""):
        return sum(seen.sent >= moment and seen.replica.startswith(by) for seen in self.acknowledged()) >= 5

    def end(self):
        self.done.set()
        self.pacer.join()
        for thread in self.threads:
            thread.join()
        return self.seen


def verify_probes(seen):
    """Every acknowledged row once, none that was certainly not written, and no row twice: nothing was sent again by a proxy."""
    rows = rows_csv().decode().splitlines()
    count = {}
    for row in rows:
        if found := re.search(r"probe-[0-9a-f]{12}-\d+", row):
            count[found[0]] = count.get(found[0], 0) + 1
    for probe in seen:
        there = count.get(probe.data, 0)
        allowed = {1} if probe.status == 201 else {0} if probe.outcome == "not_written" else {0, 1}
        check(there in allowed, f"{probe}: its row stands {there} times in the file")
    refused = [(probe.status, probe.code) for probe in seen if probe.status != 201]
    kinds = ", ".join(f"{status} {code} {refused.count((status, code))}" for status, code in sorted(set(refused))) or "none"
    say(f"probes: {len(seen):,} rows without keys, {len(seen) - len(refused):,} acknowledged, refused: {kinds}; verified")
    return refused


def rows_csv():
    status, _, body = ask("GET", "/rows.csv")
    check(status == 200, f"/rows.csv answered {status}")
    return body


def on_volume(*command, entrypoint=None):
    """A command in a container of its own, with the volume."""
    options = [f"--entrypoint={entrypoint}"] if entrypoint else []
    return docker("run", "--rm", "--network=none", f"--volume={PROJECT}_data:/data", *options, IMAGE, *command)


def on_host(script):
    """As root, among the processes of the engine's host, wherever that is."""
    return docker("run", "--rm", "--network=none", "--pid=host", "--user=0:0", "--entrypoint=sh", IMAGE, "-c", script)


def pid_of(container):
    return inspect(container, "{{.State.Pid}}")


# --- What is done to them ---


def kill(probe):
    """The one that holds the lock for a row that sleeps. From outside, so that it is a crash, and the restart policy's to mend."""
    answer = []
    sleeper = threading.Thread(target=lambda: answer.append(in_one_piece({"data": "killed", "sleep": 30})), daemon=True)
    sleeper.start()
    victim = next(filter(None, (holder_asleep() for _ in range(20))), None)
    check(victim, "the row does not sleep")
    begin = time.monotonic()
    on_host(f"kill -9 {pid_of(victim)}")
    sleeper.join(timeout=10)
    check(answer, "a load balancer sent a row again that was sent already: there is no answer")
    status, said = answer[0]
    check((status, said["code"], said["outcome"]) == (502, "bad_gateway", "unknown"), f"the killed row was answered {status} {said}")
    until("the killed replica is back", lambda: inspect(victim, "{{.RestartCount}}") != "0" and len(up()) == 3)
    return begin, OUTAGE_SECS_MAX


def in_one_piece(row):
    """An append whose head and body arrive together: HAProxy repeats nothing of which it has not all at hand."""
    body = json.dumps(row)
    head = f"POST /append HTTP/1.1\r\nHost: lb\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", PORT), timeout=100) as connection:
        connection.sendall((head + body).encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, json.loads(answer.read())


def holder_asleep():
    """The container that has held the lock under one token for a while, if there is one."""
    first = json.loads(ask("GET", "/lock")[2])
    time.sleep(0.5)
    second = json.loads(ask("GET", "/lock")[2])
    if not first["holder"] or [first[n] for n in ("holder", "token")] != [second[n] for n in ("holder", "token")]:
        return None
    return next((replica for replica in replicas() if first["holder"].startswith(replica[:12])), None)


def paused(victim, inside):
    """Pauses it until it is caught with the file's OS lock, or without."""
    inode = on_volume("-c", "%i", "/data/rows.csv.journal", entrypoint="stat").strip()
    pid = pid_of(victim)
    held = rf"FLOCK +ADVISORY +WRITE +{pid} [0-9a-f]+:[0-9a-f]+:{inode} "
    for _ in range(200):
        begin = time.monotonic()
        docker("pause", victim)
        locks = Path("/proc/locks").read_text() if ENGINE_IS_OURS else on_host("cat /proc/locks")
        if bool(re.search(held, locks)) == inside:
            return begin
        docker("unpause", victim)
        time.sleep(0.05)
    check(False, f"in 200 tries it was never paused {'inside' if inside else 'outside'} its guarded section")


def pause(probe, inside):
    victim = replicas()[1]
    begin = paused(victim, inside)
    # What was durable by then may still be answered.
    still = time.monotonic() + 0.5
    time.sleep(TTL_SECS + 2)
    resumed = time.monotonic()
    docker("unpause", victim)
    until("rows are taken again", lambda: probe.is_served_since(resumed))
    if not inside:
        return begin, OUTAGE_SECS_MAX
    written = [seen for seen in probe.acknowledged() if still <= seen.answered <= resumed]
    check(not written, f"written while a replica was paused with the file in its hand: {written}")
    return begin, resumed - begin + OUTAGE_SECS_MAX


def cut_off(probe):
    """From Redis, and from nothing else."""
    victim = replicas()[2]
    begin = time.monotonic()
    docker("network", "disconnect", f"{PROJECT}_back", victim)
    time.sleep(TTL_SECS + 2)
    docker("network", "connect", "--alias", "app", f"{PROJECT}_back", victim)
    connected = time.monotonic()
    until("it takes rows again", lambda: probe.is_served_since(connected, by=victim[:12]))
    say(f"it wrote rows again {time.monotonic() - connected:.1f} s after it was connected")
    return begin, OUTAGE_SECS_MAX


def restart_redis(probe):
    """The outage counts from when it ends to when rows are taken again, beside the time that it is really away."""
    begin = time.monotonic()
    docker("restart", "--time", "10", the("redis"))
    away = time.monotonic() - begin
    say(f"Redis was restarted within {away:.1f} s")
    return begin, away + OUTAGE_SECS_MAX


def scale(probe, replicas_wanted):
    begin = time.monotonic()
    compose("up", "--detach", "--no-recreate", "--no-build", "--scale", f"app={replicas_wanted}", "app")
    until(f"{replicas_wanted} replicas are served", lambda: len(up()) == replicas_wanted == len(replicas()))
    return begin, OUTAGE_SECS_MAX


FAULTS = [
    ("a replica is killed", kill),
    ("one is paused past the time to live", lambda probe: pause(probe, inside=False)),
    ("one is paused inside its guarded section", lambda probe: pause(probe, inside=True)),
    ("one is cut off from Redis", cut_off),
    ("Redis is restarted", restart_redis),
    ("scaled from 3 to 5", lambda probe: scale(probe, 5)),
    ("scaled from 5 to 2", lambda probe: scale(probe, 2)),
]


# --- The test ---


def build():
    compose("build", "app", quiet=False)


def begin():
    compose("up", "--detach", "--no-build")
    until("three replicas are served", lambda: len(up()) == 3)


def figures():
    size = int(inspect(IMAGE, "{{.Size}}")) - int(inspect(bases.DEBIAN, "{{.Size}}"))
    goal("image above its base", size / 1e6, IMAGE_MB_GOAL, "MB")
    # The first of them makes the journal, and syncs it on a disk that still has the images to write.
    say(f"first start on a new volume until ready, the slowest of three: {max(map(ready_ms, replicas())):.1f} ms")
    replica = replicas()[0]
    restart(replica)
    goal("start until ready", ready_ms(replica), READY_MS_GOAL, "ms")
    resident = [re.findall(r"Vm(?:HWM|RSS):\s+(\d+)", docker("exec", r, "cat", "/proc/1/status")) for r in replicas()]
    goal("idle memory (resident, the largest of three)", max(int(rss) for _, rss in resident) / 1024, IDLE_MIB_GOAL, "MiB")
    say(f"binary: {on_volume('/usr/local/bin/rowlock', entrypoint='sha256sum').split()[0]}")


def goal(what, value, most, unit):
    word = "reached" if value < most else "MISSED"
    say(f"{what}: {value:.1f} {unit} (goal: under {most} {unit}, {word})")


def ready_ms(replica):
    """From the engine's word that the process was started to its own that it serves, by the engine's clock."""
    started = inspect(replica, "{{.State.StartedAt}}")
    log = subprocess.run(["docker", "logs", "--timestamps", replica], capture_output=True, text=True).stderr
    serving = [line.split()[0] for line in log.splitlines() if " serving" in line and "listening" in line]
    check(serving, f"no line says that it serves:\n{log}")
    check(inspect(replica, "{{.State.Health.Status}}") == "healthy", "a replica that serves is not healthy")
    first, second = (datetime.fromisoformat(text[:26].rstrip("Z").ljust(26, "0")) for text in (started, serving[-1]))
    return (second - first).total_seconds() * 1000


def restart(replica):
    """And waits until it is served again."""
    docker("stop", "--time", "45", replica)
    left = inspect(replica, "{{.State.ExitCode}}")
    check(left == "0", f"a replica did not leave by itself, but with {left}")
    docker("start", replica)
    until("the replica is healthy again", lambda: inspect(replica, "{{.State.Health.Status}}") == "healthy")
    until("three replicas are served", lambda: len(up()) == 3)


def is_hardened():
    for container in [*replicas(), the("lb"), the("redis")]:
        user = docker("exec", container, "id", "-u").strip()
        check(user != "0", f"{container} runs as root")
        caps = docker("exec", container, "cat", "/proc/1/status")
        check("NoNewPrivs:\t1" in caps and "CapBnd:\t0000000000000000" in caps, f"{container} may do more than it needs:\n{caps}")
        written = subprocess.run(["docker", "exec", container, "touch", "/var/x"], capture_output=True)
        check(b"Read-only file system" in written.stderr, f"{container}'s root can be written to: {written}")
        limit = inspect(container, "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.RestartPolicy.Name}}")
        check("0" not in limit.split()[:2] and limit.endswith("unless-stopped"), f"{container} is not limited: {limit}")
    published = docker("ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", "{{.Ports}}").split()
    published = [port for port in published if "->" in port]
    check(published == [f"127.0.0.1:{PORT}->8080/tcp"], f"published is {published}")
    said = docker("exec", the("redis"), "redis-cli", "config", "get", "maxmemory-policy")
    check("noeviction" in said, f"Redis evicts: {said}")
    said = docker("exec", "--env", "REDISCLI_AUTH=", the("redis"), "redis-cli", "ping")
    check("NOAUTH" in said, f"Redis asks for no password: {said}")
    say("no root, no capability, no writable root, one port, limits, a Redis that asks for its password: seen")


def the_balancer_speaks_our_language():
    _, headers, _ = ask("GET", "/livez")
    check(len(headers.get("X-Request-Id", "")) == 36, f"no X-Request-Id: {headers}")
    _, headers, _ = ask("GET", "/livez", headers={"X-Request-Id": "mine"})
    check(headers["X-Request-Id"] == "mine", "X-Request-Id was not taken over")
    check(b"Statistics Report" in ask("GET", "/haproxy")[2], "no statistics page")
    check(b"rowlock" in ask("GET", "/")[2].lower(), "no live page")
    # The backend of a profile that is off: what HAProxy answers by itself.
    status, headers, body = ask("GET", "/prometheus/graph")
    check((status, json.loads(body)["code"], headers["Retry-After"]) == (503, "no_replica", "1"), f"{status} {body}")
    say("X-Request-Id, statistics, the live page, problem bodies: seen")


def prometheus_scrapes_every_replica():
    compose("--profile", "metrics", "up", "--detach", "--no-build", "--no-recreate", "prometheus")

    def healthy():
        status, _, body = ask("GET", "/prometheus/api/v1/targets")
        return status == 200 and [t["health"] for t in json.loads(body)["data"]["activeTargets"]] == ["up"] * 3

    until("Prometheus finds three replicas", healthy)
    docker("rm", "--force", the("prometheus"))
    say("three targets: up")


def under_load():
    load = Load("--requests", str(REQUESTS))
    report, answers = load.report()
    check(set(answers) == {(201, "")} and report["requests"]["acknowledged"] == REQUESTS, "a request failed")
    check(len(report["replicas"]) == 3, f"not all replicas took part: {report['replicas']}")
    (_, rss), *_ = [re.findall(r"Vm(?:HWM|RSS):\s+(\d+)", docker("exec", r, "cat", "/proc/1/status")) for r in replicas()]
    say(f"memory of a replica afterwards: {int(rss) / 1024:.1f} MiB")


def under_faults():
    """Once without keys, where a request that a proxy repeats would be written twice, and once with keys."""
    loads = [Load("--duration", "1h", "--rate", str(RATE // 2), *keys) for keys in ([], ["--keys"])]
    probe = Probe()
    try:
        begin = time.monotonic()
        until("rows are taken", lambda: probe.is_served_since(begin))
        for title, fault in FAULTS:
            bear(probe, title, fault)
        # 20,000 at least, whatever the faults took.
        time.sleep(max(0, REQUESTS / RATE - (time.monotonic() - begin)))
    finally:
        seen = probe.end()
    refused = set(verify_probes(seen))
    sent = 0
    for load in loads:
        report, answers = load.end()
        refused |= set(answers)
        sent += report["requests"]["sent"]
    check(refused <= DOCUMENTED, f"not documented: {refused - DOCUMENTED}")
    check(sent >= REQUESTS, f"only {sent} requests were sent")
    compose("up", "--detach", "--no-build", "--no-recreate", "--scale", "app=3", "app")
    until("three replicas are served", lambda: len(up()) == 3)


def bear(probe, title, fault):
    begin, most = fault(probe)
    now = time.monotonic()
    until("rows are taken again", lambda: probe.is_served_since(now), secs_max=30)
    outage = probe.outage(begin, time.monotonic())
    say(f"{title}: {outage:.2f} s without an acknowledged row (at most {most:.1f} s)")
    check(outage <= most, f"{title}: no row was acknowledged for {outage:.2f} s, more than {most:.1f} s")


def rolling_restart():
    load, probe = Load("--duration", "1h", "--rate", str(RATE)), Probe()
    try:
        for replica in replicas():
            begun = time.monotonic()
            restart(replica)
            say(f"{replica[:12]} restarted within {time.monotonic() - begun:.1f} s")
    finally:
        seen = probe.end()
    check(verify_probes(seen) == [], "a request failed")
    report, answers = load.end()
    check(set(answers) == {(201, "")}, f"a request failed: {answers}")


def down_and_up():
    token = json.loads(append("before")[2])["token"]
    before = rows_csv()
    compose("down", "--timeout", "45")
    check(docker("ps", "--all", "--quiet", *labels("app")) == "", "something is left of what is down")
    say(on_volume("check", "/data/rows.csv").strip().replace("\n", "\n  "))
    begin()
    after = rows_csv()
    check(after == before, f"the file changed: {len(before)} bytes before, {len(after)} after")
    again = json.loads(append("after")[2])["token"]
    check(again > token, f"token {again} after {token}")
    say(f"the file is whole ({len(after):,} bytes, sha256 {hashlib.sha256(after).hexdigest()[:16]}); token {token}, then {again}")


def test():
    with step("build"):
        build()
    with step("up"):
        begin()
        is_hardened()
        the_balancer_speaks_our_language()
    with step("figures"):
        figures()
    with step("Prometheus"):
        prometheus_scrapes_every_replica()
    with step("1. under load"):
        under_load()
    with step("2. under load, with faults"):
        under_faults()
    with step("3. a rolling restart"):
        rolling_restart()
    with step("4. down and up"):
        down_and_up()


def clean_up(bases_made):
    """Whatever the test left, and what it made."""
    for container in docker("ps", "--all", "--quiet", "--filter", f"label={OURS}").split():
        docker("rm", "--force", "--volumes", container, check=False)
    compose("down", "--volumes", "--timeout", "0", check=False)
    for image in [IMAGE, *bases_made]:
        docker("rmi", "--force", image, check=False)
    # The stage that no image of a name stands on.
    docker("image", "prune", "--force", "--filter", "label=rowlock.stage=builder", check=False)


def tell():
    """What replicas and load balancer have said lately."""
    for service in ["app", "lb", "redis"]:
        for container in docker("ps", "--all", "--quiet", *labels(service), check=False).split():
            done = subprocess.run(["docker", "logs", "--tail", "25", container], capture_output=True, text=True)
            print(f"--- {service} {container}\n{done.stdout}{done.stderr}", file=sys.stderr)


def port():
    """8080, as anybody would have it, unless somebody else has it."""
    with socket.socket() as first, socket.socket() as second:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            first.bind(("127.0.0.1", 8080))
            return 8080
        except OSError:
            second.bind(("127.0.0.1", 0))
            print(f"somebody has port 8080; taking {second.getsockname()[1]}")
            return second.getsockname()[1]


def find_compose():
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise SystemExit("Neither `docker compose` nor docker-compose is here: Debian has the package docker-compose.")


def main():
    global ENGINE_IS_OURS
    begun = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(f"ended by signal {number}"))
    with engine() as ENGINE_IS_OURS:
        print(f"{docker('version', '--format', 'engine {{.Server.Version}}').strip()}, {' '.join(COMPOSE)}", flush=True)
        bases_made = []
        try:
            with step("base images"):
                bases.provide(bases_made)
            test()
        except BaseException:
            tell()
            raise
        finally:
            # With an engine of our own all of it goes at once.
            clean_up(bases_made)
    print(f"containers: all well, in {time.monotonic() - begun:.0f} s")


COMPOSE = find_compose()
# Under another name than anybody's own.
IMAGE = PROJECT
PORT = port()
# Then its processes are those of this host, and stand in /proc.
ENGINE_IS_OURS = False
# Neither the caller's settings nor those of .env: what is set wins over .env, and what is empty is as good as not set.
os.environ |= dict.fromkeys(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()), "")
os.environ |= {"ROWLOCK_IMAGE": IMAGE, "ROWLOCK_PORT": str(PORT), "ROWLOCK_LOCK_TTL": f"{TTL_SECS}s"}

if __name__ == "__main__":
    main()
