"""The table of all trials, and its place in the documentation."""

import collections

from image import ROOT

DOCUMENT = ROOT / "docs/network-volumes.md"
BEGIN, END = "<!-- volumes:begin -->\n", "<!-- volumes:end -->"
COLUMNS = ["volume", "scene", "runs", "faults", "rows acknowledged", "lost", "duplicated", "torn", "anything else", "stale reads", "longest outage", "RPCs a batch"]  # fmt: skip


def volume_name(result):
    return f"NFSv{result.version}{f', {result.mount_options}' if result.mount_options else ''}"


def table(results):
    """Markdown: a line for each volume and scene."""
    groups = collections.defaultdict(list)
    for result in results:
        groups[volume_name(result), result.scene].append(result)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += [line(volume, scene, group) for (volume, scene), group in groups.items()]
    return "\n".join(lines) + "\n"


def line(volume, scene, group):
    violations = sum((result.violations for result in group), collections.Counter())
    named = [violations.pop(kind, 0) for kind in ("Lost", "Duplicated", "Torn")]
    rpcs = [result.rpcs.split(" ")[0] for result in group if result.rpcs]
    cells = [
        volume,
        f"{scene} (refused)" if all(result.refused for result in group) else scene,
        len(group),
        sum(result.faults for result in group),
        sum(result.acked_rows for result in group),
        *named,
        violations.total(),
        sum(result.stale for result in group),
        f"{max(result.longest_outage for result in group):.1f} s",
        rpcs[-1] if rpcs else "",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def write(text):
    """Puts the table between the markers of the document."""
    document = DOCUMENT.read_text()
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{DOCUMENT.relative_to(ROOT)} has no place for the table")
    DOCUMENT.write_text(before + begin + text + end + after)
