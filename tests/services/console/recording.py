"""A small recorded log as an index: two versions of a policy, groups with and without signal, a
failure, and texts that look like markup. Made by the core's own functions, and written by the
index's writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, LedgerTerm, StatusKind, UpdateKind
from fulgurite.episodes.stitching import stitch
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Episode,
    Event,
    LedgerEntry,
    LlmCall,
    PolicyApplied,
    PolicyUpdate,
    Trajectory,
)
from fulgurite.failures import FailureKind
from fulgurite.groups.closing import close_group
from fulgurite.groups.group_revisions import group_closed
from fulgurite.ids import action_id
from services.console.index.batch import LogRecord
from services.console.index.reader import IndexReader
from services.console.index.writer import IndexWriter
from services.console.pages.address import Address
from services.console.pages.blocks import Block
from services.console.pages.reading import Asked, LiveIndex
from services.console.pages.view import View
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status

BEGAN = 1_790_000_000_000
"""Unix milliseconds."""
NOW = BEGAN + 600_000
MARKUP = '<img src=x onerror="window.wasRun=1"><script>window.wasRun=1</script>'
RUN = "run-1"
VERSIONS = ("policy@0.0", "policy@1.1")
GROUPS = 4
SIZE = 2

TOPICS: tuple[tuple[tuple[type[Event], ...], str], ...] = (
    ((LlmCall,), "llm.calls"),
    ((AgentStatus,), "agent.status"),
    ((AgentReward,), "agent.rewards"),
    ((Episode,), "episodes"),
    ((PolicyUpdate,), "policy.updates"),
    ((PolicyApplied,), "policy.applied"),
    ((LedgerEntry,), "training.ledger"),
    ((DeadLetter,), "dead.letters"),
)


def recorded_group(
    group: int,
    version: str,
    rewards: Sequence[float],
    at: int,
    failure: FailureKind | None = None,
) -> list[Event]:
    """All events of a group: one rollout for each reward, two calls each."""
    declared = make_declared(
        group, len(rewards), at=at, deadline=at + 60_000, run_id=RUN, task='{"question": "1+1"}'
    )
    events: list[Event] = [declared]
    episodes: list[Episode] = []
    given: list[AgentReward] = []
    for index, value in enumerate(rewards):
        calls = [
            make_call(
                group,
                index,
                turn,
                at=at + 100 * turn + index,
                version=version,
                agent="solver",
                messages=[{"role": "user", "content": f"{MARKUP} 1+1"}],
                replies=[{"role": "assistant", "content": f"{MARKUP} is {value:g}"}],
                answers=[[7, 9, 11]],
            )
            for turn in range(2)
        ]
        ended = make_status(
            group,
            index,
            StatusKind.failed if failure and not index else StatusKind.finished,
            at=at + 1_000 + index,
            failure=None if index else failure,
        )
        reward = make_reward(group, index, value, at=at + 2_000 + index)
        episode = stitch([declared, *calls, ended])
        assert episode is not None
        events += [*calls, ended, episode, reward]
        episodes.append(episode)
        given.append(reward)
    outputs = close_group(group_id(group), declared.declaration, episodes, given)
    closed = group_closed(outputs, episodes, given, None)
    assert closed is not None
    return [*events, *outputs, closed]


def trained(events: Sequence[Event], version: str, at: int) -> LedgerEntry:
    """The learner's entry for all actions of a group that carry loss."""
    rows = [event for event in events if isinstance(event, Trajectory)]
    actions = tuple(
        action_id(action.call_id, action.choice)
        for row in rows
        for action in row.actions
        if action.loss and action.mask is None
    )
    return LedgerEntry(
        event_id=f"trained-{rows[0].group_id}",
        event_time=at,
        policy="policy",
        group_id=rows[0].group_id,
        group_revision=rows[0].group_revision,
        term=LedgerTerm.trained,
        actions=actions,
        version=version,
        source="learner",
    )


def published(version: str, at: int, reward: float) -> PolicyUpdate:
    """A version of the policy."""
    epoch, step = (int(part) for part in version.partition("@")[2].split("."))
    return PolicyUpdate(
        event_id=f"update-{version}",
        event_time=at,
        policy="policy",
        kind=UpdateKind.update,
        epoch=epoch,
        step=step,
        version=version,
        learner_id="learner-1",
        trained_actions=4,
        metrics={"loss": -0.1, "reward_mean": reward, "k3": 0.02, "seconds/train": 3.0},
    )


def claimed(at: int) -> PolicyUpdate:
    """The start of a learner, with its settings."""
    return PolicyUpdate(
        event_id="claim",
        event_time=at,
        policy="policy",
        kind=UpdateKind.claim,
        epoch=1,
        step=0,
        learner_id="learner-1",
        trained_actions=0,
        config='{"drift": {"alarm": {"k3": 0.01, "ess": 0.5}}}',
    )


def applied(version: str, at: int) -> PolicyApplied:
    """What a backend serves."""
    return PolicyApplied(
        event_id=f"applied-{version}",
        event_time=at,
        policy="policy",
        backend="vllm",
        engine_id="e1",
        version=version,
        outcome=ApplyOutcome.applied,
        seconds=1.5,
    )


def events() -> list[Event]:
    """The log: the first group has signal and is trained, the second has none, the third has a
    failure, the fourth is of the new version.
    """
    first = recorded_group(0, VERSIONS[0], (1.0, 0.0), BEGAN)
    return [
        *first,
        *recorded_group(1, VERSIONS[0], (0.0, 0.0), BEGAN + 10_000),
        *recorded_group(2, VERSIONS[0], (0.0, 1.0), BEGAN + 20_000, FailureKind.agent_exception),
        claimed(BEGAN + 29_000),
        published(VERSIONS[1], BEGAN + 30_000, 0.5),
        trained(first, VERSIONS[1], BEGAN + 31_000),
        applied(VERSIONS[1], BEGAN + 32_000),
        *recorded_group(3, VERSIONS[1], (1.0, 1.0), BEGAN + 40_000),
    ]


def topic_of(event: Event) -> str:
    """The topic of an event; trajectories, tombstones and closings share one."""
    return next((name for kinds, name in TOPICS if isinstance(event, kinds)), "trajectories")


class Recording:
    """Writes events into an index."""

    def __init__(self, path: Path) -> None:
        self._codec = Codec()
        self._writer = IndexWriter(path, self._codec, "fulgurite.", lambda: NOW)
        self._next: dict[str, int] = {}
        self.index = LiveIndex(IndexReader(path))

    def write(self, found: Sequence[Event]) -> None:
        """Write events as the next records of partition 0 of their topics."""
        records: list[LogRecord] = []
        for event in found:
            topic = topic_of(event)
            offset = self._next.get(topic, 0)
            self._next[topic] = offset + 1
            value = self._codec.encode(event)
            read = self._codec.decode(value, packed=True)
            records.append(LogRecord(topic, 0, offset, event.event_time, value, read))
        ends = {(topic, 0): offset for topic, offset in self._next.items()}
        self._writer.write(records, ends)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def show(self, view: View, **query: str) -> Sequence[Block]:
        """What a view shows at an address."""
        return view.content(Asked(self.index, Address(view.path, query), NOW))


def found(blocks: Sequence[Block], kind: type[Any], title: str = "") -> Any:
    """The first block of a type whose title begins so, looking into columns, too."""
    for block in flat(blocks):
        if isinstance(block, kind) and str(getattr(block, "title", "")).startswith(title):
            return block
    raise AssertionError(f"no {kind.__name__} {title!r} among {[type(b).__name__ for b in blocks]}")


def flat(blocks: Sequence[Block]) -> list[Block]:
    """Blocks and those in columns."""
    return [one for block in blocks for one in [block, *flat(getattr(block, "items", ()))]]


def texts(blocks: Sequence[Block]) -> list[list[str]]:
    """The cells of all tables."""
    rows = (row for block in flat(blocks) for row in getattr(block, "rows", ()))
    return [[cell.text for cell in row] for row in rows]


def figures(blocks: Sequence[Block]) -> dict[str, str]:
    """The numbers of all figures by their names."""
    items = (item for block in flat(blocks) for item in getattr(block, "items", ()))
    return {item.label: item.value for item in items if hasattr(item, "value")}
