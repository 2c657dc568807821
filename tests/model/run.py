#!/usr/bin/env python3
"""Checks the storage protocol in a model: several hosts on a network volume, each with a cache of its own.

Without options: the full run. The chosen protocol must keep all promises in 200,000 random histories and in all small ones; each rule is
removed in turn, and a history must then break a promise. Prints the table of docs/development/model.md.
"""

import argparse
import multiprocessing
import sys
import time

import local
from rules import BUFFERED, DIRECT, GROUND, PROTOCOLS, RULES, STEPS, rules_of
from search import SMALL, search_random, search_small
from seeds import LOCAL_SEEDS, SEEDS

HISTORIES, HISTORIES_QUICK = 200_000, 4_000
# Without a rule. A quick run starts where seeds.py says.
REMOVAL_HISTORIES, REMOVAL_HISTORIES_QUICK = 150_000, 100
LOCAL_HISTORIES, LOCAL_HISTORIES_QUICK = 200_000, 2_000
# Seconds for each kind of small histories.
SMALL_SECONDS = 120
CHUNK = 1_000


class Failures:
    """What went otherwise than it must."""

    def __init__(self):
        self.found = []

    def check(self, is_right, what):
        if not is_right:
            self.found.append(what)
            print(f"WRONG: {what}", flush=True)


def print_finding(result):
    print("\n".join(result.finding.trace))
    print(f"BROKEN: {result.finding.broken}", flush=True)


def keep(chunk):
    return search_random(*chunk)


def check_kept(failures, rules, seed, histories, workers):
    """The chosen protocol keeps all promises."""
    chunks = [(DIRECT, rules, seed + start, min(CHUNK, histories - start)) for start in range(0, histories, CHUNK)]
    done = stuck = 0
    with multiprocessing.Pool(workers) as pool:
        for result in pool.imap_unordered(keep, chunks):
            done, stuck = done + result.histories, stuck + result.stuck
            if result.finding:
                print_finding(result)
                failures.check(False, "the chosen protocol breaks a promise")
                break
    print(f"{DIRECT}: {done:,} histories, {stuck} stuck", flush=True)
    failures.check(stuck * 1000 <= done, "too many histories are stuck: they prove nothing")


def check_buffered(failures):
    """The order of local volumes breaks in the first history on several hosts."""
    result = search_random(BUFFERED, rules_of(BUFFERED), 0, 1)
    failures.check(result.finding, f"{BUFFERED} is not found to be wrong on several hosts")
    if result.finding:
        print(f"{BUFFERED}: breaks in the first history, without a fault: {result.finding.broken}", flush=True)


def without(task):
    name, seed, histories = task
    return name, search_random(DIRECT, rules_of(DIRECT) - {name}, seed, histories)


def check_removals(failures, quick, workers):
    """Without any rule, a history breaks a promise."""
    removable = {**STEPS, **GROUND}
    histories = REMOVAL_HISTORIES_QUICK if quick else REMOVAL_HISTORIES
    tasks = [(name, SEEDS[name] if quick else 0, histories) for name in removable]
    with multiprocessing.Pool(workers) as pool:
        for name, result in pool.imap(without, tasks):
            failures.check(result.finding, f"no history breaks without {name}")
            if result.finding and not quick:
                print(f"| {name} | {removable[name].text} | {result.histories:,} |", flush=True)
    print(f"{DIRECT}: {len(removable)} rules, removed one at a time", flush=True)


def check_small(failures, seconds):
    for small in SMALL:
        result, is_whole = search_small(DIRECT, rules_of(DIRECT), small, seconds)
        if result.finding:
            print_finding(result)
        failures.check(not result.finding, f"a small history breaks a promise: {small}")
        print(f"{small}: {result.histories:,} histories, {'all' if is_whole else 'not all'} of them", flush=True)


def check_local(failures, quick):
    histories = LOCAL_HISTORIES_QUICK if quick else LOCAL_HISTORIES
    broken = local.search(local.ALL, 0, histories)
    failures.check(broken is None, f"the protocol of local volumes breaks a promise: {broken}")
    print(f"local volume: {histories:,} histories; {len(local.GUARDS)} guards, removed one at a time", flush=True)
    for guard, text in local.GUARDS.items():
        seed, most = (LOCAL_SEEDS[guard], REMOVAL_HISTORIES_QUICK) if quick else (0, REMOVAL_HISTORIES)
        broken = local.search(local.without(guard), seed, most)
        failures.check(broken, f"no history of a local volume breaks without {guard}")
        if broken and not quick:
            cover = local.COVERED_BY.get(guard)
            print(f"| {guard} | {text}{f' (with {cover})' if cover else ''} | {broken.histories:,} |", flush=True)


def run_all(quick):
    failures = Failures()
    workers = 1 if quick else multiprocessing.cpu_count()
    check_buffered(failures)
    check_removals(failures, quick, workers)
    check_local(failures, quick)
    check_kept(failures, rules_of(DIRECT), 0, HISTORIES_QUICK if quick else HISTORIES, workers)
    if not quick:
        check_small(failures, SMALL_SECONDS)
    return failures.found


def names(text):
    found = set(text.split(","))
    if unknown := found - RULES.keys():
        raise argparse.ArgumentTypeError(f"no such rule: {', '.join(sorted(unknown))}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the part that `make test` runs")
    parser.add_argument("--histories", type=int, help="run so many histories and print the first that breaks a promise")
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=DIRECT)
    parser.add_argument("--without", type=names, default=set(), metavar="RULES", help="remove these rules, separated by commas")
    parser.add_argument("--with", dest="added", type=names, default=set(), metavar="RULES", help="add these rules")
    options = parser.parse_args()
    begun = time.monotonic()
    if options.histories:
        rules = (rules_of(options.protocol) | options.added) - options.without
        result = search_random(options.protocol, rules, options.seed, options.histories)
        if result.finding:
            print_finding(result)
        print(f"{options.protocol}: {result.histories:,} histories, {result.stuck} stuck")
        sys.exit(bool(result.finding))
    wrong = run_all(options.quick)
    print(f"model: {'WRONG: ' + '; '.join(wrong) if wrong else 'all as it must be'} in {time.monotonic() - begun:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
