#!/usr/bin/env python3
"""Compares Rowlock with a handler that does nothing and with alternatives: `make bench`, `make bench-quick`.

Each service receives the same: one JSON row over HTTP (or its own protocol, if the table says so), durable when acknowledged. They run
one after the other, in rounds, so that other work on this machine affects all of them. Medians count, and their ratios more than the
absolute figures. Needs wrk, redis-server, webdis, postgresql and python3-venv, which `benches/install-deps` installs.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "benches" / "peers"
VENV = ROOT / "target" / "bench-venv" / "bin"
ROWLOCK = ROOT / "target" / "bench" / "release" / "rowlock"
LOCK_PER_REQUEST = ROOT / "target" / "peers" / "release" / "lock-per-request"
DATA = "thirty bytes of data in a row1"
BODY = json.dumps({"data": DATA})


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Running:
    """The processes of a service, in a temporary folder."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rowlock-bench-", dir=os.environ.get("BENCH_DIR", ROOT / "target")))
        self.processes, self.measured = [], []

    def start(self, command, port=None, measured=True, patience=30, **env):
        process = subprocess.Popen([str(part) for part in command], cwd=self.folder, env={"PATH": os.environ["PATH"], **env},
                                   stdout=open(self.folder / "log", "ab"), stderr=subprocess.STDOUT)
        self.processes.append(process)
        if measured:
            self.measured.append(process.pid)
        deadline = time.monotonic() + patience
        while port is not None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} does not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def redis(self, *settings, measured=False):
        port = free_port()
        self.start(["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", self.folder, *settings], port, measured)
        return port

    def end(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def with_children(pids):
    """These processes and all their descendants."""
    children = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, remaining = [], list(pids)
    while remaining:
        pid = remaining.pop()
        found.append(pid)
        remaining += children.get(pid, [])
    return found


def cpu_seconds(pids):
    ticks = 0
    for pid in with_children(pids):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            # Of the process and of children that it has waited for.
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pids):
    """Proportional set size: each shared page is divided among the processes that share it."""
    kib = 0
    for pid in with_children(pids):
        with contextlib.suppress(OSError):
            kib += int(re.search(r"^Pss:\s+(\d+)", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
    return kib / 1024


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


def wrk(urls, body, headers, connections, seconds):
    """Runs one wrk per target, all at once. Returns the total rate, the highest p50 and p99, and the rate of each target."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = {json.dumps(body)}\n")
        script.writelines(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n" for name, value in headers.items())
        script.flush()
        each = max(1, connections // len(urls))
        runs = [subprocess.Popen(["wrk", "-t1", f"-c{each}", f"-d{seconds}", "--timeout", "30", "--latency", "-s", script.name, url],
                                 stdout=subprocess.PIPE, text=True) for url in urls]
        outputs = [run.communicate()[0] for run in runs]
    rates, p50, p99 = [], [], []
    for text in outputs:
        failed = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", text)
        if failed:
            raise SystemExit(f"{urls}: requests failed: {failed[0]}")
        rates.append(float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]))
        p50.append(milliseconds(re.search(r"^\s+50%\s+(\S+)", text, re.M)[1]))
        p99.append(milliseconds(re.search(r"^\s+99%\s+(\S+)", text, re.M)[1]))
    return {"rate": sum(rates), "p50": max(p50), "p99": max(p99), "shares": rates}


JSON = {"Content-Type": "application/json"}


def rowlock(replicas, on_redis=True, path="/append"):
    def measure(running, connections, seconds):
        env = {"RUST_LOG": "warn", "REDIS_CSV_FILE_NAME": str(running.folder / "rows.csv")}
        if on_redis:
            env["REDIS_CONN_STR"] = f"redis://127.0.0.1:{running.redis()}"
        ports = [free_port() for _ in range(replicas)]
        for number, port in enumerate(ports):
            running.start([ROWLOCK], port, ROWLOCK_LISTEN=f"127.0.0.1:{port}", ROWLOCK_REPLICA=f"bench-{number}", **env)
        return wrk([f"http://127.0.0.1:{port}{path}" for port in ports], BODY, JSON, connections, seconds)
    return measure


def lock_per_request(running, connections, seconds):
    port, redis = free_port(), running.redis()
    running.start([LOCK_PER_REQUEST, f"127.0.0.1:{port}", f"redis://127.0.0.1:{redis}", running.folder / "rows.csv"], port)
    return wrk([f"http://127.0.0.1:{port}/append"], BODY, JSON, connections, seconds)


def fastapi(running, connections, seconds):
    port, redis = free_port(), running.redis()
    running.start([VENV / "uvicorn", "--app-dir", PEERS / "fastapi", "--port", port, "--log-level", "warning", "app:app"], port,
                  REDIS_CONN_STR=f"redis://127.0.0.1:{redis}", REDIS_CSV_FILE_NAME=str(running.folder / "rows.csv"))
    return wrk([f"http://127.0.0.1:{port}/append"], BODY, JSON, connections, seconds)


ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")


def webdis(running, connections, seconds):
    redis, port = running.redis(*ALWAYS, measured=True), free_port()
    settings = {"redis_host": "127.0.0.1", "redis_port": redis, "http_host": "127.0.0.1", "http_port": port, "threads": 2,
                "pool_size": 20, "daemonize": False, "verbosity": 0, "logfile": str(running.folder / "webdis.log"),
                "acl": [{"enabled": ["XADD"]}]}
    (running.folder / "webdis.json").write_text(json.dumps(settings))
    running.start(["webdis", running.folder / "webdis.json"], port)
    body = "XADD/rows/*/data/" + DATA.replace(" ", "%20")
    return wrk([f"http://127.0.0.1:{port}/"], body, {}, connections, seconds)


def redis_alone(running, connections, seconds):
    port = running.redis(*ALWAYS, measured=True)
    command = ["redis-benchmark", "-p", port, "-c", connections, "--csv", "XADD", "rows", "*", "data", DATA]
    def benchmark(requests):
        output = subprocess.run([str(part) for part in command[:5] + ["-n", requests] + command[5:]], capture_output=True, text=True, check=True).stdout
        return [float(cell) for cell in re.findall(r'"([\d.]+)"', output.splitlines()[-1])]
    warm = benchmark(200 * connections)[0]
    rate, _, _, p50, _, p99, _ = benchmark(int(warm * seconds))
    return {"rate": rate, "p50": p50, "p99": p99, "shares": [rate]}


def postgres(running, connections, seconds):
    binaries, data, port = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin")), running.folder / "postgres", free_port()
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    data.mkdir()
    running.folder.chmod(0o755)
    (running.folder / "log").touch()
    if as_user:
        shutil.chown(data, "postgres")
    def run(*command):
        return subprocess.run([*as_user, *map(str, command)], check=True, capture_output=True, text=True, cwd=data).stdout
    run(binaries / "initdb", "-D", data, "-U", "postgres", "--auth", "trust")
    running.start([*as_user, binaries / "postgres", "-D", data, "-p", port, "-k", data, "-c", "max_connections=300"], port)
    host = ["-h", "127.0.0.1", "-p", port, "-U", "postgres"]
    deadline = time.monotonic() + 30
    while subprocess.run([*as_user, *map(str, ["psql", *host, "-c", "create table rows (id bigserial primary key, at timestamptz default now(), data text)"])],
                         capture_output=True, cwd=data).returncode:
        if time.monotonic() > deadline:
            raise SystemExit("PostgreSQL does not start")
        time.sleep(0.1)
    (data / "insert.sql").write_text(f"insert into rows (data) values ('{DATA}');\n")
    output = run("pgbench", *host, "-n", "-M", "prepared", "-f", data / "insert.sql", "-c", connections, "-j", 1, "-T", seconds,
               "--log", "--log-prefix", data / "latency", "postgres")
    took = sorted(int(line.split()[2]) / 1000 for log in data.glob("latency*") for line in log.read_text().splitlines())
    rate = float(re.search(r"tps = ([\d.]+)", output)[1])
    return {"rate": rate, "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100], "shares": [rate]}


def one_process_per_row(running, connections, seconds):
    env = {"PATH": os.environ["PATH"], "REDIS_CONN_STR": f"redis://127.0.0.1:{running.redis()}",
           "REDIS_CSV_FILE_NAME": str(running.folder / "rows.csv")}
    began, took, under_way = time.monotonic(), [], {}
    running.measured.append(os.getpid())
    while time.monotonic() < began + seconds or under_way:
        while len(under_way) < min(connections, 16) and time.monotonic() < began + seconds:
            process = subprocess.Popen([VENV / "python", PEERS / "one-process-per-row.py", DATA], env=env)
            under_way[process.pid] = (process, time.monotonic())
        pid, status = os.wait()
        process, started = under_way.pop(pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit("one-process-per-row.py failed")
        took.append((time.monotonic() - started) * 1000)
    rate = len(took) / (time.monotonic() - began)
    took.sort()
    return {"rate": rate, "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100], "shares": [rate]}


CONTENDERS = {
    "ceiling": ("a handler that does nothing, same stack, same body", rowlock(1, on_redis=False, path="/nothing")),
    "rowlock-1": ("Rowlock, one replica on Redis", rowlock(1)),
    "rowlock-3": ("Rowlock, three replicas", rowlock(3)),
    "rowlock-8": ("Rowlock, eight replicas", rowlock(8)),
    "rowlock-embedded": ("Rowlock, one replica, embedded lock", rowlock(1, on_redis=False)),
    "rslock": ("a lock per request: axum, `rslock`, `fdatasync`", lock_per_request),
    "fastapi": ("FastAPI, `redis-py` lock, `csv`, `fdatasync`", fastapi),
    "webdis": ("Webdis, Redis `XADD`, `appendfsync always`", webdis),
    "redis": ("Redis `XADD` over RESP, `appendfsync always`", redis_alone),
    "postgres": ("PostgreSQL, single-row inserts, prepared (`pgbench`)", postgres),
    "process": ("one process per row (at most 16 at a time)", one_process_per_row),
}


def measure(name, connections, seconds):
    running = Running()
    try:
        before = os.times()
        result = CONTENDERS[name][1](running, connections, seconds)
        if name == "process":
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
        else:
            cpu = cpu_seconds(running.measured)
        rows = result["rate"] * seconds
        return {**result, "cpu": cpu / rows * 100_000, "mib": 0 if name == "process" else resident_mib(running.measured)}
    finally:
        running.end()


def medians(runs):
    shares = [run["shares"] for run in runs]
    jain = [sum(s) ** 2 / (len(s) * sum(x * x for x in s)) for s in shares]
    return {key: statistics.median(run[key] for run in runs) for key in ("rate", "p50", "p99", "cpu", "mib")} | {"jain": min(jain)}


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(results, connections):
    lines = [f"| {connections} connections | rows/s | p50 ms | p99 ms | CPU s per 100,000 rows | MiB | of the ceiling |", "|---|---|---|---|---|---|---|"]
    ceiling = results[("ceiling", connections)]["rate"]
    for name, (title, _) in CONTENDERS.items():
        if result := results.get((name, connections)):
            cells = [number(result[key]) for key in ("rate", "p50", "p99", "cpu")]
            lines.append(f"| {title} | {' | '.join(cells)} | {number(result['mib']) if result['mib'] else '–'} | {result['rate'] / ceiling:.2g} |")
    return "\n".join(lines)


def goals(results):
    """The table of all goals that this run has measured."""
    rows = []
    def ratio(what, goal, a, b, at):
        if (a, at) in results and (b, at) in results:
            rows.append((f"{what}, {at} connections", goal, results[(a, at)]["rate"] / results[(b, at)]["rate"]))
    ratio("one replica against the ceiling", 0.95, "rowlock-1", "ceiling", 256)
    ratio("one replica against the ceiling", 0.80, "rowlock-1", "ceiling", 64)
    for at in (256, 64):
        ratio("three replicas together against one", 0.95, "rowlock-3", "rowlock-1", at)
        ratio("eight replicas together against one", 0.90, "rowlock-8", "rowlock-1", at)
    for other, what, goal in (("rslock", "a lock per request", 40), ("fastapi", "FastAPI", 40), ("webdis", "Webdis and Redis", 1.5),
                              ("redis", "Redis over RESP", 1.05), ("postgres", "PostgreSQL", 1.8)):
        for at in (64, 256):
            ratio(f"against {what}", goal, "rowlock-1", other, at)
    lines = ["| what | goal | measured | |", "|---|---|---|---|"] if rows else []
    lines += [f"| {what} | {goal:g} | {measured:.3g} | {'reached' if measured >= goal else '**missed**'} |" for what, goal, measured in rows]
    for name in ("rowlock-3", "rowlock-8"):
        if result := results.get((name, 256)):
            spread = result["p99"] / result["p50"]
            lines.append(f"| {CONTENDERS[name][0]}: Jain's index | 0.99 | {result['jain']:.4f} | {'reached' if result['jain'] >= 0.99 else '**missed**'} |")
            lines.append(f"| {CONTENDERS[name][0]}: p99 against p50, at most | 5 | {spread:.3g} | {'reached' if spread <= 5 else '**missed**'} |")
    return "\n".join(lines)


def version(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout or done.stderr).splitlines()[0].strip()


def machine():
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return (f"{os.cpu_count()} cores ({cpu[1] if cpu else platform.machine()}), Linux {platform.release()}, {version('rustc', '--version')}, "
            f"{version('redis-server', '--version').split(' sha')[0]}, {version('psql', '--version')}, {version(str(VENV / 'python'), '--version')}, "
            f"{time.strftime('%Y-%m-%d')}. The load generator shares the cores.")


def write_into_results(part, text):
    path, first, last = ROOT / "benches" / "RESULTS.md", f"<!-- {part}: written by make bench -->\n", f"<!-- end of {part} -->\n"
    before, rest = path.read_text().split(first)
    path.write_text(before + first + text + "\n" + last + rest.split(last)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="rounds, of which the medians count (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=5, help="duration of each measurement (default: %(default)s)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--write", action="store_true", help="write the tables to benches/RESULTS.md")
    args = parser.parse_args()
    total, done, runs = args.runs * len(args.connections) * len(args.only), 0, {}
    for round_number in range(args.runs):
        for connections in args.connections:
            for name in args.only:
                result = measure(name, connections, args.seconds)
                runs.setdefault((name, connections), []).append(result)
                done += 1
                print(f"[{done}/{total}] {name}, {connections} connections: {number(result['rate'])}/s, p99 {number(result['p99'])} ms", flush=True)
    results = {key: medians(some) for key, some in runs.items()}
    parts = [f"Medians of {args.runs} rounds of {args.seconds} s. {machine()}"]
    if "ceiling" in args.only:
        parts += [table(results, connections) for connections in args.connections]
    parts.append(goals(results))
    text = "\n\n".join(parts)
    print("\n" + text)
    if args.write:
        write_into_results("comparison", text)


if __name__ == "__main__":
    main()
