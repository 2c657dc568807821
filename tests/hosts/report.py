"""The tables of all trials, and their place in the documentation."""

import collections

from image import ROOT

DOCUMENT = ROOT / "docs/network-volumes.md"
BEGIN, END = "<!-- hosts: written by make hosts -->\n", "<!-- end of hosts -->"
COLUMNS = [
    "runs",
    "faults",
    "rows acknowledged",
    "lost",
    "duplicated",
    "torn",
    "anything else",
    "readings",
    "stale",
    "longest outage",
    "RPCs a batch",
]


def volume_of(result):
    return f"NFSv{result.version}{f', {result.mount_options}' if result.mount_options else ''}"


def scene_of(result):
    return f"{result.scene}: refused" if result.refused else result.scene


def table(results, key, title):
    """Markdown: a line for each group of results with the same key."""
    groups = collections.defaultdict(list)
    for result in results:
        groups[key(result)].append(result)
    lines = ["| " + " | ".join([title, *COLUMNS]) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [line(name, group) for name, group in groups.items()]
    return "\n".join(lines) + "\n"


def line(name, group):
    violations = sum((result.violations for result in group), collections.Counter())
    named = [violations.pop(kind, 0) for kind in ("Lost", "Duplicated", "Torn")]
    cells = [
        name,
        len(group),
        *(sum(counts) for counts in zip(*((result.faults, result.acked_rows) for result in group))),
        *named,
        violations.total(),
        *(sum(counts) for counts in zip(*((result.readings, result.stale) for result in group))),
        f"{max(result.longest_outage for result in group):.1f} s",
        calls_per_batch(group),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def calls_per_batch(group):
    batches = sum(result.batches for result in group)
    return f"{sum(result.calls.total() for result in group) / batches:.1f}" if batches else ""


def tables(results):
    """By volume, and by scene."""
    return f"{table(results, volume_of, 'volume')}\n{table(results, scene_of, 'scene')}"


def split_document():
    """The document before and after the tables."""
    document = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"hosts: {DOCUMENT.relative_to(ROOT)} has no place for the tables: {BEGIN}{END}")
    return before + begin, end + after


def write(text):
    before, after = split_document()
    DOCUMENT.write_text(before + text + after)
