"""A deployment in a few hundred lines: producers, aggregator, rewarder and learner over lists, built from the pure functions alone.

Each step of a processor does at most one thing that lasts (a record, a commit, a checkpoint), so a crash between steps is a crash at any
moment that matters: it loses the processor's memory and nothing else. Time is a number that the schedule moves. A `World` is the log, what
was committed, and the learner's checkpoint; it outlives everybody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from fulgurite.batching import BatchRules, RowBatcher, ledger_entries
from fulgurite.closing import awaits_episodes, awaits_rewards, close_group
from fulgurite.deadlines import AttemptProgress, overdue
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Declaration,
    Episode,
    Event,
    LedgerEntry,
    LlmCall,
    PolicyUpdate,
    Position,
    Tombstone,
    Trajectory,
)
from fulgurite.ids import derive_id
from fulgurite.kinds import LedgerTerm, StatusKind, UpdateKind
from fulgurite.stitching import Input, is_input, is_terminal, missing_inputs, stitch, supersede
from fulgurite.versions import Version

CALLS, STATUS, REWARDS = "llm.calls", "agent.status", "agent.rewards"
EPISODES, TRAJECTORIES, LEDGER, UPDATES = "episodes", "trajectories", "training.ledger", "policy.updates"

DUE = 45_000
"""By then every group's deadline and grace are over."""

MOVES = ("step",) * 9 + ("land",) * 3 + ("again", "crash", "time")
"""What a schedule is made of, and how often."""

Key = tuple[str, int]


class Checkpoint(NamedTuple):
    """What a learner keeps; `writes` are said again by whoever takes it up."""

    step: int
    positions: tuple[Position, ...]
    settled: dict[str, tuple[int, int]]
    writes: tuple[Event, ...]


class World:
    """What lasts."""

    def __init__(self) -> None:
        self.log: defaultdict[str, list[Event]] = defaultdict(list)
        self.committed: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.checkpoint = Checkpoint(0, (), {}, ())
        self.trained: list[str] = []
        """Actions of every step whose weights were kept, in order."""
        self.time = 0

    def append(self, topic: str, event: Event) -> None:
        self.log[topic].append(event)


class Processor(Protocol):
    """One that can be killed between any two steps."""

    def __init__(self, world: World) -> None: ...

    def step(self, choice: int) -> bool:
        """Do one thing; False if there is nothing to do."""
        ...


def topic_of(event: Event) -> str:
    """Where producers write it."""
    return CALLS if isinstance(event, LlmCall) else REWARDS if isinstance(event, AgentReward) else STATUS


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


class Aggregator:
    """Calls and statuses → episodes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader = Reader(world, "aggregator", (CALLS, STATUS))
        self._inputs: defaultdict[Key, dict[str, Input]] = defaultdict(dict)
        self._declared: dict[str, AgentStatus] = {}
        self._barriers: dict[Key, int] = {}
        self._said: set[str] = set()
        self._published: dict[Key, Episode] = {}
        for episode in world.log[EPISODES]:
            assert isinstance(episode, Episode)
            key = (episode.rollout_id, episode.attempt)
            held = self._published.get(key)
            if held is None or set(episode.inputs) > set(held.inputs):
                self._published[key] = episode

    def step(self, choice: int) -> bool:
        """See Processor."""
        works = (self._publish, lambda: self._reader.commit(self._settled()), lambda: self._read(choice), self._judge)
        first = choice % 3
        return any(work() for work in (*works[first:3], *works[:first], works[3]))

    def _read(self, choice: int) -> bool:
        event = self._reader.next(choice // 3)
        if event is None:
            return False
        assert isinstance(event, LlmCall | AgentStatus)
        if isinstance(event, AgentStatus) and event.declaration is not None:
            self._declared.setdefault(event.group_id, event)
        elif is_input(event):
            key = (str(event.rollout_id), event.attempt)
            published = self._published.get(key)
            if published is None or event.event_id not in published.inputs:
                self._inputs[key].setdefault(event.event_id, event)
                if published is not None or any(map(is_terminal, self._inputs[key].values())):
                    # A call is in the log before its reply leaves, so below the end that the log has now.
                    self._barriers[key] = len(self._world.log[CALLS])
        return True

    def _publish(self) -> bool:
        for key, barrier in list(self._barriers.items()):
            # Attempts of a rollout in their order: this rewarder closes a group once, and what comes after that is late.
            earlier = any(rollout == key[0] and attempt < key[1] for rollout, attempt in self._barriers)
            if self._reader.at[CALLS] < barrier or earlier:
                continue
            del self._barriers[key]
            episode = self._stitched(key)
            if episode is not None:
                self._published[key] = episode
                self._world.append(EPISODES, episode)
                return True
        return False

    def _stitched(self, key: Key) -> Episode | None:
        held, published = self._inputs[key], self._published.get(key)
        if published is not None:
            lost = missing_inputs(published, held)
            held |= {call.event_id: call for call in published.calls}
            held |= {
                event.event_id: event for event in self._world.log[STATUS] if event.event_id in lost and isinstance(event, AgentStatus)
            }
        group = next(iter(held.values())).group_id
        candidate = stitch([*held.values(), *self._declaration_of(group)])
        return None if candidate is None else supersede(published, candidate)

    def _declaration_of(self, group: str) -> list[AgentStatus]:
        """Read again from the log, if it was acknowledged before we began: its group was complete then, and is no longer."""
        if group in self._declared:
            return [self._declared[group]]
        known = (event for event in self._world.log[STATUS] if isinstance(event, AgentStatus) and event.declaration is not None)
        return [event for event in known if event.group_id == group][:1]

    def _judge(self) -> bool:
        if not self._reader.at_end() or self._barriers:
            return False
        for declared in self._declared.values():
            if declared.declaration is None or self._world.time < declared.declaration.deadline:
                continue
            for verdict in overdue(declared, self._heard(declared.declaration)):
                if verdict.event_id not in self._said:
                    self._said.add(verdict.event_id)
                    self._world.append(STATUS, verdict)
                    return True
        return False

    def _heard(self, declaration: Declaration) -> dict[str, list[AttemptProgress]]:
        heard: dict[str, list[AttemptProgress]] = {}
        for rollout, attempt in sorted({*self._inputs, *self._published}):
            if rollout in declaration.rollout_ids:
                episode = self._published.get((rollout, attempt))
                progress = AttemptProgress(
                    attempt=attempt, ended=episode is not None, will_retry=episode is not None and episode.will_retry
                )
                heard.setdefault(rollout, []).append(progress)
        return heard

    def _settled(self) -> frozenset[str]:
        settled = {event_id for episode in self._published.values() for event_id in episode.inputs}
        for declared in self._declared.values():
            episodes = [episode for episode in self._published.values() if episode.group_id == declared.group_id]
            if awaits_episodes(declared.declaration, episodes):
                settled.discard(declared.event_id)
        return frozenset(settled)


class Rewarder:
    """Episodes and rewards → rows, tombstones and ledger entries."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader = Reader(world, "rewarder", (EPISODES, REWARDS))
        self._episodes: defaultdict[str, dict[Key, Episode]] = defaultdict(dict)
        self._rewards: defaultdict[str, dict[str, AgentReward]] = defaultdict(dict)
        self._queue: list[Trajectory | Tombstone | LedgerEntry] = []
        self._closing: str | None = None
        self._written = {event.event_id for topic in (TRAJECTORIES, LEDGER) for event in world.log[topic]}
        self._closed = _whole_groups(world.log[TRAJECTORIES])
        self._settled: set[str] = set()

    def step(self, choice: int) -> bool:
        """See Processor."""
        works = (self._write, self._close, lambda: self._reader.commit(frozenset(self._settled)), lambda: self._read(choice))
        first = choice % 4
        return any(work() for work in (*works[first:], *works[:first]))

    def _read(self, choice: int) -> bool:
        event = self._reader.next(choice // 4)
        if event is None:
            return False
        assert isinstance(event, Episode | AgentReward)
        if event.group_id in self._closed:
            self._settled.add(event.event_id)
        elif isinstance(event, AgentReward):
            self._rewards[event.group_id].setdefault(event.event_id, event)
        else:
            key = (event.rollout_id, event.attempt)
            held = self._episodes[event.group_id].get(key)
            if held is None or set(event.inputs) > set(held.inputs):
                self._episodes[event.group_id][key] = event
        return True

    def _close(self) -> bool:
        if self._closing is not None:
            return False
        for group, episodes in self._episodes.items():
            if group not in self._closed and self._may_close(group):
                declaration = next((episode.declaration for episode in episodes.values() if episode.declaration), None)
                self._queue = list(close_group(group, declaration, episodes.values(), list(self._rewards[group].values())))
                self._closing = group
                return True
        return False

    def _may_close(self, group: str) -> bool:
        episodes = list(self._episodes[group].values())
        declaration = next((episode.declaration for episode in episodes if episode.declaration), None)
        if awaits_episodes(declaration, episodes):
            return False
        due = self._world.time >= DUE and self._reader.at_end()
        return due or not awaits_rewards(declaration, episodes, list(self._rewards[group].values()))

    def _write(self) -> bool:
        if self._closing is None:
            return False
        while self._queue:
            output = self._queue.pop(0)
            if output.event_id not in self._written:
                self._written.add(output.event_id)
                self._world.append(LEDGER if isinstance(output, LedgerEntry) else TRAJECTORIES, output)
                return True
        self._settled.update(episode.event_id for episode in self._episodes[self._closing].values())
        self._settled.update(self._rewards[self._closing])
        self._closed.add(self._closing)
        self._closing = None
        return True


def _whole_groups(records: Iterable[Event]) -> set[str]:
    """Groups of which every member has all its rows or its tombstone."""
    left: defaultdict[str, dict[str, int]] = defaultdict(dict)
    sizes: dict[str, int] = {}
    for output in {record.event_id: record for record in records}.values():
        assert isinstance(output, Trajectory | Tombstone)
        sizes[output.group_id] = output.group_size
        rows = 1 if isinstance(output, Tombstone) else output.rows_in_episode
        left[output.group_id][output.rollout_id] = left[output.group_id].get(output.rollout_id, rows) - 1
    return {group for group, members in left.items() if len(members) == sizes[group] and not any(members.values())}


class Learner:
    """Rows → steps. Checkpoint, then update, then ledger; the last two are said again from the checkpoint."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._batcher = RowBatcher("policy", BatchRules(groups_per_step=1, max_staleness=1_000))
        kept = world.checkpoint
        self._batcher.restore(kept.positions, kept.settled)
        self._at = next((position.offset for position in kept.positions), 0)
        self._writes = list(kept.writes)

    def step(self, choice: int) -> bool:
        """See Processor."""
        works = (self._write, self._train, self._read)
        first = choice % 3
        # A step begins only when all of the one before has been said.
        return any(work() for work in (*works[first:], *works[:first]) if not (self._writes and work == self._train))

    def _read(self) -> bool:
        if self._at >= len(self._world.log[TRAJECTORIES]):
            return False
        event = self._world.log[TRAJECTORIES][self._at]
        assert isinstance(event, Trajectory | Tombstone)
        self._batcher.add(0, self._at, event)
        self._at += 1
        return True

    def _train(self) -> bool:
        groups = self._batcher.take(Version("policy", 0, self._world.checkpoint.step))
        if not groups:
            return False
        step = self._world.checkpoint.step + 1
        version = Version("policy", 0, step)
        trained = [action for group in groups for action, (term, _) in group.fates.items() if term is LedgerTerm.trained]
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
        writes = (update, *ledger_entries(groups, version, 0))
        self._world.checkpoint = Checkpoint(step, self._batcher.positions(), self._batcher.settled(), writes)
        self._world.trained += trained
        self._writes = list(writes)
        return True

    def _write(self) -> bool:
        if not self._writes:
            return False
        event = self._writes.pop(0)
        self._world.append(UPDATES if isinstance(event, PolicyUpdate) else LEDGER, event)
        return True


class Deployment:
    """Producers with something to say, and the three processors."""

    def __init__(self, sources: Iterable[Sequence[Event]], after: Mapping[int, int], *, lawless: bool = False) -> None:
        """`after`: for a source, the one that must have said its first before. `lawless`: time passes whatever has not landed."""
        self.world = World()
        self._said = [list(source) for source in sources]
        self._sources = [list(source) for source in sources]
        self._after = after
        self._lawless = lawless
        self._kinds: tuple[type[Processor], ...] = (Aggregator, Rewarder, Learner)
        self._alive: list[Processor] = [kind(self.world) for kind in self._kinds]

    def act(self, move: int, choice: int) -> None:
        """One step of a schedule: something lands, lands again, is processed; or somebody crashes; or time passes."""
        match MOVES[move % len(MOVES)]:
            case "land":
                for _ in range(1 + choice % 3):
                    self._land(choice)
            case "again":
                self._duplicate(choice)
            case "step":
                # Often several at once, so that schedules come to their end.
                for _ in range(1 + choice // 3 % 7):
                    self._alive[choice % 3].step(choice // 3)
            case "crash":
                self._alive[choice % 3] = self._kinds[choice % 3](self.world)
            case _:
                # Not before everything has landed: a verdict is given upon the whole log.
                if self._lawless or not any(self._sources):
                    self.world.time = DUE

    def settle(self) -> None:
        """Let everything come to rest."""
        while self._land(0):
            pass
        self.world.time = DUE
        while sum(processor.step(0) for processor in self._alive):
            pass

    def _land(self, choice: int) -> bool:
        waiting = [source for place, source in enumerate(self._sources) if source and self._may_speak(place)]
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
            if not (isinstance(again, AgentStatus) and again.source == "aggregator" and again.kind is StatusKind.timed_out):
                self.world.append(topic, again)
