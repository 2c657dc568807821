"""Hosts with a replica each on one volume, and Redis."""

import contextlib
import http.client
import json
import re
import shlex
import subprocess
import time

from guest import TOOLS, Guest
from sandbox import HARNESS, REDIS_PORT, RUN
from steps import run, wait_until
from volume import USER, Volume, create_disk, data_disk

CSV_HEADER = "timestamp,replica,token,key,data"
PORT = 8080
TTL_SECS = 2
JOURNAL_BYTES = "8MiB"
# After SIGTERM.
EXIT_SECS_MAX = 45


class StartFailed(Exception):
    """A replica does not start."""


class Cluster:
    """A server and hosts, with nothing kept from an earlier one."""

    def __init__(self, version, mount_options="", hosts=3, redis=True, local_disk=False):
        self.server = Guest("server", 1, memory_mib=256, disk=data_disk())
        self.volume = Volume(self.server, version, mount_options)
        self.hosts = [Guest(f"h{n}", n + 1) for n in range(1, hosts + 1)]
        if local_disk:
            self.hosts[0].disk = RUN / "local.img"
            create_disk(self.hosts[0].disk)
        self.redis = start_redis() if redis else None

    def __enter__(self):
        try:
            for guest in [self.server, *self.hosts]:
                guest.boot()
            for guest in [self.server, *self.hosts]:
                guest.wait_until_up()
            self.volume.make()
            for host in self.hosts:
                self.volume.mount(host)
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for guest in [self.server, *self.hosts]:
            guest.remove()
        if self.redis:
            self.redis.kill()
            self.redis.wait()
        data_disk().unlink(missing_ok=True)

    def others(self, host):
        return [other for other in self.hosts if other is not host]

    def settings(self, csv):
        redis = f"--redis redis://{HARNESS}:{REDIS_PORT}/0 " if self.redis else ""
        return f"{redis}--csv {csv} --lock-ttl {TTL_SECS}s --journal-bytes {JOURNAL_BYTES} --csv-header {CSV_HEADER}"

    def append(self, host, csv, data):
        """Runs `rowlock append`. Returns its JSON, or None, and what it printed."""
        command = as_user(
            f"/tools/rowlock append {self.settings(f'/mnt/data/{csv}')} --replica {host.name} --json --data {shlex.quote(data)}"
        )
        output = host.shell(f"cd /tmp; {command} 2>&1; echo status $?", secs_max=100)
        text, _, status = output.rpartition("status ")
        if status.strip() == "0":
            return json.loads(text[text.index("{") :]), text
        return None, text


def as_user(command):
    return f"setpriv --reuid={USER} --regid={USER} --clear-groups {command}"


def start_redis():
    redis = subprocess.Popen(
        ["redis-server", "--port", str(REDIS_PORT), "--save", "", "--protected-mode", "no", "--dir", str(RUN)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    wait_until("Redis answers", lambda: run("redis-cli", "-h", HARNESS, "ping", check=False).strip() == "PONG")
    return redis


class Replica:
    """`rowlock` on a host, with its log and exit status in the guest's /tmp."""

    def __init__(self, cluster, host, csv="/mnt/data/rows.csv", options=""):
        self.cluster, self.host, self.csv, self.options = cluster, host, csv, options
        self.may_exit = False

    def start(self):
        self.may_exit = False
        command = as_user(
            f"/tools/rowlock {self.cluster.settings(self.csv)} --listen 0.0.0.0:{PORT} --auth off --replica {self.host.name} {self.options}"
        )
        self.host.shell(
            "cd /tmp; rm -f exit; "
            f"(RUST_LOG=info {command} >> log 2>&1 < /dev/null & echo $! > pid; wait $!; echo $? > exit) > /dev/null 2>&1 &"
        )
        return self

    def wait_until_ready(self, secs_max=60):
        """Raises `StartFailed` with the end of the log if it ends instead, or is not ready in time."""
        deadline = time.monotonic() + secs_max
        while time.monotonic() < deadline and self.exit_status() is None:
            with contextlib.suppress(OSError):
                if self.is_ready():
                    return self
            time.sleep(0.05)
        raise StartFailed(f"{self.host.name}, status {self.exit_status()}: {self.host.shell('tail -n 3 /tmp/log').strip()[-500:]}")

    def is_ready(self):
        return get(self.host, "/readyz", timeout=2)[0] == 200

    def exit_status(self):
        """None while it runs."""
        text = self.host.shell("cat /tmp/exit 2> /dev/null || true", secs_max=10).strip()
        return int(text) if text else None

    def signal(self, name):
        self.may_exit = name in ("KILL", "TERM") or self.may_exit
        self.host.shell(f"kill -{name} $(cat /tmp/pid)", check=False)

    def terminate(self):
        """Ends it by SIGTERM. Returns the exit status, or None if it does not end."""
        self.signal("TERM")
        try:
            wait_until("the exit", lambda: self.exit_status() is not None, EXIT_SECS_MAX)
        except SystemExit:
            return None
        return self.exit_status()

    def metrics(self):
        """Counters by name; samples of one metric with several labels are added."""
        found = {}
        for line in get(self.host, "/metrics", timeout=10)[1].decode().splitlines():
            if match := re.match(r"(rowlock_\w+)(?:\{[^}]*\})? ([0-9.e+]+)$", line):
                found[match[1]] = found.get(match[1], 0) + float(match[2])
        return found

    def complaints(self, lines=4):
        """The most frequent warnings and errors of its log."""
        output = self.host.shell(
            "grep -hE ' (WARN|ERROR) ' /tmp/log | sed -E 's/\\x1b\\[[0-9;]*m//g; s/^[^ ]+ +//; s/[0-9]+/N/g' | cut -c1-160 | sort | uniq -c "
            f"| sort -rn | head -n {lines}",
            check=False,
        )
        return [line.strip() for line in output.splitlines()]


def get(host, path, timeout=20):
    connection = http.client.HTTPConnection(host.address, PORT, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as e:
        raise OSError(str(e)) from e
    finally:
        connection.close()


def lock_holder(host):
    """The replica that holds the lease in Redis, as this host sees it."""
    return json.loads(get(host, "/lock", timeout=5)[1]).get("holder")


def provide_tools(binary):
    """The folder that all guests see: this run's replica, without the debug information, and the agent."""
    here = __file__.rpartition("/")[0]
    TOOLS.mkdir(parents=True, exist_ok=True)
    run("strip", "--strip-debug", "-o", TOOLS / "rowlock", binary)
    for name in ("init", "agent.py"):
        run("install", "-m", "755", f"{here}/guest/{name}", TOOLS / name)
