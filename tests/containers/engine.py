"""A Docker engine: the running one, or a temporary one that leaves nothing behind."""

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from steps import run

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
START_SECS_MAX = 60


def is_running():
    return subprocess.run(["docker", "info"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


@contextlib.contextmanager
def engine():
    """Provides an engine for `docker`. Yields whether it is a temporary one."""
    if is_running():
        yield False
        return
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        raise SystemExit(
            "No Docker engine responds, and none can be started here: that needs root and the Debian packages docker.io and\n"
            "docker-compose. Start one (`docker info` must work) and try again."
        )
    # Not in /tmp, which may be in memory: it will hold a toolchain and a target folder.
    folder = Path(tempfile.mkdtemp(prefix="rowlock-engine-", dir="/var/tmp"))
    network = Network()
    daemon = None
    try:
        os.environ["DOCKER_HOST"] = f"unix://{folder}/docker.sock"
        daemon = start(folder)
        yield True
    finally:
        os.environ.pop("DOCKER_HOST", None)
        if daemon:
            end(daemon)
        network.restore()
        unmount_below(folder)
        run("rm", "-rf", "--one-file-system", folder)


def start(folder):
    log = open(folder / "dockerd.log", "w")
    daemon = subprocess.Popen(
        [
            "dockerd",
            f"--data-root={folder}/data",
            f"--exec-root={folder}/exec",
            f"--pidfile={folder}/dockerd.pid",
            f"--host={os.environ['DOCKER_HOST']}",
        ],
        stdout=log,
        stderr=log,
        # Ctrl-C must reach only the test, which then ends the engine.
        start_new_session=True,
    )
    deadline = time.monotonic() + START_SECS_MAX
    while not is_running():
        if daemon.poll() is not None or time.monotonic() > deadline:
            end(daemon)
            raise SystemExit("dockerd does not start:\n" + (folder / "dockerd.log").read_text()[-4000:])
        time.sleep(0.1)
    return daemon


def end(daemon):
    daemon.terminate()
    try:
        daemon.wait(60)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def unmount_below(folder):
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        run("umount", "-l", mount)


class Network:
    """Restores the host's network: an engine leaves its bridge, its chains and forwarding behind."""

    TOOLS = ("iptables", "ip6tables")

    def __init__(self):
        self.forward = IP_FORWARD.read_text()
        self.links = self.all_links()
        self.tables = {tool: self.rules(tool) for tool in self.TOOLS}

    @staticmethod
    def all_links():
        return set(os.listdir("/sys/class/net"))

    @staticmethod
    def rules(tool):
        """(table, line) of all chains and rules, without counters."""
        table, found = "", []
        for line in run(f"{tool}-save", check=False).splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith((":", "-A")):
                found.append((table, line.split(" [")[0] if line.startswith(":") else line))
        return found

    def restore(self):
        for link in self.all_links() - self.links:
            if link.startswith(("docker", "br-", "veth")):
                run("ip", "link", "delete", link, check=False)
        for tool, before in self.tables.items():
            self.restore_tables(tool, before)
        IP_FORWARD.write_text(self.forward)

    def restore_tables(self, tool, before):
        added = [entry for entry in self.rules(tool) if entry not in before]
        for table, line in added:
            if line.startswith("-A"):
                run(tool, "-t", table, "-D", *shlex.split(line)[1:], check=False)
        chains = [(table, *line[1:].split()) for table, line in added if line.startswith(":")]
        for table, chain, policy in chains:
            if policy == "-":
                run(tool, "-t", table, "-X", chain, check=False)
            else:
                # The engine changed the policy of a built-in chain. A chain that was not listed before had the policy ACCEPT.
                old = [line.split()[1] for t, line in before if t == table and line.startswith(f":{chain} ")]
                run(tool, "-t", table, "-P", chain, (old or ["ACCEPT"])[0], check=False)
