"""Namespaces for network, processes and mounts. The kernel removes all of them when the test ends, however it ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from image import CACHE, ROOT
from steps import run

# Set in the process that runs inside the namespaces.
INSIDE = "ROWLOCK_HOSTS_INSIDE"
PROGRAMS = ["unshare", "setpriv", "ip", "iptables", "mount", "mke2fs", "redis-server", "linux.uml", "debootstrap", "cc", "cargo"]
# The address of Redis and of the test, for all guests.
HARNESS = "10.78.0.1"
REDIS_PORT = 6379
RUN = CACHE / "run"
RUN_BYTES_MAX = "6g"


def enter(script, build):
    """Starts the script again inside new namespaces, after `build`, and ends with its status. Returns at once inside."""
    if INSIDE in os.environ:
        make_network()
        return
    if os.geteuid() != 0:
        raise SystemExit("hosts: this needs root for guests, namespaces and mounts: sudo -E make test-hosts")
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        raise SystemExit(f"hosts: programs are missing: {', '.join(missing)}; tests/install-deps hosts installs most of them")
    if not Path("/dev/net/tun").exists():
        raise SystemExit("hosts: /dev/net/tun is missing: the guests' network needs it (modprobe tun)")
    # debootstrap mounts below the root that it makes.
    supervise(
        "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", sys.executable, Path(__file__).parent / "image.py"
    )
    build()
    supervise(
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc",
        sys.executable, script, *sys.argv[1:], then_exit=True,
    )  # fmt: skip


def supervise(*command, then_exit=False):
    """Runs the command. It ends with this process, even if that is killed: unshare itself ignores SIGINT and SIGTERM."""
    env = os.environ | {INSIDE: "1", "PYTHONPATH": str(ROOT / "tests/support"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    # Ctrl-C reaches only this process.
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)], env=env, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(f"ended by signal {number}"))
    try:
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if then_exit or status:
        sys.exit(status)


def make_network():
    """The test's own address, packets between guests, and a folder in memory that ends with the namespace."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", f"{HARNESS}/32", "dev", "lo")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    RUN.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={RUN_BYTES_MAX}", "tmpfs", RUN)


class Link:
    """A guest's network: a tap with a subnet of its own. Every packet to another guest passes this host, which can drop it."""

    def __init__(self, number):
        self.tap = f"guest{number}"
        self.address, self.gateway = f"10.78.{number}.2", f"10.78.{number}.1"
        self.mac = f"52:54:00:78:00:{number:02x}"
        run("ip", "tuntap", "add", self.tap, "mode", "tap")
        run("ip", "addr", "add", f"{self.gateway}/24", "dev", self.tap)
        run("ip", "link", "set", self.tap, "up")

    def remove(self):
        self.heal()
        run("ip", "link", "delete", self.tap)

    def rules(self, other):
        """What drops all packets between this guest and another one, or Redis."""
        if other == "redis":
            port = str(REDIS_PORT)
            return [
                ["INPUT", "-s", self.address, "-p", "tcp", "--dport", port],
                ["OUTPUT", "-d", self.address, "-p", "tcp", "--sport", port],
            ]
        return [["FORWARD", "-s", self.address, "-d", other.address], ["FORWARD", "-s", other.address, "-d", self.address]]

    def cut(self, *others):
        for other in others:
            for rule in self.rules(other):
                run("iptables", "-w", "-A", *rule, "-j", "DROP")

    def heal(self):
        """Removes all cuts of this guest. Returns how many packets they dropped."""
        dropped = 0
        for chain in ("INPUT", "OUTPUT", "FORWARD"):
            listed = run("iptables", "-w", "-L", chain, "-v", "-x", "-n", "--line-numbers").splitlines()[2:]
            for line in reversed(listed):
                if re.search(rf"\b{re.escape(self.address)}\b", line):
                    dropped += int(line.split()[1])
                    run("iptables", "-w", "-D", chain, line.split()[0])
        return dropped
