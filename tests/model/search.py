"""Searches for a history that breaks a promise: at random, or through all small ones."""

import random
import time
from typing import NamedTuple

from failures import Broken, Stuck
from world import FAULTS, Task, World


AIMS = ("journal", "csv", "keys", "truncate")


class Random:
    """Everything by chance, from a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.faults_max = self.random.choice((0, 1, 1, 2, 3, 4))
        self.foreign_max = self.random.choice((0, 0, 1, 3))
        self.readers_max = self.random.randrange(4)
        self.failure_rate = self.random.choice((0, 0.02, 0.1))
        # Some histories are about keys, with the smallest keys file. Some aim at a call: the host goes away in the middle of it.
        self.is_about_keys = self.random.random() < 0.15
        self.aim = self.random.choice((None, None, None, *AIMS))
        if self.is_about_keys and self.aim:
            self.aim = "keys"
        if self.aim:
            self.faults_max = 4
        # How often the same task goes on, and how often something happens besides.
        self.stickiness, self.eventfulness = self.random.choice((0.3, 0.8, 0.95)), self.random.choice((0.05, 0.15, 0.4))

    def pick(self, count, what):
        if self.is_about_keys and what in ("slots", "batches"):
            return 0
        if self.is_about_keys and what == "key slots":
            return self.random.randrange(2)
        return self.random.randrange(count)

    def flip(self, probability, what):
        if self.is_about_keys and what == "keyed":
            probability = 0.9
        return self.random.random() < probability

    def appends(self):
        return self.random.randrange(5, 14) if self.is_about_keys else self.random.randrange(2, 8)

    def may_stop(self):
        return self.random.random() < 0.3

    def schedule(self, ready, last, events):
        if self.aim and last in ready and last.replica and last.replica.ledger.calling == self.aim:
            away = [event for event in events if event.host is last.host and event.kind in ("cut", "killed")]
            if away and self.random.random() < 0.3:
                return self.random.choice(away)
        if ready and not (events and self.random.random() < self.eventfulness):
            if last in ready and self.random.random() < self.stickiness:
                return last
            return self.random.choice(ready)
        return self.random.choices(events, [self.weight(event) for event in events])[0]

    def weight(self, event):
        """A host that was aimed at stays away until others have gone on."""
        return event.weight * 0.1 if self.aim and event.kind == "heal" else event.weight


class Small(NamedTuple):
    """A kind of small histories, all of which can be seen: bounded in faults, preemptions and kernel events out of turn."""

    appends: int
    faults: int = 0
    readers: int = 0
    preemptions: int = 1
    late_events: int = 2


SMALL = (
    Small(appends=2, readers=1),
    Small(appends=1, faults=1, preemptions=0, late_events=1),
    Small(appends=1, faults=1, late_events=1),
    Small(appends=2, faults=1, preemptions=0, late_events=0),
    Small(appends=2, faults=1, late_events=1),
    Small(appends=3, faults=1, preemptions=0, late_events=0),
)
ALL_OUTCOMES = ("survive", "grace", "expired meanwhile", "power at the end", "out of space")


class Scripted:
    """A prefix of choices, then always the first. `choices` says what was chosen of how many, so the next prefix follows."""

    failure_rate, foreign_max = 0.5, 0

    def __init__(self, prefix, small):
        self.prefix, self.choices, self.small = prefix, [], small
        self.faults_max, self.readers_max = small.faults, small.readers
        self.preemptions, self.late_events, self.failures = small.preemptions, small.late_events, 0

    def choose(self, count):
        if count == 1:
            return 0
        at = len(self.choices)
        choice = self.prefix[at] if at < len(self.prefix) else 0
        self.choices.append((choice, count))
        return choice

    def pick(self, count, what):
        if what in ALL_OUTCOMES:
            return self.choose(count)
        fixed = {"slots": 1, "key slots": 1, "arrive": 1, "attributes": 3, "batches": 1, "last host": count - 1}
        return fixed.get(what, 0)

    def flip(self, probability, what):
        if what == "failure" and self.failures < self.small.faults and self.choose(2):
            self.failures += 1
            return True
        return what == "checkpoint" and bool(self.choose(2))

    def appends(self):
        return self.small.appends

    def may_stop(self):
        return True

    def schedule(self, ready, last, events):
        options = []
        if ready:
            options.append(last if last in ready else ready[0])
        if self.preemptions:
            options += [task for task in ready if task not in options]
        in_turn = (*FAULTS, "reader")
        options += [event for event in events if event.kind in in_turn or not ready or self.late_events]
        choice = options[self.choose(len(options))]
        if isinstance(choice, Task):
            self.preemptions -= last in ready and choice is not last
        elif ready and choice.kind not in in_turn:
            self.late_events -= 1
        return choice


class Finding(NamedTuple):
    broken: str
    trace: list


class Result(NamedTuple):
    histories: int
    # Histories that could not go on; they prove nothing.
    stuck: int
    finding: object


def run_history(chooser, protocol, rules):
    """None, a finding, or Stuck."""
    world = World(chooser, protocol, rules)
    try:
        world.run()
    except Broken as broken:
        return Finding(str(broken), world.trace)
    except Stuck:
        return Stuck
    return None


def search_random(protocol, rules, seed, histories):
    """Runs histories until one breaks a promise."""
    stuck = 0
    for number in range(histories):
        found = run_history(Random(seed + number), protocol, rules)
        if found is Stuck:
            stuck += 1
        elif found:
            return Result(number + 1, stuck, found)
    return Result(histories, stuck, None)


def search_small(protocol, rules, small, seconds):
    """Runs all histories of this kind, or as many as the time allows. Returns the result and whether all were seen."""
    prefix, histories, end = [], 0, time.monotonic() + seconds
    while True:
        chooser = Scripted(prefix, small)
        found = run_history(chooser, protocol, rules)
        histories += 1
        if found and found is not Stuck:
            return Result(histories, 0, found), False
        choices = chooser.choices
        while choices and choices[-1][0] == choices[-1][1] - 1:
            choices.pop()
        if not choices or time.monotonic() > end:
            return Result(histories, 0, None), not choices
        prefix = [choice for choice, _ in choices]
        prefix[-1] += 1
