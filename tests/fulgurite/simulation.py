"""A deployment in a few hundred lines: producers, aggregator, rewarder and learner over lists, built from the pure functions alone.

Each step of a processor does at most one thing that lasts (a record, a commit, a checkpoint), so a crash between steps is a crash at any
moment that matters: it loses the processor's memory and nothing else. Time is a number that the schedule moves. A `World` is the log, what
was committed, and the learner's checkpoint; it outlives everybody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from fulgurite.amendments import accounts_of, amended_entries
from fulgurite.batching import SOURCE as LEARNER
from fulgurite.batching import BatchRules, RowBatcher, ledger_entries
from fulgurite.closing import awaits_episodes
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
from fulgurite.failure_rules import FailureRules
from fulgurite.gathering import Gathered
from fulgurite.ids import derive_id
from fulgurite.kinds import LedgerTerm, StatusKind, UpdateKind
from fulgurite.sealing import SOURCE as REWARDER
from fulgurite.sealing import Output, Written, revision_of
from fulgurite.stitching import Input, is_input, is_terminal, missing_inputs, stitch, supersede
from fulgurite.versions import Version

CALLS, STATUS, REWARDS = "llm.calls", "agent.status", "agent.rewards"
EPISODES, TRAJECTORIES, LEDGER, UPDATES = "episodes", "trajectories", "training.ledger", "policy.updates"

DUE = 45_000
"""By then every group's deadline and the grace for rewards are over."""

LONG_DUE = 900_000
"""By then nobody waits for episodes any more."""

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
        self.rewarders = 0
        """That have been started."""

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


class Group:
    """What a rewarder holds of a group."""

    def __init__(self, revision: str | None = None, *, lacks: bool = False) -> None:
        self.gathered = Gathered()
        self.unsettled: set[str] = set()
        self.revision = revision
        """That the log stands at; None for a group that is not closed, as far as is known."""
        self.lacks = lacks
        """Whether it may have been closed and forgotten: the log is to be read before anything is done."""
        self.news = False

    def take(self, event: Episode | AgentReward) -> None:
        """Hold an input until it is written of."""
        self.unsettled.add(event.event_id)
        self.news |= self.gathered.take(event)

    @property
    def is_open(self) -> bool:
        return self.revision is None and not self.lacks


class Rewarder:
    """Episodes and rewards → rows, tombstones and ledger entries; closed groups are closed anew when something comes late.

    Every other one looks back no further than its own start, and so knows of no group whether it was closed.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader = Reader(world, "rewarder", (EPISODES, REWARDS))
        self._groups: dict[str, Group] = {}
        self._queue: list[Output] = []
        self._closing: tuple[Group, str | None, frozenset[str]] | None = None
        self._begun: dict[str, set[str]] = {}
        self._settled: set[str] = set()
        self._forgets = world.rewarders % 2 == 1
        world.rewarders += 1
        if not self._forgets:
            for group_id, written in _written(world).items():
                self._begun[group_id] = written.begun()
                if written.standing is not None:
                    self._groups[group_id] = Group(written.standing, lacks=True)

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
        outputs = group.gathered.close(group_id, FailureRules())
        revision = revision_of(outputs)
        group.news = False
        if revision == group.revision:
            self._settle(group)
        else:
            begun = self._begun.pop(group_id, set[str]())
            self._queue = [output for output in outputs if output.event_id not in begun]
            self._closing = (group, revision, frozenset(group.unsettled))
        return True

    def _may_close(self, group: Group) -> bool:
        if group.gathered.is_complete(FailureRules()):
            return True
        # Without rewards after the deadline; without episodes long after it.
        waits = LONG_DUE if group.gathered.awaits_episodes() else DUE
        return bool(group.gathered.episodes) and self._world.time >= waits and self._reader.at_end()

    def _recall(self, group_id: str, group: Group) -> None:
        """Read again what the group is made of, and what was written of it."""
        group.lacks = False
        written = _written(self._world).get(group_id, Written())
        group.revision = written.standing
        self._begun[group_id] = written.begun()
        for event in (*self._world.log[EPISODES], *self._world.log[REWARDS]):
            if isinstance(event, Episode | AgentReward) and event.group_id == group_id:
                group.gathered.take(event)
        group.news = True

    def _write(self) -> bool:
        if self._closing is None:
            return False
        if self._queue:
            output = self._queue.pop(0)
            self._world.append(LEDGER if isinstance(output, LedgerEntry) else TRAJECTORIES, output)
            return True
        group, group.revision, taken = self._closing
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


def _written(world: World) -> dict[str, Written]:
    """What the log holds of each group's closings."""
    groups: defaultdict[str, Written] = defaultdict(Written)
    for event in (*world.log[TRAJECTORIES], *world.log[LEDGER]):
        if isinstance(event, Trajectory | Tombstone) or (isinstance(event, LedgerEntry) and event.source == REWARDER):
            groups[event.group_id].take(event)
    return groups


class Learner:
    """Rows → steps. Checkpoint, then update, then ledger; the last two are said again from the checkpoint."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._batcher = RowBatcher("policy", BatchRules(groups_per_step=1, max_staleness=1_000))
        kept = world.checkpoint
        # A group written again, long after it was settled, is known from the ledger.
        entries = [event for event in (*world.log[LEDGER], *kept.writes) if isinstance(event, LedgerEntry) and event.source == LEARNER]
        self._batcher.restore(kept.positions, kept.settled, {entry.group_id: entry.group_revision for entry in entries})
        self._at = next((position.offset for position in kept.positions), 0)
        self._writes = list(kept.writes)

    def step(self, choice: int) -> bool:
        """See Processor."""
        if self._writes and choice % 4 < 3:
            return self._write()
        works = (self._train, self._read, self._amend)
        first = choice % 3
        # A step begins only when all of the one before has been said.
        return any(work() for work in (*works[first:], *works[:first]) if not (self._writes and work != self._read))

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
            known = [event for event in self._world.log[LEDGER] if isinstance(event, LedgerEntry) and event.source == LEARNER]
            accounts = accounts_of([entry for entry in known if entry.group_id == held.group_id])
            told += amended_entries(held, accounts, version, 0)
            self._batcher.amend(held)
        return tuple(told)

    def _keep(self, step: int, writes: tuple[Event, ...]) -> None:
        self._world.checkpoint = Checkpoint(step, self._batcher.positions(), self._batcher.settled(), writes)
        self._writes = list(writes)

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
                    self.world.time = LONG_DUE if self._lawless and self.world.time == DUE and choice % 2 else DUE

    def settle(self) -> None:
        """Let everything come to rest."""
        while self._land(0):
            pass
        for time in (DUE, LONG_DUE):
            self.world.time = max(self.world.time, time)
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
