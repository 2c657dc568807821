"""A reader on a local volume. It takes no lock, keeps what it has verified, and goes on from there."""

from typing import NamedTuple

from failures import Broken
from local_volume import SLOTS, Header
from rows import is_whole, lines, rows

TRIES_MAX = 5


class Known(NamedTuple):
    """What a reader has verified: the header, the last record whose rows stand, the page after it, and where its rows end."""

    header: Header
    sequence: int
    next: int
    end: int

    def after_rebuild(self):
        """A rebuild moves nothing before the checkpoint that it found."""
        return at_checkpoint(self.header)._replace(end=min(self.end, self.header.csv_length))


class Shown(NamedTuple):
    line: bytes
    offset: int
    # Rebuilds and power cuts until then.
    epoch: int
    power_cuts: int


def at_checkpoint(header):
    return Known(header, header.sequence, header.next, header.csv_length)


class Reader:
    """Serves clients that know where rows begin."""

    def __init__(self, host, name):
        self.host, self.name = host, name
        header, _ = host.newest_header()
        # A checkpoint stands, even while a rebuild is under way.
        self.known, self.position = at_checkpoint(header), 0

    def on(self, guard):
        return self.host.on("reader_" + guard)

    def run(self):
        while True:
            yield
            yield from self.read()

    def read(self):
        """Goes on where the last page ended, or reads older rows again."""
        acknowledged = set(self.host.acknowledged)
        self.position = self.host.chance.choice((self.position, 0, min(self.position, self.known.header.csv_length)))
        for _ in range(TRIES_MAX):
            is_done = yield from self.try_to_read(acknowledged)
            if is_done:
                return
        yield from self.serve_known()

    def headers(self):
        """The headers, the newest one, and whether the CSV may be rebuilt or a sync has failed."""
        headers, (newest, _) = self.host.headers(), self.host.newest_header()
        is_rebuilding = newest.rebuild is not None and self.on("waits_for_rebuild")
        has_failed = self.host.sync_failed() and self.on("failed_sync")
        return headers, newest, is_rebuilding or has_failed

    def begin(self, header):
        """Where to go on: a rebuild moved what stood behind the checkpoint, and records that were checkpointed are gone."""
        known, position = self.known, self.position
        if header.rebuilds != known.header.rebuilds and self.on("goes_back"):
            known = known.after_rebuild()
            position = min(position, known.end)
        if header.number != known.header.number and header.sequence >= known.sequence:
            known = at_checkpoint(header)
        return known._replace(header=header), position

    def try_to_read(self, acknowledged):
        """True: it is done. Otherwise something has changed meanwhile."""
        host = self.host
        length = len(host.csv.cache)
        yield
        headers, header, is_in_doubt = self.headers()
        yield
        if is_in_doubt:
            yield from self.serve_known()
            return True
        known, position = self.begin(header)
        known, is_all = yield from self.verify_records(known)
        if not self.on("length_first"):
            length = len(host.csv.cache)
        last_end = known.end
        if is_all or not self.on("stops"):
            known = self.add_foreign(known, length)
        if not self.on("takes_over_last"):
            self.known = known
        yield
        if self.on("rows_before_look"):
            page = self.page(position, known.end)
            yield
        if self.on("headers_again") and self.headers()[0] != headers:
            return False
        yield
        # What was taken for others' lines may be rows of a record that was written since.
        has_foreign = known.end > last_end
        if has_foreign and self.on("records_again") and host.record_after(known.sequence, known.next):
            return False
        if not self.on("rows_before_look"):
            yield
            page = self.page(position, known.end)
        self.serve(page)
        self.known, self.position = known, max(position, known.end)
        missing = acknowledged - page.names
        if is_all and missing:
            raise Broken(f"{self.name} does not see acknowledged {missing}")
        return True

    def verify_records(self, known):
        """Goes on to the last record whose rows stand in full. Returns whether it was the last one."""
        csv = self.host.csv
        for _ in range(SLOTS + 1):
            found = self.host.record_after(known.sequence, known.next)
            yield
            if not found:
                return known, True
            record, next_page = found
            if record.payload and self.on("rows_stand"):
                between = bytes(csv.cache[known.end : record.offset + record.prefix])
                whole, rest = lines(between)
                does_stand = not rest and all(is_whole(line) for line in whole)
                if not does_stand or bytes(csv.cache[record.offset : record.end()]) != record.payload:
                    return known, False
            end = record.end() if record.payload else known.end
            known = known._replace(sequence=record.sequence, next=next_page, end=end)
            yield
        return known, False

    def add_foreign(self, known, length):
        """Adds others' whole lines behind our last rows."""
        whole, _ = lines(self.host.csv.cache[known.end : length])
        end = known.end
        for line in whole:
            if not is_whole(line) and self.on("whole_lines"):
                break
            end += len(line)
        return known._replace(end=end)

    def serve_known(self):
        """Serves what was verified before: while the CSV may be rebuilt, only what stands before the checkpoint."""
        headers, header, _ = self.headers()
        known, position = self.known, self.position
        yield
        if (header.rebuild or header.rebuilds != known.header.rebuilds) and self.on("cap_at_checkpoint"):
            known = known.after_rebuild()
            position = min(position, known.end)
        page = self.page(position, known.end)
        yield
        is_same = self.headers()[1].rebuilds == header.rebuilds
        if not is_same and self.on("headers_again"):
            return
        self.serve(page)
        self.known, self.position = known, max(position, known.end)

    # The oracle

    def page(self, start, end):
        host = self.host
        text = bytes(host.csv.cache[start:end])
        names = {name for _, name in rows(host.csv.cache[:end])}
        return Page(start, text, names, host.epoch, host.power_cuts)

    def serve(self, page):
        self.host.trace.append(f"{self.name} shows {page.text} at {page.start}")
        whole, rest = lines(page.text)
        if rest or not all(is_whole(line) for line in whole):
            raise Broken(f"{self.name} shows {page.text!r} at {page.start}")
        offset = page.start
        for line in whole:
            self.host.shown.add(Shown(line, offset, page.epoch, page.power_cuts))
            offset += len(line)


class Page(NamedTuple):
    start: int
    text: bytes
    # All rows before its end.
    names: set
    epoch: int
    power_cuts: int


def check_shown(host):
    """What a reader showed stays, at its place unless a rebuild moved it. Others' lines may be lost by a power cut."""
    csv = bytes(host.csv.cache)
    found = set(lines(csv)[0])
    for shown in host.shown:
        is_ragged = b"," in shown.line
        if is_ragged and host.epoch > shown.epoch or b":" not in shown.line and host.power_cuts > shown.power_cuts:
            continue
        if shown.line not in found:
            raise Broken(f"a reader saw {shown.line}, which is not in the file")
        if shown.epoch == host.epoch and csv[shown.offset :][: len(shown.line)] != shown.line:
            raise Broken(f"a reader saw {shown.line} at {shown.offset}, where it is not")
