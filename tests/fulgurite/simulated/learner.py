"""Rows → steps, as `services/learner/learner.py` orders them."""

from __future__ import annotations

import msgspec

from fulgurite.enums import LedgerTerm, UpdateKind
from fulgurite.events import Event, GroupClosed, LedgerEntry, PolicyUpdate, Tombstone, Trajectory
from fulgurite.ids import derive_id
from fulgurite.learning.amendments import accounts_of, amended_entries
from fulgurite.learning.batching import LEARNER, BatchRules, RowBatcher, ledger_entries
from fulgurite.versions import Version
from tests.fulgurite.simulated.world import LEDGER, TRAJECTORIES, UPDATES, Checkpoint, World


class Learner:
    """Rows → steps. Checkpoint, then update, then ledger; the last two are said again from the
    checkpoint.
    """

    rules = BatchRules(groups_per_step=1, max_staleness=1_000)

    def __init__(self, world: World) -> None:
        self._world = world
        self._batcher = RowBatcher("policy", self.rules)
        kept = world.checkpoint
        # A group written again, long after it was settled, is known from the ledger.
        entries = [
            event
            for event in (*world.log[LEDGER], *kept.writes)
            if isinstance(event, LedgerEntry) and event.source == LEARNER
        ]
        self._batcher.restore(
            kept.positions,
            kept.settled,
            {entry.group_id: entry.group_revision for entry in entries},
        )
        self._at = next((position.offset for position in kept.positions), 0)
        self._writes = list(kept.writes)

    def step(self, choice: int) -> bool:
        """See Processor."""
        if self._writes and choice % 4 < 3:
            return self._write()
        works = (self._train, self._read, self._amend)
        first = choice % 3
        # A step begins only when all of the one before has been said.
        return any(
            work()
            for work in (*works[first:], *works[:first])
            if not (self._writes and work != self._read)
        )

    def waits_for_nothing(self) -> bool:
        """Whether all that it has read is accounted for: a group that it holds for ever would one
        day outlive the log.
        """
        return (
            all(position.offset == self._at for position in self._batcher.positions())
            and not self._batcher.amendments()
        )

    def _read(self) -> bool:
        if self._at >= len(self._world.log[TRAJECTORIES]):
            return False
        event = self._world.log[TRAJECTORIES][self._at]
        assert isinstance(event, Trajectory | Tombstone | GroupClosed)
        self._batcher.add(0, self._at, event)
        self._at += 1
        return True

    def _train(self) -> bool:
        current = Version("policy", 0, self._world.checkpoint.step)
        groups = (*self._batcher.next_batch(current), *self._batcher.without_signal(current))
        if not groups:
            return False
        step = self._world.checkpoint.step + 1
        version = Version("policy", 0, step)
        trained = [
            action
            for group in groups
            for action, (term, _) in group.outcomes.items()
            if term is LedgerTerm.trained
        ]
        update = PolicyUpdate(
            event_id=derive_id("update", str(version)),
            event_time=0,
            policy="policy",
            kind=UpdateKind.update,
            epoch=0,
            step=step,
            version=str(version),
            learner_id="learner",
            positions=self._batcher.positions(),
            trained_actions=len(trained),
        )
        writes = (update, *ledger_entries(groups, version, 0), *self._amendments(version))
        self._keep(step, writes)
        self._world.trained += trained
        return True

    def _amend(self) -> bool:
        """Tell of newer revisions of settled groups, with a checkpoint of their own."""
        if not self._batcher.amendments():
            return False
        step = self._world.checkpoint.step
        self._keep(step, self._amendments(Version("policy", 0, step)))
        return True

    def _amendments(self, version: Version) -> tuple[Event, ...]:
        told: list[Event] = []
        for held in self._batcher.amendments():
            known = [
                event
                for event in self._world.log[LEDGER]
                if isinstance(event, LedgerEntry) and event.source == LEARNER
            ]
            accounts = accounts_of([entry for entry in known if entry.group_id == held.group_id])
            told += amended_entries(held, accounts, version, 0)
            self._batcher.amend(held)
        return tuple(told)

    def _keep(self, step: int, writes: tuple[Event, ...]) -> None:
        self._world.checkpoint = Checkpoint(
            step, self._batcher.positions(), self._batcher.settled(), writes
        )
        self._writes = list(writes)

    def _write(self) -> bool:
        if not self._writes:
            return False
        event = self._writes.pop(0)
        self._world.append(UPDATES if isinstance(event, PolicyUpdate) else LEDGER, event)
        return True


class LiveLearner(Learner):
    """A learner that compares groups of one, as live traffic is, with those before."""

    rules = msgspec.structs.replace(Learner.rules, baseline="moving_average")
