"""Rebuilds groups from `llm.calls`, `agent.status` and `agent.rewards`, as the live processors do.

A whole partition is read, and its records are sorted by group without decoding them. Then one group
at a time is decoded, its deltas restored and its attempts stitched. Records that cannot be used
(undecodable, a delta without its parent, a missing payload) are left out and named; the live
processors send them to `dead.letters`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.enums import StatusKind
from fulgurite.episodes.stitching import Input, adds_nothing, is_input, stitch
from fulgurite.errors import BadClaim, BrokenDelta, CodecError
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Declaration,
    Episode,
    Event,
    GroupClosed,
    LlmCall,
)
from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS, GROUP_PARTITIONS, LLM_CALLS, TRAJECTORIES
from services.common.blobs.blob_store import redeemed
from services.common.kafka.dead_letters import words_of
from services.common.runtime import logs
from services.replay.records import Raw, Source

logger = logs.get()

Key = tuple[str, int]
"""Rollout id and attempt."""

REACH_MS = 24 * 3600 * 1000
"""Groups are selected by their first event. Records this long before the start are read too, to
find the groups that had already begun.
"""

INPUTS = (LLM_CALLS, AGENT_STATUS, AGENT_REWARDS)

OnProgress = Callable[[int], None]
"""Called with the number of records read since the last call."""


class GroupLog(msgspec.Struct):
    """The records of one group, undecoded and in order."""

    group_id: str
    partition: int
    records: list[Raw] = msgspec.field(default_factory=list[Raw])
    row_ids: list[str] = msgspec.field(default_factory=list[str])
    """Event ids of what the live rewarder wrote to `trajectories`, in order."""
    closings: list[Raw] = msgspec.field(default_factory=list[Raw])
    """The `GroupClosed` records among them."""
    read_until: int = 0
    """Highest record time of the partition's inputs, Unix milliseconds."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One rebuilt group. Lists are in log order; all but `row_ids` have each event once."""

    group_id: str
    partition: int
    declared: AgentStatus | None
    inputs: dict[Key, dict[str, Input]]
    """Calls and statuses of each attempt by event id, without the declaration."""
    statuses: tuple[AgentStatus, ...]
    """All statuses, heartbeats included."""
    rewards: tuple[AgentReward, ...]
    row_ids: tuple[str, ...]
    """Event ids of what the live rewarder wrote to `trajectories`."""
    closings: tuple[GroupClosed, ...]
    reward_times: Mapping[str, int]
    """Unix milliseconds of each reward's first record, by event id."""
    unreadable: tuple[str, ...]
    """Records that were left out: place and error."""
    began_at: int
    """Unix milliseconds of the first event."""
    read_until: int
    """Highest record time of its partition's inputs; the group is due if it was due by then."""

    @property
    def declaration(self) -> Declaration | None:
        """The group's declaration; None for undeclared traffic."""
        return self.declared.declaration if self.declared else None

    def episodes(self) -> tuple[Episode, ...]:
        """The last revision of every attempt that has ended."""
        found = (self.episode(key) for key in self.inputs)
        return tuple(episode for episode in found if episode is not None)

    def episode(self, key: Key, ids: Collection[str] | None = None) -> Episode | None:
        """Stitch an attempt; None if it has not ended or cannot be stitched.

        `ids`: use only these inputs.
        """
        chosen = [
            event
            for event_id, event in self.inputs.get(key, {}).items()
            if ids is None or event_id in ids
        ]
        if self.declared is not None and (ids is None or self.declared.event_id in ids):
            chosen.append(self.declared)
        try:
            return stitch(chosen)
        except Exception as error:  # noqa: BLE001 - the edge of one attempt: the live aggregator wrote a dead letter
            logger.warning(
                "an attempt cannot be stitched and is left out",
                rollout_id=key[0],
                attempt=key[1],
                error=words_of(error),
            )
            return None


def read_groups(
    source: Source,
    codec: Codec,
    *,
    since_ms: int | None = None,
    keys: Collection[str] | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[Group]:
    """Yield groups whose first event is not before `since_ms`, one partition after another.

    `keys`: only these groups. Raises LogUnavailable, BadArchive.
    """
    for partition in range(GROUP_PARTITIONS):
        for log in _logs(source, partition, since_ms, keys, on_progress):
            group = rebuild(log, source, codec)
            if group is not None and (since_ms is None or group.began_at >= since_ms):
                yield group


def rebuild(log: GroupLog, source: Source, codec: Codec) -> Group | None:
    """Decode and sort the records of a group; None if none can be read."""
    events: dict[str, dict[str, Event]] = {topic.name: {} for topic in (*INPUTS, TRAJECTORIES)}
    times_of: dict[str, int] = {}
    unreadable: list[str] = []
    calls: dict[str, LlmCall] = {}
    for raw in (*log.records, *log.closings):
        try:
            event = codec.decode(raw.value)
            if isinstance(event, LlmCall):
                event = calls[event.call_id] = source.complete_call(event, calls)
                # Only checks that the payload can be read: the episode keeps its claim check.
                redeemed(event)
        except (CodecError, BrokenDelta, BadClaim) as error:
            unreadable.append(f"{raw.topic}[{raw.partition}]@{raw.offset}: {error}")
            continue
        events[raw.topic].setdefault(event.event_id, event)
        times_of.setdefault(event.event_id, raw.timestamp)
    statuses = [
        event for event in events[AGENT_STATUS.name].values() if isinstance(event, AgentStatus)
    ]
    rewards = [
        event for event in events[AGENT_REWARDS.name].values() if isinstance(event, AgentReward)
    ]
    declared = next(
        (event for event in statuses if event.rollout_id is None and _declares(event)), None
    )
    known = [event for event in events[LLM_CALLS.name].values() if isinstance(event, LlmCall)]
    times = [event.event_time for event in (*known, *statuses, *rewards)]
    if not times:
        return None
    return Group(
        group_id=log.group_id,
        partition=log.partition,
        declared=declared,
        inputs=_attempts([*known, *statuses]),
        statuses=tuple(statuses),
        rewards=tuple(rewards),
        row_ids=tuple(log.row_ids),
        closings=tuple(
            event for event in events[TRAJECTORIES.name].values() if isinstance(event, GroupClosed)
        ),
        reward_times={reward.event_id: times_of[reward.event_id] for reward in rewards},
        unreadable=tuple(unreadable),
        began_at=min([*times, *(call.started_at for call in known)]),
        read_until=log.read_until,
    )


def _logs(
    source: Source,
    partition: int,
    since_ms: int | None,
    keys: Collection[str] | None,
    on_progress: OnProgress | None,
) -> Iterator[GroupLog]:
    """Yield a partition's groups in the order of their first records, freeing each one."""
    found: dict[bytes, GroupLog] = {}
    wanted = None if keys is None else {key.encode() for key in keys}
    reach = None if since_ms is None else since_ms - REACH_MS
    until = 0
    for count, raw in enumerate(source.read((*INPUTS, TRAJECTORIES), partition, reach), 1):
        if on_progress is not None and count % 1_000 == 0:
            on_progress(1_000)
        if raw.topic != TRAJECTORIES.name:
            until = max(until, raw.timestamp)
        if wanted is not None and raw.key not in wanted:
            continue
        log = found.get(raw.key)
        if log is None:
            log = found[raw.key] = GroupLog(raw.key.decode("utf-8", "replace"), partition)
        if raw.topic == TRAJECTORIES.name:
            log.row_ids.append(raw.event_id)
            if raw.event_type == GroupClosed.__name__:
                log.closings.append(raw)
        else:
            log.records.append(raw)
    for key in list(found):
        log = found.pop(key)
        log.read_until = until
        yield log


def _attempts(events: Iterable[Input]) -> dict[Key, dict[str, Input]]:
    attempts: dict[Key, dict[str, Input]] = {}
    for event in events:
        if event.rollout_id is not None and is_input(event):
            inputs = attempts.setdefault((event.rollout_id, event.attempt), {})
            if not adds_nothing(event, inputs.values()):
                inputs[event.event_id] = event
    return attempts


def _declares(event: AgentStatus) -> bool:
    return event.kind is StatusKind.declared and event.declaration is not None
