"""The Compose project under test: names, commands, and requests through its load balancer."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from steps import check, run, wait_until

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
PROJECT = f"rowlock-test-{os.getpid()}"
# Unlike any image of the host.
IMAGE = PROJECT
# Label of containers that the test starts beside those of the compose file.
TEST_LABEL = f"rowlock.test={PROJECT}"
TTL_SECS = 3
# The longest time without an acknowledged row that a fault may cause: the time to live, and a second for recovery.
OUTAGE_SECS_MAX = TTL_SECS + 1
# Whether the test started the engine: then processes of containers are in this host's /proc. Set by run.py.
engine_is_ours = False


def find_compose():
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise SystemExit("Neither `docker compose` nor docker-compose is installed: Debian has the package docker-compose.")


def find_port():
    """8080, the default, or another port if it is in use."""
    with socket.socket() as first, socket.socket() as second:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            first.bind(("127.0.0.1", 8080))
            return 8080
        except OSError:
            second.bind(("127.0.0.1", 0))
            print(f"port 8080 is in use; using {second.getsockname()[1]}")
            return second.getsockname()[1]


COMPOSE = find_compose()
PORT = find_port()
# Clears the settings of the caller and of .env: an environment variable wins over .env, and an empty value counts as unset.
os.environ |= dict.fromkeys(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()), "")
os.environ |= {"ROWLOCK_IMAGE": IMAGE, "ROWLOCK_PORT": str(PORT), "ROWLOCK_LOCK_TTL": f"{TTL_SECS}s"}


def compose(*args, **kwargs):
    return run(*COMPOSE, "--project-name", PROJECT, "--project-directory", ROOT, "--file", COMPOSE_FILE, *args, **kwargs)


def docker(*args, **kwargs):
    return run("docker", *args, **kwargs)


def inspect(what, template):
    return docker("inspect", "--format", template, what).strip()


def labels(service):
    return [f"--filter=label=com.docker.compose.{key}={value}" for key, value in (("project", PROJECT), ("service", service))]


def replicas():
    return sorted(docker("ps", "--quiet", "--no-trunc", *labels("app")).split())


def container_of(service):
    (container,) = docker("ps", "--all", "--quiet", "--no-trunc", *labels(service)).split()
    return container


def pid_of(container):
    return inspect(container, "{{.State.Pid}}")


def memory_kib(container):
    """(peak, current) resident memory of the container's first process."""
    found = re.findall(r"Vm(?:HWM|RSS):\s+(\d+)", docker("exec", container, "cat", "/proc/1/status"))
    return tuple(map(int, found))


def run_on_volume(*command, entrypoint=None):
    """Runs a command in a new container with the volume."""
    options = [f"--entrypoint={entrypoint}"] if entrypoint else []
    return docker("run", "--rm", "--network=none", f"--volume={PROJECT}_data:/data", *options, IMAGE, *command)


def run_on_host(script):
    """Runs a script as root among the processes of the engine's host, which may be another machine."""
    return docker("run", "--rm", "--network=none", "--pid=host", "--user=0:0", "--entrypoint=sh", IMAGE, "-c", script)


def request(method, path, body=None, headers={}, timeout=100):
    """Status, headers and body of the response, through the load balancer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=timeout)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def append(data, timeout=100):
    return request("POST", "/append", json.dumps({"data": data}), {"Content-Type": "application/json"}, timeout)


def rows_csv():
    status, _, body = request("GET", "/rows.csv")
    check(status == 200, f"/rows.csv returned {status}")
    return body


def ready_replicas():
    """Names of replicas that the load balancer considers ready."""
    table = request("GET", "/haproxy;csv", timeout=5)[2].decode()
    return [line.split(",")[1] for line in table.splitlines() if line.startswith("app,app") and ",UP," in line]


def start():
    compose("up", "--detach", "--no-build")
    wait_for_three_replicas()


def wait_for_three_replicas():
    wait_until("three replicas are ready", lambda: len(ready_replicas()) == 3)


def restart(replica):
    """Stops and starts a replica, and waits until the load balancer uses it again."""
    docker("stop", "--time", "45", replica)
    status = inspect(replica, "{{.State.ExitCode}}")
    check(status == "0", f"a stopped replica exited with status {status}")
    docker("start", replica)
    wait_until("the replica is healthy again", lambda: inspect(replica, "{{.State.Health.Status}}") == "healthy")
    wait_for_three_replicas()
