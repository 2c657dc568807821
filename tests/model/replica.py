"""A replica: takes the lease, holds both locks over several batches, answers, and looks again after a failure."""

from failures import Failed
from ledger import Ledger
from rules import DIRECT

BATCHES_MAX = 3
FILES = ("journal", "csv")


class Replica:
    def __init__(self, world, host, name):
        self.world, self.host, self.name = world, host, name
        self.ledger = Ledger(world, host, name)
        self.request = None

    def run(self):
        world = self.world

        def may_begin():
            return world.queue and world.lease_holder is None

        while True:
            yield may_begin
            if not may_begin():
                continue
            token, lease = world.grant(self.name)
            self.ledger.lease_id = lease
            yield None
            try:
                yield from self.lock_files()
                yield from self.ledger.refresh()
                if world.flip(0.1, "sleep"):
                    yield from self.ledger.fence(token, lease)
                yield from self.write_batches(token, lease)
            except Failed as failure:
                if world.protocol != DIRECT:
                    raise
                world.say(f"{self.name} gives the hold up: {failure}")
                self.ledger.forget()
                if self.request:
                    world.answer(self.request, "unknown", None)
                    self.request = None
            yield from self.unlock_files()
            world.release(self.name, self.ledger)

    def lock_files(self):
        for file in FILES:
            if self.ledger.on(f"lock_{file}"):
                self.ledger.locks[file] = yield from self.host.lock(file)
                self.world.say(f"{self.name} locks {file}")
                yield None

    def unlock_files(self):
        for file in ("keys", *reversed(FILES)):
            if file in self.ledger.locks:
                yield from self.host.round_trip()
                self.world.say(f"{self.name} unlocks {file}")
                self.host.unlock(self.ledger.locks.pop(file))

    def write_batches(self, token, lease):
        """Within the hold nothing is read again: a lost lock shows at the next write."""
        for _ in range(1 + self.world.pick(BATCHES_MAX, "batches") if self.world.protocol == DIRECT else 1):
            if not self.world.queue:
                return
            self.request = self.world.queue.pop(0)
            try:
                outcome, offset = yield from self.ledger.append(self.request, token, lease)
            except Failed as failure:
                if self.world.protocol != DIRECT:
                    raise
                if not self.ledger.on("stop_at_failure") and self.world.flip(0.5, "go on"):
                    self.world.say(f"{self.name} goes on after: {failure}")
                    outcome, offset = "unknown", None
                else:
                    outcome, offset = yield from self.recover(token, lease, failure)
            request, self.request = self.request, None
            if outcome == "fenced":
                self.world.raise_token(self.ledger.highest_token)
                self.world.queue.insert(0, request)
                return
            self.world.answer(request, outcome, offset)

    def recover(self, token, lease, failure):
        """Drops the handles, locks anew and looks: the record stands, then the row is written; or it does not, then it is tried again."""
        ledger = self.ledger
        attempt = ledger.attempt
        self.world.say(f"{self.name} locks anew and looks, after: {failure}")
        yield from self.unlock_files()
        ledger.forget()
        yield from self.lock_files()
        yield from ledger.refresh()
        ledger.attempt = attempt
        outcome = ledger.outcome_of_attempt()
        self.world.say(f"{self.name} finds: {outcome or 'not written'}")
        if outcome is not None:
            return outcome, attempt.offset if outcome == "written" else None
        return (yield from ledger.append(self.request, token, lease))
