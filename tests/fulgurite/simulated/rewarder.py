"""Episodes and rewards → rows, tombstones and ledger entries, as `services/rewarder/partition.py`
orders them.
"""

from __future__ import annotations

from collections import defaultdict

from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.events import (
    AgentReward,
    DeadLetter,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.group_revisions import SOURCE as REWARDER
from fulgurite.groups.group_revisions import ClosingRecord, RevisionLog, revision_of
from fulgurite.groups.group_state import GroupState
from tests.fulgurite.simulated.world import (
    DEAD,
    DUE,
    EPISODES,
    LEDGER,
    LONG_DUE,
    REWARDS,
    TRAJECTORIES,
    Poison,
    Reader,
    World,
    letter_of,
)


class Group:
    """What a rewarder holds of a group."""

    def __init__(self, revision: str | None = None, *, lacks: bool = False) -> None:
        self.gathered = GroupState()
        self.unsettled: set[str] = set()
        self.revision = revision
        """That the log stands at; None for a group that is not closed, as far as is known."""
        self.supersedes: str | None = None
        """Of the last `GroupClosed` in the log."""
        self.lacks = lacks
        """Whether it may have been closed and forgotten: the log is to be read before anything is
        done.
        """
        self.news = False

    def take(self, event: Episode | AgentReward) -> None:
        """Hold an input until it is written of."""
        self.unsettled.add(event.event_id)
        self.news |= self.gathered.add(event)

    @property
    def is_open(self) -> bool:
        return self.revision is None and not self.lacks


class Rewarder:
    """Episodes and rewards → rows, tombstones and ledger entries; closed groups are re-closed
    when something comes late.

    Every other one looks back no further than its own start, and so knows of no group whether it
    was closed.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader = Reader(world, "rewarder", (EPISODES, REWARDS))
        self._groups: dict[str, Group] = {}
        self._queue: list[ClosingRecord | DeadLetter] = []
        self._closing: tuple[Group, str | None, frozenset[str]] | None = None
        self._begun: dict[str, set[str]] = {}
        self._settled: set[str] = set()
        self._forgets = world.rewarders % 2 == 1
        world.rewarders += 1
        if not self._forgets:
            for letter in world.log[DEAD]:
                if isinstance(letter, DeadLetter) and letter.stage == "rewarder":
                    self._groups[(letter.key or b"").decode()] = Group(lacks=True)
            for group_id, written in _written(world).items():
                self._begun[group_id] = written.begun()
                if written.standing is not None:
                    self._groups[group_id] = Group(written.standing, lacks=True)

    def step(self, choice: int) -> bool:
        """See Processor."""
        works = (
            self._write,
            self._close,
            lambda: self._reader.commit(frozenset(self._settled)),
            lambda: self._read(choice),
        )
        first = choice % 4
        return any(work() for work in (*works[first:], *works[:first]))

    def _read(self, choice: int) -> bool:
        event = self._reader.next(choice // 4)
        if event is None:
            return False
        assert isinstance(event, Episode | AgentReward)
        group = self._groups.setdefault(event.group_id, Group(lacks=self._forgets))
        group.take(event)
        if not (group.is_open or group.lacks or group.news or self._is_closing(group)):
            self._settle(group)
        return True

    def _close(self) -> bool:
        if self._closing is not None:
            return False
        return any(self._close_one(group_id, group) for group_id, group in self._groups.items())

    def _close_one(self, group_id: str, group: Group) -> bool:
        if group.is_open:
            if not self._may_close(group):
                return False
        elif not ((group.lacks or group.news) and group.unsettled and self._reader.at_end()):
            return False
        elif group.lacks:
            self._recall(group_id, group)
            return True
        try:
            self._world.handle(group_id)
        except Poison:
            self._give_up(group)
            return True
        outputs = group.gathered.close(group_id, FailureRules())
        revision = revision_of(outputs)
        group.news = False
        if revision == group.revision:
            self._settle(group)
        else:
            begun = self._begun.pop(group_id, set[str]())
            closed = group.gathered.closed(outputs, group.supersedes)
            records = [*outputs, *([closed] if closed else [])]
            self._queue = [*(record for record in records if record.event_id not in begun)]
            self._closing = (group, revision, frozenset(group.unsettled))
        return True

    def _give_up(self, group: Group) -> None:
        """Dead letters of its episodes; what comes later finds the whole group in the log."""
        group.news = False
        group.lacks = True
        self._queue = [
            letter_of("rewarder", episode.group_id, episode.calls, episode.event_id)
            for episode in group.gathered.episodes.values()
        ]
        self._closing = (group, None, frozenset(group.unsettled))

    def _may_close(self, group: Group) -> bool:
        if group.gathered.is_complete(FailureRules()):
            return True
        # Without rewards after the deadline; without episodes long after it.
        waits = LONG_DUE if group.gathered.awaits_episodes() else DUE
        return bool(group.gathered.episodes) and self._world.time >= waits and self._reader.at_end()

    def _recall(self, group_id: str, group: Group) -> None:
        """Read again what the group is made of, and what was written of it."""
        group.lacks = False
        written = _written(self._world).get(group_id, RevisionLog())
        group.revision = written.standing
        group.supersedes = written.closed
        self._begun[group_id] = written.begun()
        for event in (*self._world.log[EPISODES], *self._world.log[REWARDS]):
            if isinstance(event, Episode | AgentReward) and event.group_id == group_id:
                group.gathered.add(event)
        group.news = True

    def _write(self) -> bool:
        if self._closing is None:
            return False
        if self._queue:
            output = self._queue.pop(0)
            topics: dict[type[Event], str] = {LedgerEntry: LEDGER, DeadLetter: DEAD}
            self._world.append(topics.get(type(output), TRAJECTORIES), output)
            return True
        group, group.revision, taken = self._closing
        group.supersedes = group.revision or group.supersedes
        self._closing = None
        self._settled |= taken
        group.unsettled -= taken
        if not group.news:
            self._settle(group)
        return True

    def _is_closing(self, group: Group) -> bool:
        return self._closing is not None and self._closing[0] is group

    def _settle(self, group: Group) -> None:
        self._settled |= group.unsettled
        group.unsettled.clear()


def _written(world: World) -> dict[str, RevisionLog]:
    """What the log holds of each group's closings."""
    groups: defaultdict[str, RevisionLog] = defaultdict(RevisionLog)
    for event in (*world.log[TRAJECTORIES], *world.log[LEDGER]):
        if isinstance(event, Trajectory | Tombstone | GroupClosed) or (
            isinstance(event, LedgerEntry) and event.source == REWARDER
        ):
            groups[event.group_id].add(event)
    return groups
