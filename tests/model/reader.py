"""A reader on any host. It takes no lock, and believes the journal only as far as the CSV shows it."""

from failures import Broken
from journal import HEADERS, live, newest_header, records_since
from rows import is_whole, lines, rows
from rules import DIRECT


def read_cached(host, file):
    yield None
    return host.read(file, is_locked=False)


def read(world, host, name):
    """Reads once and checks what it would show: every row that was acknowledged before it began, whole lines, nothing else."""
    acknowledged = set(world.acknowledged)
    direct = world.protocol == DIRECT and "reader_direct" in world.rules

    def get(file):
        return host.direct_read(file) if direct else read_cached(host, file)

    while True:
        headers = (yield from get("journal"))[:HEADERS]
        header, _ = newest_header(headers)
        records = records_since((yield from get("journal")), header, world.slots, world.rules)
        csv = yield from get("csv")
        if "reader_headers_again" not in world.rules or (yield from get("journal"))[:HEADERS] == headers:
            break
    end = header.csv_length
    for record in live(records):
        if "reader_compares" in world.rules and bytes(csv[record.offset :][: len(record.payload)]) != record.payload:
            break
        # A record without rows says nothing about what stands before it.
        end = record.offset + len(record.payload) if record.payload else end
    shown = bytes(csv[:end])
    world.say(f"{name} reads {shown!r}")
    whole, rest = lines(shown)
    if rest or len(csv) < end or not all(is_whole(line) for line in whole):
        raise Broken(f"a reader got {shown!r} of {end} bytes")
    names = [name for _, name in rows(shown)]
    for name in acknowledged:
        if names.count(name) != 1 and not (name in names and name in world.forgotten):
            raise Broken(f"a reader saw acknowledged {name} {names.count(name)} times")
    world.shown |= set(names)
