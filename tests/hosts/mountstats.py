"""How many remote procedure calls a host has made for its NFS mount, by operation."""

import collections
import re

# The answer of an unlock does not wait for this one.
NOT_WAITED_FOR = ("FREE_STATEID",)


def calls(host):
    text = host.shell("cat /proc/self/mountstats", secs_max=10)
    found, is_ours = collections.Counter(), False
    for line in text.splitlines():
        if line.startswith("device "):
            is_ours = " mounted on /mnt/data " in line
        elif is_ours and (match := re.match(r"\s+([A-Z_]+): (\d+) ", line)):
            found[match[1]] += int(match[2])
    return found


class Difference:
    """The calls of some hosts since this was made. A host that lost its power begins again at 0."""

    def __init__(self, hosts):
        self.before = {host: calls(host) for host in hosts}

    def calls(self):
        sum_ = collections.Counter()
        for host, before in self.before.items():
            now = calls(host)
            sum_ += now - before if now.total() >= before.total() else now
        return collections.Counter({name: n for name, n in sum_.items() if name not in NOT_WAITED_FOR})


def per_batch(counts, batches):
    """The calls as text: all, and by operation."""
    if not batches:
        return "no batch"
    parts = [f"{name} {n / batches:.2f}" for name, n in counts.most_common() if n / batches >= 0.02]
    return f"{counts.total() / batches:.1f} ({', '.join(parts)})"
