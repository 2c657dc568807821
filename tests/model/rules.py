"""The protocols of the model and their rules. Each rule can be removed, and removing it must break a promise."""

from typing import NamedTuple

BUFFERED, DIRECT = "buffered", "direct"
PROTOCOLS = {
    BUFFERED: "buffered I/O, only the journal locked; right on one host, wrong on several",
    DIRECT: "both files locked by the handles that write them, direct stable writes",
}


class Rule(NamedTuple):
    text: str
    protocols: tuple = (DIRECT,)


BOTH = (BUFFERED, DIRECT)

# What the protocol does.
STEPS = {
    "lock_journal": Rule("the journal is locked by the handle that writes it", BOTH),
    "lock_csv": Rule("the CSV is locked by the handle that writes it"),
    "refresh": Rule("each hold starts with a refresh from journal and CSV", BOTH),
    "record_first": Rule("the record is stable before its rows are sent", BOTH),
    "answer_after_rows": Rule("a row is acknowledged after it is stable in the CSV"),
    "direct_rows": Rule("rows are written directly, at the recorded offset"),
    "fresh_size": Rule("the CSV's size is asked from the server between the record and its rows"),
    "record_anew": Rule("the last record is written anew before its missing rows are"),
    "rowless_anew": Rule("a last record without rows is always written anew: no rows prove that it is stable"),
    "rows_anew": Rule("the last record's rows are written anew, even if they look right"),
    "header_anew": Rule("another process's header is written anew before anything rests on it"),
    "two_headers": Rule("a header only overwrites the older of two", BOTH),
    "keys_before_header": Rule("keys are stable in their file before the header that gives up their records", BOTH),
    "stop_at_failure": Rule("after a failed write nothing more is written in this hold", BOTH),
    "doubt_checkpointed": Rule("a failed record at or before a newer checkpoint is neither written nor refused: unknown"),
    "cancel_when_full": Rule("rows that find the disk full are cancelled by a record before the refusal"),
    "doubt_whole_rows": Rule("rows that fail and are whole in the file are not cancelled: unknown"),
    "fence": Rule("a token older than the highest recorded one, or equal under another lease, is refused", BOTH),
    "token_in_header": Rule("a header keeps the highest token and its lease", BOTH),
    "known_keys": Rule("a known key is answered as before", BOTH),
    "repeated_keys": Rule("a key stands once in a record: its repeat waits for the next one", BOTH),
    "keys_remembered": Rule("twice as many keys are remembered as are promised", BOTH),
    "keys_seen": Rule("a request is refused if a promised key of its arrival may be forgotten by now", BOTH),
    "close_open_line": Rule("a foreign whole line without its line end is closed by the next record", BOTH),
    "checksum": Rule("a torn record is no record", BOTH),
    "sequence": Rule("a record counts only with the next sequence number and its predecessor's checksum", BOTH),
    "repair": Rule("missing rows of the last record are written by the next holder", BOTH),
    "quarantine_first": Rule("what is cut is first stable in quarantine", BOTH),
    "rebuild_record": Rule("a rebuild's new tail is a record before the CSV is cut", BOTH),
    "reader_direct": Rule("readers read journal and CSV directly"),
    "reader_compares": Rule("readers show a record's rows only if they stand in the CSV", BOTH),
    "reader_headers_again": Rule("readers read the headers again until they are equal"),
}

# What the volume must do.
GROUND = {
    "fenced_writes": Rule("a write under a lost lock fails (an NFSv4 stateid; NFSv3 has none)", BOTH),
    "fenced_truncate": Rule("a truncate carries the lock as writes do (ftruncate, never truncate)", BOTH),
    "stable_is_stable": Rule("a stable write survives the server's power cut (export with sync)", BOTH),
    "lock_excludes": Rule("two hosts never hold one lock (no nolock, no local_lock)", BOTH),
}

# Rules whose removal no history shows. They cost nothing, and the model says what they are not needed for.
SPARE = {
    "lock_keys": Rule("the keys file is locked by the handle that writes it"),
    "direct_journal": Rule("the journal is read and written directly, not through the page cache"),
    "predecessor": Rule("a record carries its predecessor's checksum"),
    "own_by_checksum": Rule("a failed record is recognised by its checksum, not by sequence, token and lease"),
    "own_quarantine": Rule("each hold has a quarantine of its own, or the file is locked"),
}

# Reads and writes that a replica leaves out because of what it knows for sure.
SHORTCUTS = {
    "skip_own_rows": Rule("rows that this process saw stable are neither compared nor written anew, if the CSV has its known size"),
    "skip_hinted_rows": Rule("so are rows whose checksum the last holder passed on with the lease"),
}

# Other ways, to compare with.
ALTERNATIVES = {
    "erase_when_full": Rule("rows that find the disk full are truncated, and their record is erased", ()),
    "leave_when_full": Rule("rows that find the disk full are unknown: the next holder writes them", ()),
}

RULES = {**STEPS, **GROUND, **SPARE, **SHORTCUTS, **ALTERNATIVES}


def rules_of(protocol):
    return {name for name, rule in RULES.items() if protocol in rule.protocols}
