"""The tables of all trials, and their place in the documentation."""

import collections

from image import ROOT

DOCUMENT = ROOT / "docs/network-volumes.md"
BEGIN, END = "<!-- volumes:begin -->\n", "<!-- volumes:end -->"
COLUMNS = ["runs", "faults", "rows acknowledged", "lost", "duplicated", "torn", "anything else", "readings", "stale", "longest outage"]


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
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def tables(results):
    """By volume, and by scene."""
    return f"{table(results, volume_of, 'volume')}\n{table(results, scene_of, 'scene')}"


def write(text):
    """Puts the tables between the markers of the document."""
    document = DOCUMENT.read_text()
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{DOCUMENT.relative_to(ROOT)} has no place for the tables")
    DOCUMENT.write_text(before + begin + text + end + after)
