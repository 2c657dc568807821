"""A replica: takes the lease, holds both locks over several batches, answers, and looks again after a failure."""

from failures import Failed
from ledger import Ledger
from rules import DIRECT

BATCHES_MAX, BATCH_MAX = 3, 3
FILES = ("journal", "csv")


class Replica:
    def __init__(self, world, host, name):
        self.world, self.host, self.name = world, host, name
        self.ledger = Ledger(world, host, name)
        self.requests = []

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
                requests, self.requests = self.requests, []
                for request in requests:
                    world.answer(request, "unknown", None)
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
            size = 1 + self.world.pick(BATCH_MAX, "batch size")
            self.requests, self.world.queue[:] = self.world.queue[:size], self.world.queue[size:]
            while self.requests:
                outcomes = yield from self.write(token, lease)
                if outcomes[0][0] == "fenced":
                    self.world.raise_token(self.ledger.highest_token)
                    self.world.queue[:0], self.requests = self.requests, []
                    return
                answered, self.requests = self.requests[: len(outcomes)], self.requests[len(outcomes) :]
                for request, (outcome, offset) in zip(answered, outcomes):
                    self.world.answer(request, outcome, offset)

    def write(self, token, lease):
        try:
            return (yield from self.ledger.append(self.requests, token, lease))
        except Failed as failure:
            if self.world.protocol != DIRECT:
                raise
            if not self.ledger.on("stop_at_failure") and self.world.flip(0.5, "go on"):
                self.world.say(f"{self.name} goes on after: {failure}")
                return [("unknown", None)] * len(self.requests)
            return (yield from self.recover(token, lease, failure))

    def recover(self, token, lease, failure):
        """Drops the handles, locks anew and looks: the record stands, then the row is written; or it does not, then it is tried again."""
        ledger = self.ledger
        attempt, outcomes = ledger.attempt, ledger.outcomes
        self.world.say(f"{self.name} locks anew and looks, after: {failure}")
        yield from self.unlock_files()
        ledger.forget()
        yield from self.lock_files()
        yield from ledger.refresh()
        ledger.attempt, ledger.outcomes = attempt, outcomes
        outcome = ledger.outcome_of_attempt()
        self.world.say(f"{self.name} finds: {outcome or 'not written'}")
        if outcome is not None:
            return ledger.outcomes_if(outcome)
        return (yield from ledger.append(self.requests, token, lease))
