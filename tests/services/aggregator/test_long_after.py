"""What comes for a group that memory has let go of, or that was written before a start looked:
stitched with its declaration, as ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from fulgurite.enums import StatusKind
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentStatus, Episode, Event, LlmCall
from fulgurite.failures import FailureKind
from fulgurite.ids import external_group, mint_group, minted_at
from fulgurite.topics import AGENT_STATUS, EPISODES, LLM_CALLS, Topic
from services.aggregator import partition as partition_module
from services.aggregator.call_expander import FindCall
from services.aggregator.partition import AggregatorPartition
from services.aggregator.settings import AggregatorSettings
from services.common.kafka.consumer import Record
from services.common.kafka.settings import KafkaSettings
from services.common.streaming.worker import AckOrder, Log
from tests import synthetic
from tests.synthetic import make_call, make_declared, make_status, rollout_id

NOW = 1_800_000_000_000
HOUR = 3_600_000


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still until a test moves it."""
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW)


class MemoryLog(Log):
    """The topics of one partition."""

    def __init__(self) -> None:
        self.settings = KafkaSettings()
        self.topics: dict[str, list[Event]] = {
            LLM_CALLS.name: [],
            AGENT_STATUS.name: [],
            EPISODES.name: [],
        }
        self.reads = 0

    async def publish(self, topic: Topic, events: Iterable[tuple[str, Event]]) -> None:
        self.topics[topic.name] += [event for _, event in events]

    async def end_offset(self, topic: Topic, partition: int) -> int:
        return len(self.topics[topic.name])

    def read_all(
        self, settings: KafkaSettings, topic: Topic, codec: object, since_ms: int, **_: object
    ) -> list[Record]:
        self.reads += 1
        return [
            Record(0, offset, NOW, None, b"", event, None)
            for offset, event in enumerate(self.topics[topic.name])
            if since_ms <= NOW
        ]

    def episodes(self) -> list[Episode]:
        return [event for event in self.topics[EPISODES.name] if isinstance(event, Episode)]


async def complete(call: LlmCall, _find: FindCall) -> LlmCall:
    """All calls are complete here."""
    return call


class Aggregator:
    """A worker that reads the log to its end, and can be started anew."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        log.codec = None  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
        self.committed = {LLM_CALLS.name: 0, AGENT_STATUS.name: 0}
        self.start(NOW - HOUR)

    def start(self, since: int, written: Iterable[Episode] = (), **changes: float) -> None:
        """With no memory of what was written before it starts to look."""
        self._read = dict(self.committed)
        self._orders = {name: AckOrder() for name in self._read}
        settings = AggregatorSettings(**changes)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        self.partition = AggregatorPartition(
            0,
            self._log,
            settings,
            lambda topic: self._read[topic.name],
            complete,
            written,
            since,
        )

    async def run(self, *events: LlmCall | AgentStatus, only: Topic | None = None) -> None:
        for event in events:
            self._log.topics[
                (LLM_CALLS if isinstance(event, LlmCall) else AGENT_STATUS).name
            ].append(event)
        for _ in range(4):
            for topic in (LLM_CALLS, AGENT_STATUS) if only is None else (only,):
                for event in self._log.topics[topic.name][self._read[topic.name] :]:
                    self._read[topic.name] += 1
                    assert isinstance(event, LlmCall | AgentStatus)
                    await self.partition.consume(
                        topic,
                        event,
                        self._orders[topic.name].add(
                            lambda name=topic.name: self._acknowledge(name)
                        ),
                    )
            await self.partition.work()

    def _acknowledge(self, name: str) -> None:
        self.committed[name] += 1


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MemoryLog:
    # Ids as the gateway mints them: from their time it is told what may have been forgotten.
    monkeypatch.setattr(
        synthetic,
        "group_id",
        lambda number: mint_group(NOW - 60_000 + number, number.to_bytes(10, "big")),  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType, reportUnknownMemberType]
    )
    made = MemoryLog()
    monkeypatch.setattr(partition_module, "read_all", made.read_all)
    return made


def whole_group(deadline: int = NOW + HOUR) -> list[LlmCall | AgentStatus]:
    done = [make_status(index=index, at=NOW + 10) for index in range(2)]
    return [
        make_declared(0, 2, at=NOW, deadline=deadline, max_attempts=3),
        *(make_call(index=index, at=NOW) for index in range(2)),
        *done,
    ]


async def forget(aggregator: Aggregator, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "restart":
        aggregator.start(NOW + HOUR)
    else:
        monkeypatch.setattr(partition_module, "now_ms", lambda: NOW + 1_000_000)
        await aggregator.run()


WAYS = pytest.mark.parametrize("how", ["restart", "memory"])


@WAYS
async def test_an_attempt_that_first_appears_then_has_its_declaration(
    how: str, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = Aggregator(log)
    events = whole_group()
    await aggregator.run(*events)
    await forget(aggregator, monkeypatch, how)
    again = [make_call(attempt=1, at=NOW + 20), make_status(attempt=1, at=NOW + 30)]
    await aggregator.run(*again)
    assert log.episodes()[2:] == [stitch([events[0], *again])]
    assert aggregator.committed == {LLM_CALLS.name: 3, AGENT_STATUS.name: 4}


@WAYS
async def test_a_late_call_makes_a_revision_of_the_whole(
    how: str, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = Aggregator(log)
    events = whole_group()
    await aggregator.run(*events)
    first = log.episodes()[0]
    await forget(aggregator, monkeypatch, how)
    await aggregator.run(make_call(turn=9, at=NOW + 5))
    last = log.episodes()[-1]
    assert last.supersedes == first.revision
    assert set(last.inputs) > set(first.inputs)
    assert last.declaration is not None
    assert len(log.episodes()) == 3


@WAYS
async def test_one_that_never_ends_is_timed_out_like_any(
    how: str, log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = Aggregator(log)
    events = whole_group(deadline=NOW + 1_000)
    await aggregator.run(*events)
    await forget(aggregator, monkeypatch, how)
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW + 1_001_000)
    await aggregator.run(make_call(attempt=1, at=NOW + 20))
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW + 1_002_000)
    await aggregator.run()
    (timeout,) = (
        event
        for event in log.topics[AGENT_STATUS.name]
        if isinstance(event, AgentStatus) and event.source == "aggregator"
    )
    assert (timeout.kind, timeout.failure, timeout.attempt) == (
        StatusKind.timed_out,
        FailureKind.agent_timeout,
        1,
    )
    assert log.episodes()[-1].attempt == 1
    assert log.episodes()[-1].declaration is not None
    assert aggregator.committed[LLM_CALLS.name] == 3


async def test_a_late_call_of_undeclared_traffic_joins_what_was_written(log: MemoryLog) -> None:
    aggregator = Aggregator(log)
    await aggregator.run(make_call(at=NOW), make_status(at=NOW + 10))
    aggregator.start(NOW + HOUR)
    await aggregator.run(make_call(turn=9, at=NOW + 5))
    first, second = log.episodes()
    assert second.supersedes == first.revision


async def test_a_late_call_of_a_session_whose_id_looks_like_one_of_the_future_joins_it(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = (external_group("owner", str(number), b"secret") for number in itertools.count())
    future = next(group for group in named if (minted_at(group) or 0) > NOW + HOUR)

    def group_id(_number: int) -> str:
        return future

    monkeypatch.setattr(synthetic, "group_id", group_id)
    aggregator = Aggregator(log)
    await aggregator.run(make_call(at=NOW), make_status(at=NOW + 10))
    await forget(aggregator, monkeypatch, "memory")
    await aggregator.run(make_call(turn=9, at=NOW + 5))
    first, second = log.episodes()
    assert second.supersedes == first.revision


async def test_what_memory_knows_is_not_read_again(log: MemoryLog) -> None:
    aggregator = Aggregator(log)
    await aggregator.run(*whole_group())
    await aggregator.run(make_call(turn=9, at=NOW + 5))
    await aggregator.run(make_call(1, at=NOW), make_status(1, at=NOW + 10))
    assert (len(log.episodes()), log.reads) == (4, 0)


async def test_one_never_heard_of_is_timed_out_though_its_group_was_looked_for_in_the_log(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *others = whole_group()
    declared = make_declared(0, 3, at=NOW, deadline=NOW + 1_000)
    aggregator = Aggregator(log)
    aggregator.start(NOW + HOUR)
    # Calls and statuses are read independently: here the call first.
    await aggregator.run(*(event for event in others if isinstance(event, LlmCall)))
    assert log.reads > 0
    await aggregator.run(declared, make_status(index=0, at=NOW + 10))
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW + 2_000)
    await aggregator.run()
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW + 3_000)
    await aggregator.run()
    timeouts = [
        event
        for event in log.topics[AGENT_STATUS.name]
        if isinstance(event, AgentStatus) and event.source == "aggregator"
    ]
    assert [(timeout.rollout_id, timeout.failure) for timeout in timeouts] == [
        (rollout_id(0, 1), FailureKind.agent_timeout),
        (rollout_id(0, 2), FailureKind.agent_silent),
    ]
    assert len(log.episodes()) == 3


async def test_a_declaration_that_a_start_reads_again_is_judged_though_its_first_episodes_were_let_go_of(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = Aggregator(log)
    await aggregator.run(
        make_declared(0, 2, at=NOW, deadline=NOW + 1_000),
        make_call(at=NOW),
        make_status(at=NOW + 10),
    )
    written = log.episodes()
    assert len(written) == 1
    aggregator.start(NOW - HOUR, written, keep_s=0)
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW + 2_000)
    # Before anything is read.
    await aggregator.partition.work()
    for later in (3_000, 4_000, 20_000):
        monkeypatch.setattr(partition_module, "now_ms", lambda later=later: NOW + later)
        await aggregator.run()
    assert [episode.rollout_id for episode in log.episodes()] == [
        rollout_id(0, 0),
        rollout_id(0, 1),
    ]
    assert aggregator.committed == {LLM_CALLS.name: 1, AGENT_STATUS.name: 3}


async def test_calls_that_are_read_long_before_their_declaration_are_not_silent(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an outage: the calls of a backlog are old, and the other topic is read later."""
    aggregator = Aggregator(log)
    declared, call = make_declared(0, 1, at=NOW, deadline=NOW + HOUR), make_call(at=NOW)
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW + 600_000)
    log.topics[LLM_CALLS.name].append(call)
    log.topics[AGENT_STATUS.name].append(declared)
    await aggregator.run(only=LLM_CALLS)
    await aggregator.run()
    assert log.topics[AGENT_STATUS.name] == [declared]
