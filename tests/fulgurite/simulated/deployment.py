"""A deployment in a few hundred lines: producers, aggregator, reward worker, rewarder and learner
over lists, built from pure functions.

Each step of a processor does at most one thing that lasts (a record, a commit, a checkpoint), so a
crash between steps is a crash at any moment that matters: it loses the processor's memory and
nothing else. Time is a number that the schedule moves. A `World` is the log, what was committed,
and the learner's checkpoint; it outlives everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fulgurite.enums import StatusKind
from fulgurite.events import AgentStatus, Event
from tests.fulgurite.simulated.aggregator import Aggregator
from tests.fulgurite.simulated.learner import Learner
from tests.fulgurite.simulated.reward_worker import RewardWorker
from tests.fulgurite.simulated.rewarder import Rewarder
from tests.fulgurite.simulated.world import (
    CALLS,
    DUE,
    LONG_DUE,
    REWARDS,
    STATUS,
    Processor,
    World,
    topic_of,
)

MOVES = ("step",) * 9 + ("land",) * 3 + ("again", "crash", "time")
"""What a schedule is made of, and how often."""


class Deployment:
    """Producers with something to say, and the four processors."""

    def __init__(
        self,
        sources: Iterable[Sequence[Event]],
        after: Mapping[int, int],
        *,
        lawless: bool = False,
        poison: frozenset[str] = frozenset(),
        learner: type[Learner] = Learner,
    ) -> None:
        """`after`: for a source, the one that must have said its first before. `lawless`: time
        passes whatever has not landed.
        """
        self.world = World(poison)
        self._said = [list(source) for source in sources]
        self._sources = [list(source) for source in sources]
        self._after = after
        self._lawless = lawless
        self._kinds: tuple[type[Processor], ...] = (Aggregator, Rewarder, learner, RewardWorker)
        self._alive: list[Processor] = [kind(self.world) for kind in self._kinds]

    def act(self, move: int, choice: int) -> None:
        """One step of a schedule: something lands, lands again, is processed; or somebody crashes;
        or time passes.
        """
        match MOVES[move % len(MOVES)]:
            case "land":
                for _ in range(1 + choice % 3):
                    self._land(choice)
            case "again":
                self._duplicate(choice)
            case "step":
                # Often several at once, so that schedules come to their end.
                for _ in range(1 + choice // 4 % 7):
                    self._alive[choice % 4].step(choice // 4)
            case "crash":
                self._alive[choice % 4] = self._kinds[choice % 4](self.world)
            case _:
                # Not before everything has landed: a verdict is given upon the whole log.
                if self._lawless or not any(self._sources):
                    self.world.time = (
                        LONG_DUE if self._lawless and self.world.time == DUE and choice % 2 else DUE
                    )

    def settle(self) -> None:
        """Let everything come to rest."""
        while self._land(0):
            pass
        for time in (DUE, LONG_DUE):
            self.world.time = max(self.world.time, time)
            while sum(processor.step(0) for processor in self._alive):
                pass

    def _land(self, choice: int) -> bool:
        waiting = [
            source
            for place, source in enumerate(self._sources)
            if source and self._may_speak(place)
        ]
        if waiting:
            event = waiting[choice % len(waiting)].pop(0)
            self.world.append(topic_of(event), event)
        return bool(waiting)

    def _may_speak(self, place: int) -> bool:
        other = self._after.get(place, place)
        return other == place or len(self._sources[other]) < len(self._said[other])

    def _duplicate(self, choice: int) -> None:
        """A producer that has heard no acknowledgement sends again."""
        topic = (CALLS, STATUS, REWARDS)[choice % 3]
        landed = self.world.log[topic]
        if landed:
            again = landed[choice % len(landed)]
            if not (
                isinstance(again, AgentStatus)
                and again.source == "aggregator"
                and again.kind is StatusKind.timed_out
            ):
                self.world.append(topic, again)
