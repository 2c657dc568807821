"""The journal's contents: two headers, then slots that records reuse in turn. A cell of the list is one checksummed page."""

from typing import NamedTuple

from failures import Broken

HEADERS = 2


class Header(NamedTuple):
    """What a checkpoint made sure of."""

    number: int
    # The last record whose rows are durable in the CSV, and its checksum.
    sequence: int
    checksum: int
    csv_length: int
    highest_token: int
    lease: int
    # How many keys were recorded so far; the newest of them are in the keys file.
    keys: int


class Record(NamedTuple):
    sequence: int
    token: int
    lease: int
    offset: int
    payload: bytes
    # (key, offset) of each of its keys.
    keys: tuple
    # The old tail that a rebuild replaces, or that a cancellation removes. None: these rows are new.
    replaced: object
    cancels: object
    predecessor: int
    # Unique for each content. Written anew, a record keeps it.
    checksum: int


class Torn(NamedTuple):
    """A page that was being written when the power went."""

    cell: object


class Slot(NamedTuple):
    """A slot of the keys file: the key's running number chooses it."""

    number: int
    key: str
    offset: int


def first_headers(csv_length):
    return Header(1, 0, 0, csv_length, 0, 0, 0), Header(0, 0, 0, csv_length, 0, 0, 0)


def slot_of(sequence, slots):
    return HEADERS + sequence % slots


def newest_header(journal):
    """The valid header with the higher number, and its index."""
    found = [(cell, i) for i, cell in enumerate(journal[:HEADERS]) if isinstance(cell, Header)]
    if not found:
        raise Broken("both headers are lost")
    return max(found, key=lambda pair: pair[0].number)


def records_since(journal, header, slots, rules):
    """The records since the checkpoint, up to the first that is missing, torn or of an earlier round."""
    found, predecessor = [], header.checksum
    for sequence in range(header.sequence + 1, header.sequence + slots + 1):
        at = slot_of(sequence, slots)
        cell = journal[at] if at < len(journal) else None
        if isinstance(cell, Torn) and "checksum" not in rules and isinstance(cell.cell, Record):
            cell = cell.cell._replace(payload=cell.cell.payload[:3])
        if not isinstance(cell, Record):
            break
        if "sequence" in rules and (cell.sequence != sequence or "predecessor" in rules and cell.predecessor != predecessor):
            break
        predecessor = cell.checksum
        found.append(cell)
    return found


def live(records):
    """Records whose rows no later rebuild or cancellation has replaced."""
    return [
        record
        for record in records
        if not any(
            later.replaced is not None and later.sequence > record.sequence and later.offset <= record.offset for later in records
        )
    ]


def known_keys(records, number):
    """The keys of the records as slots, numbered from `number`. A cancelled record has recorded none."""
    cancelled = {record.cancels for record in records if record.cancels is not None}
    slots = []
    for record in records:
        if record.sequence not in cancelled:
            for key, offset in record.keys:
                slots.append(Slot(number + len(slots), key, offset))
    return slots
