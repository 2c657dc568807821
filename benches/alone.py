#!/usr/bin/env python3
"""Measures one replica and its disk: a single client, large batches, a large file, memory. Part of `make bench`."""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import time

from compare import BODY, JSON, ROWLOCK, Running, free_port, machine, number, resident_mib, write_into_results, wrk

ROW = "x" * 99 + "\n"


def replica(running, patience=30, **settings):
    port = free_port()
    running.start([ROWLOCK], port, patience=patience, RUST_LOG="warn", REDIS_CSV_FILE_NAME=str(running.folder / "rows.csv"), ROWLOCK_REPLICA="bench-0",
                  ROWLOCK_LISTEN=f"127.0.0.1:{port}", **settings)
    return f"http://127.0.0.1:{port}"


def appending(url, connections, seconds):
    return wrk([url + "/append"], BODY, JSON, connections, seconds)


def fdatasync_ms(folder, times=2000):
    """The median time of a sync after 4 KiB are overwritten in an allocated file: the lower bound of a durable append."""
    path, took = folder / "synced", []
    path.write_bytes(bytes(16 << 20))
    file = os.open(path, os.O_RDWR)
    os.fsync(file)
    for at in range(times):
        began = time.perf_counter()
        os.pwrite(file, b"x" * 4096, at % 4096 * 4096)
        os.fdatasync(file)
        took.append((time.perf_counter() - began) * 1000)
    os.close(file)
    path.unlink()
    return statistics.median(took)


def dd_bytes_per_second(folder, mib=1024):
    began = time.perf_counter()
    subprocess.run(["dd", "if=/dev/zero", f"of={folder / 'dd'}", "bs=1M", f"count={mib}", "conv=fdatasync"], check=True, capture_output=True)
    (folder / "dd").unlink()
    return (mib << 20) / (time.perf_counter() - began)


def single_client(seconds):
    """The median latency of one client, and of the disk alone, measured alternately."""
    rowlock, disk = [], []
    for _ in range(5):
        running = Running()
        try:
            url = replica(running)
            disk.append(fdatasync_ms(running.folder))
            rowlock.append(appending(url, 1, seconds)["p50"])
        finally:
            running.end()
    return statistics.median(rowlock), statistics.median(disk)


def batches(seconds, rows=100_000):
    """Rows per second in CSV batches, the bytes per second that the CSV grows by, and those that `dd` writes."""
    rates, bytes_rates, disk = [], [], []
    for _ in range(3):
        running = Running()
        try:
            url = replica(running, ROWLOCK_JOURNAL_BYTES="512MiB")
            disk.append(dd_bytes_per_second(running.folder))
            before, began = (running.folder / "rows.csv").stat().st_size, time.perf_counter()
            # wrk is slow with bodies of megabytes, so two Python clients send them.
            sent = subprocess.run(["python3", __file__, "--send", url, str(seconds), str(rows)], check=True, capture_output=True, text=True)
            took, count = time.perf_counter() - began, int(sent.stdout)
            rates.append(count * rows / took)
            bytes_rates.append(((running.folder / "rows.csv").stat().st_size - before) / took)
        finally:
            running.end()
    return statistics.median(rates), statistics.median(bytes_rates), statistics.median(disk)


def send(url, seconds, rows):
    """Sends batches from two threads, and prints how many were acknowledged."""
    import http.client
    import threading
    body, deadline, written = ("data\n" + ROW * rows).encode(), time.monotonic() + seconds, []
    def client():
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        while time.monotonic() < deadline:
            connection.request("POST", "/append/batch", body, {"Content-Type": "text/csv"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 201:
                raise SystemExit(f"a batch was refused with status {answer.status}")
            written.append(1)
    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(len(written))


def large_file(gib, seconds):
    """Ratios of the median latency with a large CSV to that with an empty one, measured alternately, at 1 and 64 connections."""
    empty, large = Running(), Running()
    try:
        line = b"2026-01-01T00:00:00.000Z,before,0," + b"y" * 66 + b"\n"
        with open(large.folder / "rows.csv", "wb") as file:
            file.write(b"timestamp,replica,token,data\n")
            chunk = line * ((16 << 20) // len(line))
            for _ in range(gib * 64):
                file.write(chunk)
        urls = [replica(empty), replica(large, patience=300)]
        ratios = {}
        for connections in (1, 64):
            took = ([], [])
            for _ in range(5):
                for url, into in zip(urls, took):
                    into.append(appending(url, connections, seconds)["p50"])
            ratios[connections] = statistics.median(took[1]) / statistics.median(took[0])
        return ratios
    finally:
        empty.end()
        large.end()


def memory(seconds):
    running = Running()
    try:
        appending(replica(running), 256, seconds)
        pid = running.measured[0]
        peak = re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())
        return int(peak[1]) / 1024, resident_mib(running.measured)
    finally:
        running.end()


def line(what, goal, measured, reached):
    return f"| {what} | {goal} | {measured} | {'reached' if reached else '**missed**'} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="duration of each measurement (default: %(default)s)")
    parser.add_argument("--gib", type=int, default=10, help="size of the large file (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the table to benches/RESULTS.md")
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send:
        return send(args.send[0], int(args.send[1]), int(args.send[2]))
    lines = ["| what | goal | measured | |", "|---|---|---|---|"]
    rowlock, disk = single_client(args.seconds)
    lines.append(line("one client: median latency against one `fdatasync` of 4 KiB", "2.5 times at most",
                      f"{rowlock / disk:.2f} times ({number(rowlock * 1000)} µs against {number(disk * 1000)} µs)", rowlock <= 2.5 * disk))
    print(lines[-1], flush=True)
    rows, bytes_rate, dd = batches(args.seconds)
    lines.append(line("`/append/batch`, CSV bodies of 100,000 rows of 100 bytes", "1,000,000 rows/s",
                      f"{number(rows)} rows/s; with the journal's copy {2 * bytes_rate / dd:.2f} of what `dd conv=fdatasync` writes", rows >= 1e6))
    print(lines[-1], flush=True)
    for connections, ratio in large_file(args.gib, args.seconds).items():
        lines.append(line(f"median latency with a CSV of {args.gib} GiB against an empty one, {connections} connections", "1.05 times at most",
                          f"{ratio:.3f} times", ratio <= 1.05))
        print(lines[-1], flush=True)
    peak, resident = memory(args.seconds)
    lines.append(line("resident memory at 256 connections, without keys", "64 MiB at most", f"{number(peak)} MiB at its peak", peak <= 64))
    print(lines[-1], flush=True)
    if args.write:
        write_into_results("alone", f"{machine()}\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
