"""The promises: what must be true at each answer, and at the end of each history."""

from failures import Broken
from rows import is_whole, lines, rows, text_of


def check_visible(world, name):
    """An acknowledged row is seen by the next open of the file on another host."""
    csv = bytes(world.server.memory["csv"])
    count = [found for _, found in rows(csv)].count(name)
    if count != 1 and not (count and name in world.forgotten):
        raise Broken(f"{name} is acknowledged, and another host does not see it once: {csv!r}")


def check_end(world):
    csv = bytes(world.server.memory["csv"])
    world.say(f"the CSV at the end: {csv!r}")
    whole, rest = lines(csv)
    if rest or not all(is_whole(line) for line in whole):
        raise Broken("the CSV does not parse")
    check_rows(world, csv)
    check_tokens(world.leases_of_row, rows(csv))
    texts = [text_of(line) for line in whole]
    for line in world.foreign:
        if texts.count(line) != 1:
            raise Broken(f"the foreign line {line} stands {whole.count(line)} times")
    for data in world.server.quarantined:
        if not world.server.is_quarantined(data):
            raise Broken(f"{data!r} was quarantined and lost there")


def check_rows(world, csv):
    names = [name for _, name in rows(csv)]
    for name, offset in world.acknowledged.items():
        if names.count(name) != 1 and not (name in names and name in world.forgotten):
            raise Broken(f"acknowledged {name} stands {names.count(name)} times")
        is_somewhere = offset is None or name in world.forgotten
        if not is_somewhere and not text_of(csv[offset:].split(b"\n")[0]).endswith(b":" + name + b">"):
            raise Broken(f"{name} does not stand at its offset {offset}")
    for name in set(names):
        if names.count(name) > 1 and name not in world.forgotten:
            raise Broken(f"{name} stands {names.count(name)} times")
        if name in world.refused:
            raise Broken(f"refused {name} was written")
    for name in world.shown - set(names):
        raise Broken(f"a reader saw {name}, which is not in the file")


def check_tokens(leases_of_row, found):
    if any(first > second for (first, _), (second, _) in zip(found, found[1:])):
        raise Broken(f"tokens go back: {found}")
    lease_of = {}
    for token, name in found:
        leases = leases_of_row[token, name]
        # Recorded twice under one token, as after a failure: nobody knows which of the records stands.
        if len(leases) == 1 and lease_of.setdefault(token, leases) != leases:
            raise Broken(f"two leases wrote under token {token}")
