"""What lasts in a simulated deployment: the log, what was committed, the learner's checkpoint, and
the time that the schedule moves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from fulgurite.events import AgentReward, DeadLetter, Event, LlmCall, Position
from fulgurite.ids import derive_id
from fulgurite.trajectories.building import successful_actions

CALLS, STATUS, REWARDS = "llm.calls", "agent.status", "agent.rewards"
EPISODES, TRAJECTORIES, LEDGER, UPDATES = (
    "episodes",
    "trajectories",
    "training.ledger",
    "policy.updates",
)
DEAD = "dead.letters"

DUE = 45_000
"""By then every group's deadline and the grace for rewards are over."""

LONG_DUE = 900_000
"""By then nobody waits for episodes any more."""

Key = tuple[str, int]
"""Rollout id and attempt."""


class Checkpoint(NamedTuple):
    """What a learner keeps; `writes` are said again by whoever takes it up."""

    step: int
    positions: tuple[Position, ...]
    settled: dict[str, tuple[int, int]]
    writes: tuple[Event, ...]


class Poison(Exception):
    """What is raised by stitching an attempt, or by closing a group, that nobody can handle."""


class World:
    """What lasts."""

    def __init__(self, poison: frozenset[str] = frozenset()) -> None:
        """`poison`: rollouts whose attempts cannot be stitched, and groups that cannot be closed."""
        self.poison = poison
        self.log: defaultdict[str, list[Event]] = defaultdict(list)
        self.committed: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.checkpoint = Checkpoint(0, (), {}, ())
        self.trained: list[str] = []
        """Actions of every step whose weights were kept, in order."""
        self.time = 0
        self.aggregators = self.rewarders = 0
        """That have been started."""

    def append(self, topic: str, event: Event) -> None:
        self.log[topic].append(event)

    def handle(self, name: str) -> None:
        """Raises Poison."""
        if name in self.poison:
            raise Poison(name)


class Processor(Protocol):
    """One that can be killed between any two steps."""

    def __init__(self, world: World) -> None: ...

    def step(self, choice: int) -> bool:
        """Do one thing; False if there is nothing to do."""
        ...


def letter_of(stage: str, group_id: str, calls: Iterable[LlmCall], about: str) -> DeadLetter:
    """What is written of calls that are lost."""
    actions = tuple(sorted(action for call in calls for action in successful_actions(call)))
    return DeadLetter(
        event_id=derive_id("dead", stage, about, *actions),
        event_time=0,
        stage=stage,
        error_type="Poison",
        error="",
        topic="",
        partition=0,
        offset=-1,
        key=group_id.encode(),
        actions=actions,
    )


def topic_of(event: Event) -> str:
    """Where producers write it."""
    return (
        CALLS
        if isinstance(event, LlmCall)
        else REWARDS
        if isinstance(event, AgentReward)
        else STATUS
    )


class Reader:
    """Reads topics from what was committed, in an order that the schedule chooses."""

    def __init__(self, world: World, name: str, topics: Sequence[str]) -> None:
        self._world, self._name = world, name
        self.at = {topic: world.committed[name, topic] for topic in topics}

    def next(self, choice: int) -> Event | None:
        """The next record of one of the topics."""
        waiting = [topic for topic, at in self.at.items() if at < len(self._world.log[topic])]
        if not waiting:
            return None
        topic = waiting[choice % len(waiting)]
        self.at[topic] += 1
        return self._world.log[topic][self.at[topic] - 1]

    def at_end(self) -> bool:
        return all(at == len(self._world.log[topic]) for topic, at in self.at.items())

    def commit(self, settled: frozenset[str]) -> bool:
        """Acknowledge, in order, what nothing depends on any more; one topic at a time."""
        for topic, at in self.at.items():
            first = self._world.committed[self._name, topic]
            last = first
            while last < at and self._world.log[topic][last].event_id in settled:
                last += 1
            if last > first:
                self._world.committed[self._name, topic] = last
                return True
        return False
