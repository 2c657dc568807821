"""A replica on a local volume: refresh, repair, rebuild, append and checkpoint, in the order of docs/design/storage.md."""

from local_volume import SLOTS, Header, Rebuild, Record, Torn
from rows import is_foreign, is_whole, lines, row_of


class Replica:
    """What one process knows, and its way through refresh, append and checkpoint."""

    def __init__(self, host):
        self.host, self.sequence, self.highest_token, self.highest_lease = host, 0, 0, None
        self.keys, self.verified, self.has_started = {}, 0, False

    def refresh(self):
        host = self.host
        header, _ = host.newest_header()
        in_doubt = host.sync_failed()
        if in_doubt:
            self.write_all_anew(header)
        if self.sequence < header.sequence:
            self.highest_token, self.sequence = max(self.highest_token, header.highest_token), header.sequence
            self.verified = max(self.verified, header.sequence)
            self.keys.update(cell for index, cell in host.keys.cache.items() if index < header.keys and not isinstance(cell, Torn))
        records = host.records(header)
        for record in records:
            if record.sequence > self.sequence:
                self.sequence = record.sequence
                if record.token >= self.highest_token:
                    self.highest_token, self.highest_lease = record.token, record.lease
                if record.key:
                    self.keys[record.key] = record.offset
        if not host.on("verify"):
            return
        self.verify(header, records, in_doubt)
        self.has_started, self.verified = True, self.sequence
        host.journal.cache.pop("sync failed", None)

    def write_all_anew(self, header):
        """After a failed sync, nothing in the cache is believed before it is written and synced again."""
        host = self.host
        for index in ("header 0", "header 1"):
            if index in host.journal.cache:
                host.journal.write(index, host.journal.cache[index])
        for record in host.records(header):
            host.journal.write(record.sequence % SLOTS, record)
        for index, cell in list(host.keys.cache.items()):
            host.keys.write(index, cell)
        if header.rebuild:
            tail = host.tails[header.rebuild.tail]
            tail.write(0, bytes(tail.cache))
        for file, what in ((host.tails[0], "tail 0"), (host.tails[1], "tail 1"), (host.keys, "keys"), (host.journal, "journal")):
            host.sync(file, f"{what}, after a failed sync")

    def verify(self, header, records, in_doubt):
        """Compares new records with the CSV. A record that was cut short by a kill is completed; all else is a rebuild."""
        host = self.host
        todo = records if in_doubt else [record for record in records if record.sequence > self.verified]
        must_rebuild = in_doubt or header.rebuild
        for record in todo:
            found = bytes(host.csv.cache[record.offset : record.offset + len(record.payload)])
            if found == record.payload and not must_rebuild:
                continue
            tail = bytes(host.csv.cache[record.offset :])
            is_cut_short = len(host.csv.cache) >= record.offset and record.payload.startswith(tail)
            if record is todo[-1] and not must_rebuild and is_cut_short:
                if host.on("sync_before_repair"):
                    host.sync(host.journal, "a record found, before its rows are written")
                host.append(record.payload[len(tail) :])
                continue
            self.rebuild(header, records)
            return
        # A power cut may have left holes outside of our rows.
        found = lines(host.csv.cache[header.csv_length :])[0]
        has_hole = not all(is_whole(line) for line in found)
        if header.rebuild or has_hole and not self.has_started and host.on("scan_at_start"):
            self.rebuild(header, records)

    def rebuild(self, header, records):
        """What follows the checkpoint is quarantined and written anew: our rows from the journal, foreign whole lines kept."""
        host = self.host
        old = host.quarantine_from(header.csv_length, "the old tail in quarantine")
        new, which = self.new_tail(header, records, old)
        tail = host.tails[which]
        tail.truncate(0)
        tail.write(0, new)
        host.sync(tail, "the new tail")
        keys = self.store_keys(header, records, {})
        sequence = records[-1].sequence if records else header.sequence
        token = max([header.highest_token] + [record.token for record in records])
        if host.on("rebuild_journaled"):
            host.write_header(header._replace(rebuild=Rebuild(sequence, len(new), keys, which)))
        host.truncate(header.csv_length)
        host.append(new)
        host.sync(host.csv, "the rebuilt CSV")
        host.write_header(Header(0, sequence, header.csv_length + len(new), token, keys, None))

    def new_tail(self, header, records, old):
        host, ours = self.host, [record.payload for record in records]
        # A hole ends what stands before it.
        found, which = [line.split(b"\0")[-1] for line in lines(old)[0]], 0
        if header.rebuild:
            # An interrupted rebuild: its tail is durable, and rows appended since are kept.
            done = lines(host.tails[header.rebuild.tail].cache[: header.rebuild.length])[0]
            which = 1 - header.rebuild.tail
            found = done + [line for line in found if line not in done]
        new, next_own = b"", 0
        for line in found:
            if line in ours[next_own:]:
                end = ours.index(line, next_own) + 1
                new += b"".join(ours[next_own:end])
                next_own = end
            elif line not in ours and (is_foreign(line) or is_whole(line) and not host.on("claims_token")):
                new += line
        return new + b"".join(ours[next_own:]), which

    def store_keys(self, header, records, landed):
        host, count = self.host, header.keys
        for record in records:
            if record.key:
                host.keys.write(count, (record.key, landed.get(record.sequence, record.offset)))
                count += 1
        if host.on("keys_before_header"):
            host.sync(host.keys, "keys")
        return count

    def checkpoint(self, landed):
        host = self.host
        header, _ = host.newest_header()
        if self.sequence == header.sequence:
            return
        if host.on("csv_before_header"):
            host.sync(host.csv, "the CSV at a checkpoint")
        keys = self.store_keys(header, host.records(header), landed)
        token = self.highest_token if host.on("token_in_header") else 0
        host.write_header(Header(0, self.sequence, len(host.csv.cache), token, keys, None))

    def append(self, token, lease, row, key):
        """One batch of one row under the OS lock. Returns the outcome and, if written or known, the offset."""
        host = self.host
        self.refresh()
        if host.on("fence") and token < self.highest_token:
            return "fenced", None
        if host.on("lease") and token == self.highest_token and lease != self.highest_lease:
            return "fenced", None
        if host.on("known_keys") and key in self.keys:
            return "known", self.keys[key]
        if host.on("close_open_line"):
            self.close_open_line()
        if host.chance.random() < 0.15 or self.sequence - host.newest_header()[0].sequence >= SLOTS - 1:
            self.checkpoint({})
        offset, sequence, payload = len(host.csv.cache), self.sequence + 1, row_of(token, row)
        host.journal.write(sequence % SLOTS, Record(sequence, token, lease, offset, payload, key))
        host.step(f"record {sequence}: {payload} at {offset}")
        if host.on("journal_sync"):
            host.sync(host.journal, f"record {sequence}")
        self.sequence, self.highest_token, self.highest_lease = sequence, token, lease
        if key:
            self.keys[key] = offset
        host.leases_of_token.setdefault(token, set()).add(lease)
        if not host.is_calm and host.chance.random() < 0.06:
            # Somebody appends without any lock, between the record and its rows.
            host.slipped.append(b"<s%d>\n" % sequence)
            host.csv.write(len(host.csv.cache), host.slipped[-1])
        landed = host.append(payload)
        self.verified = sequence
        if landed != offset:
            if key:
                self.keys[key] = landed
            self.checkpoint({sequence: landed})
        return "written", landed

    def close_open_line(self):
        host = self.host
        rest = lines(host.csv.cache)[1]
        if is_whole(rest + b"\n"):
            host.append(b"\n")
        elif rest:
            length = len(host.csv.cache) - len(rest)
            host.quarantine_from(length, "an open line in quarantine")
            host.truncate(length)
