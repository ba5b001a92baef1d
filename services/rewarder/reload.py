"""What the log holds of groups that memory has evicted: their episodes and rewards, and what was
written of them.

Bounded: one partition, the records of these groups only, from a time on that the caller gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fulgurite.avro.codec import Codec
from fulgurite.events import (
    AgentReward,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.group_revisions import SOURCE, RevisionLog
from fulgurite.topics import AGENT_REWARDS, EPISODES, TRAINING_LEDGER, TRAJECTORIES, Topic
from services.common.kafka.consumer import read_all
from services.common.kafka.settings import KafkaSettings


class ReloadedGroup:
    """One group, as the log has it."""

    def __init__(self) -> None:
        self.inputs: list[Episode | AgentReward] = []
        self.written = RevisionLog()
        self._found: set[str] = set()
        self._named: set[str] = set()

    def take(self, event: Event) -> None:
        """The next record of the group."""
        match event:
            case Episode():
                self.inputs.append(event)
                self._found.add(event.revision)
                self._named.update([event.supersedes] if event.supersedes else [])
            case AgentReward():
                self.inputs.append(event)
                self._found.add(event.event_id)
            case GroupClosed():
                self._named.update(event.episode_revisions, event.reward_ids)
                self.written.add(event)
            case Trajectory():
                self._named.add(event.episode_revision)
                self.written.add(event)
            case Tombstone():
                self.written.add(event)
            case LedgerEntry() if event.source == SOURCE:
                self.written.add(event)
            case _:
                pass

    @property
    def is_complete(self) -> bool:
        """Whether all inputs are there that a closing or a later revision names: otherwise
        retention, or the bound in time, took some.
        """
        return self._named <= self._found


def reload_groups(
    kafka: KafkaSettings, codec: Codec, partition: int, group_ids: Collection[str], since_ms: int
) -> dict[str, ReloadedGroup]:
    """Read the log again for some groups. Raises LogUnavailable."""
    found = {group_id: ReloadedGroup() for group_id in group_ids}
    keys = {group_id.encode() for group_id in group_ids}
    for event in _read(kafka, codec, partition, keys, since_ms):
        group_id = getattr(event, "group_id", None)
        if group_id in found:
            found[group_id].take(event)
    return found


def _read(
    kafka: KafkaSettings, codec: Codec, partition: int, keys: Collection[bytes], since_ms: int
) -> Iterator[Event]:
    # Inputs last: what was written is then of inputs that are found.
    topics: tuple[Topic, ...] = (TRAINING_LEDGER, TRAJECTORIES, EPISODES, AGENT_REWARDS)
    for topic in topics:
        for record in read_all(
            kafka, topic, codec, partitions=[partition], since_ms=since_ms, keys=keys
        ):
            if record.event is not None:
                yield record.event
