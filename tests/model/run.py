#!/usr/bin/env python3
"""Checks the storage protocol in a model: several hosts, each with a cache of its own, on one network volume."""

import argparse
import sys
import time

from rules import BUFFERED, DIRECT, GROUND, PROTOCOLS, RULES, SHORTCUTS, SPARE, STEPS, rules_of
from search import SMALL, search_random, search_small


def report(result):
    if result.finding:
        print("\n".join(result.finding.trace))
        print(f"BROKEN: {result.finding.broken}")


def words(text):
    names = {word for word in text.split(",") if word}
    if unknown := names - RULES.keys():
        sys.exit(f"no such rule: {sorted(unknown)}")
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=PROTOCOLS, default=DIRECT)
    parser.add_argument("--histories", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", type=words, default=set(), metavar="RULES")
    parser.add_argument("--plus", type=words, default=set(), metavar="RULES")
    parser.add_argument("--table", action="store_true", help="remove each rule in turn and print how many histories break")
    options = parser.parse_args()
    rules = (rules_of(options.protocol) | options.plus) - options.without
    if options.table:
        for name in sorted(rules, key=list(RULES).index):
            result = search_random(options.protocol, rules - {name}, options.seed, options.histories)
            print(f"{name}: {result.histories if result.finding else 'NOT FOUND'} {result.finding.broken if result.finding else ''}", flush=True)
        return
    result = search_random(options.protocol, rules, options.seed, options.histories)
    report(result)
    print(f"{options.protocol}: {result.histories} histories, {result.stuck} stuck, " + ("BROKEN" if result.finding else "all promises kept"))
    sys.exit(bool(result.finding))


if __name__ == "__main__":
    main()
