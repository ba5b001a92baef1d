"""A log in memory: topics as lists of records, with the codec's own bytes, as a `Source`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fulgurite.avro.codec import Codec
from fulgurite.calls.deltas import restore
from fulgurite.episodes.stitching import Input, stitch, supersede
from fulgurite.errors import BrokenDelta
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.group_revisions import revision_of
from fulgurite.groups.group_state import GroupState
from fulgurite.topics import (
    AGENT_REWARDS,
    AGENT_STATUS,
    EPISODES,
    GROUP_PARTITIONS,
    LLM_CALLS,
    TRAJECTORIES,
    Topic,
)
from services.replay.groups import Group, read_groups
from services.replay.records import Raw
from services.rewarder.closing_settings import ClosingSettings

CODEC = Codec()
PLACES = {
    LlmCall: LLM_CALLS,
    AgentStatus: AGENT_STATUS,
    AgentReward: AGENT_REWARDS,
    Episode: EPISODES,
} | dict.fromkeys((Trajectory, Tombstone, GroupClosed), TRAJECTORIES)


class MemoryLog:
    """One deployment; a group's partition derives from its id."""

    def __init__(self, *, one_clock: bool = False) -> None:
        """`one_clock`: record times are of the order in which records were written, and not those
        of the events.
        """
        self._records: list[Raw] = []
        self._one_clock = one_clock

    def append(self, *events: Event, at: int | None = None) -> None:
        """Write events to the ends of their topics. `at`: the record time, by default the event's."""
        for event in events:
            topic = PLACES[type(event)]  # pyright: ignore[reportArgumentType]
            key = str(getattr(event, "group_id", "")).encode()
            time = event.event_time if at is None else at
            self.append_bytes(
                topic, key, CODEC.encode(event), event.event_id, time, type(event).__name__
            )

    def append_bytes(
        self,
        topic: Topic,
        key: bytes,
        value: bytes,
        event_id: str = "",
        at: int = 0,
        event_type: str = "",
    ) -> None:
        """Write any bytes."""
        partition = sum(key) % GROUP_PARTITIONS
        offset = sum(
            raw.topic == topic.name and raw.partition == partition for raw in self._records
        )
        if self._one_clock:
            at = len(self._records)
        self._records.append(
            Raw(topic.name, partition, offset, at, key, value, event_id, event_type)
        )

    def lose(self, topic: Topic) -> None:
        """As retention does, the first record of a topic."""
        self._records.remove(next(raw for raw in self._records if raw.topic == topic.name))

    def count(self, topics: Collection[Topic], since_ms: int | None = None) -> int:
        """See `Source`."""
        return sum(
            len(list(self.read(topics, partition, since_ms)))
            for partition in range(GROUP_PARTITIONS)
        )

    def read(
        self, topics: Collection[Topic], partition: int, since_ms: int | None = None
    ) -> Iterator[Raw]:
        """See `Source`."""
        names = {topic.name for topic in topics}
        for raw in self._records:
            if (
                raw.topic in names
                and raw.partition == partition
                and raw.timestamp >= (since_ms or 0)
            ):
                yield raw

    def complete_call(self, call: LlmCall, held: dict[str, LlmCall]) -> LlmCall:
        """See `Source`."""
        if call.parent is None:
            return call
        if call.parent.call_id not in held:
            raise BrokenDelta(f"{call.parent.call_id} is gone")
        return restore(call, held[call.parent.call_id])

    def groups(self) -> list[Group]:
        """All of them."""
        return list(read_groups(self, CODEC))


class LiveProcessors:
    """What aggregator and rewarder write, told when: revisions of episodes as their inputs come,
    closings when `close` is called.
    """

    def __init__(self, log: MemoryLog, *, of_before: bool = False) -> None:
        """`of_before`: they are of a release that wrote no `GroupClosed`."""
        self._log = log
        self.of_before = of_before
        self._inputs: dict[tuple[str, int], dict[str, Input]] = {}
        self._declared: AgentStatus | None = None
        self._gathered = GroupState()
        self._published: dict[tuple[str, int], Episode] = {}
        self._revision: str | None = None

    def take(self, events: Sequence[LlmCall | AgentStatus | AgentReward]) -> None:
        """Log events of one group and process each."""
        for event in events:
            self._log.append(event)
            if isinstance(event, AgentReward):
                self._gathered.add(event)
            elif event.rollout_id is None:
                self._declared = event
            else:
                self._stitch((event.rollout_id, event.attempt), event)

    def close(self) -> None:
        """Close the group with what there is."""
        group_id = next(iter(self._gathered.episodes.values())).group_id
        outputs = self._gathered.close(group_id, ClosingSettings().rules())
        revision = revision_of(outputs)
        if revision != self._revision:
            closed = None if self.of_before else self._gathered.closed(outputs, self._revision)
            self._log.append(
                *(output for output in outputs if not isinstance(output, LedgerEntry)),
                *([closed] if closed else []),
            )
            self._revision = revision

    def _stitch(self, key: tuple[str, int], event: Input) -> None:
        inputs = self._inputs.setdefault(key, {})
        inputs[event.event_id] = event
        candidate = stitch([*inputs.values(), *([self._declared] if self._declared else [])])
        episode = supersede(self._published.get(key), candidate) if candidate else None
        if episode is not None:
            self._published[key] = episode
            self._log.append(episode)
            self._gathered.add(episode)
