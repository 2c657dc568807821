"""Faults of replicas and Redis. Each returns when it began and the longest outage that it may cause, in seconds."""

import http.client
import json
import re
import socket
import threading
import time
from pathlib import Path

import stack
from stack import (
    OUTAGE_SECS_MAX, PORT, PROJECT, TTL_SECS, compose, container_of, docker, inspect, pid_of, ready_replicas, replicas, request,
    run_on_host, run_on_volume,
)  # fmt: skip
from steps import check, say, wait_until


def kill_holder(probe):
    """Kills the replica that holds the lock for a row that sleeps. The kill comes from the host, so it is a crash to the engine,
    which must restart the container."""
    responses = []
    sleeper = threading.Thread(target=lambda: responses.append(append_in_one_packet({"data": "killed", "sleep": 30})), daemon=True)
    sleeper.start()
    victim = next(filter(None, (find_sleeping_holder() for _ in range(20))), None)
    check(victim, "the row does not sleep")
    begin = time.monotonic()
    run_on_host(f"kill -9 {pid_of(victim)}")
    sleeper.join(timeout=10)
    check(responses, "the row of the killed replica has no response: a load balancer has repeated it")
    status, problem = responses[0]
    check((status, problem["code"], problem["outcome"]) == (502, "bad_gateway", "unknown"), f"the row's response is {status} {problem}")
    wait_until("the killed replica is ready", lambda: inspect(victim, "{{.RestartCount}}") != "0" and len(ready_replicas()) == 3)
    return begin, OUTAGE_SECS_MAX


def append_in_one_packet(row):
    """An append whose head and body arrive together: HAProxy can repeat only a request that it has buffered whole."""
    body = json.dumps(row)
    head = f"POST /append HTTP/1.1\r\nHost: lb\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", PORT), timeout=100) as connection:
        connection.sendall((head + body).encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


def find_sleeping_holder():
    """The container that has held the lock with one token for half a second, if there is one."""
    first = json.loads(request("GET", "/lock")[2])
    time.sleep(0.5)
    second = json.loads(request("GET", "/lock")[2])
    if not first["holder"] or [first[n] for n in ("holder", "token")] != [second[n] for n in ("holder", "token")]:
        return None
    return next((replica for replica in replicas() if first["holder"].startswith(replica[:12])), None)


def pause_at(victim, inside):
    """Pauses the replica again and again until it has, or has not, the OS lock of the file. Returns when it was paused."""
    inode = run_on_volume("-c", "%i", "/data/rows.csv.journal", entrypoint="stat").strip()
    pid = pid_of(victim)
    os_lock = rf"FLOCK +ADVISORY +WRITE +{pid} [0-9a-f]+:[0-9a-f]+:{inode} "
    for _ in range(200):
        begin = time.monotonic()
        docker("pause", victim)
        locks = Path("/proc/locks").read_text() if stack.engine_is_ours else run_on_host("cat /proc/locks")
        if bool(re.search(os_lock, locks)) == inside:
            return begin
        docker("unpause", victim)
        time.sleep(0.05)
    check(False, f"in 200 attempts the replica was never paused {'with' if inside else 'without'} the OS lock")


def pause(probe, inside):
    victim = replicas()[1]
    begin = pause_at(victim, inside)
    # Rows that were durable before the pause may still be acknowledged.
    no_rows_after = time.monotonic() + 0.5
    time.sleep(TTL_SECS + 2)
    resumed = time.monotonic()
    docker("unpause", victim)
    wait_until("rows are acknowledged again", lambda: probe.is_acknowledged_since(resumed))
    if not inside:
        return begin, OUTAGE_SECS_MAX
    written = [result for result in probe.acknowledged() if no_rows_after <= result.answered <= resumed]
    check(not written, f"rows were written while a paused replica had the OS lock: {written}")
    return begin, resumed - begin + OUTAGE_SECS_MAX


def disconnect_from_redis(probe):
    victim = replicas()[2]
    begin = time.monotonic()
    docker("network", "disconnect", f"{PROJECT}_back", victim)
    time.sleep(TTL_SECS + 2)
    docker("network", "connect", "--alias", "app", f"{PROJECT}_back", victim)
    connected = time.monotonic()
    wait_until("the replica acknowledges rows again", lambda: probe.is_acknowledged_since(connected, by=victim[:12]))
    say(f"the replica acknowledged rows {time.monotonic() - connected:.1f} s after it was connected again")
    return begin, OUTAGE_SECS_MAX


def restart_redis(probe):
    """The restart itself may last as long as it takes; the outage may be longer by OUTAGE_SECS_MAX."""
    begin = time.monotonic()
    docker("restart", "--time", "10", container_of("redis"))
    took = time.monotonic() - begin
    say(f"Redis restarted in {took:.1f} s")
    return begin, took + OUTAGE_SECS_MAX


def scale(probe, count):
    begin = time.monotonic()
    compose("up", "--detach", "--no-recreate", "--no-build", "--scale", f"app={count}", "app")
    wait_until(f"{count} replicas are ready", lambda: len(ready_replicas()) == count == len(replicas()))
    return begin, OUTAGE_SECS_MAX


FAULTS = [
    ("SIGKILL of the holder", kill_holder),
    ("a replica paused without the OS lock", lambda probe: pause(probe, inside=False)),
    ("a replica paused with the OS lock", lambda probe: pause(probe, inside=True)),
    ("a replica disconnected from Redis", disconnect_from_redis),
    ("a restart of Redis", restart_redis),
    ("scaling from 3 to 5", lambda probe: scale(probe, 5)),
    ("scaling from 5 to 2", lambda probe: scale(probe, 2)),
]
