"""What one attempt may take: memory, revisions, and the partition's time."""

from __future__ import annotations

import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import Mode, StatusKind
from fulgurite.events import AgentStatus, ClaimCheck, DeadLetter, LlmCall
from fulgurite.ids import action_id
from fulgurite.topics import AGENT_STATUS, LLM_CALLS
from services.aggregator import partition as partition_module
from services.aggregator.attempts import weight
from services.aggregator.settings import AggregatorSettings
from services.common.streaming.worker import AckOrder, Rejected
from tests.services.aggregator.test_partition import NOW, Reader, later
from tests.synthetic import make_call, make_declared, make_status

DECLARED = make_declared(0, 1, at=NOW, deadline=NOW + 86_400_000)
CALL = make_call(at=NOW)
DONE = make_status(at=NOW + 10)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still until a test moves it."""
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW)


def started(number: int, message: str | None = None) -> AgentStatus:
    return make_status(kind=StatusKind.started, at=NOW + 100 + number, message=message)


@given(st.text(max_size=2_000) | st.integers(0, 65_536).map(lambda size: "\U0001f600" * size))
def test_a_status_weighs_what_its_message_takes(message: str) -> None:
    assert weight(started(0, message)) >= weight(started(0)) + len(message.encode("utf-32-le")) // 4
    four_bytes = any(ord(character) > 0xFFFF for character in message)
    assert not four_bytes or weight(started(0, message)) >= 4 * len(message)


def test_a_call_weighs_what_names_its_texts_elsewhere() -> None:
    call = make_call()
    claims = tuple(
        ClaimCheck(uri=f"file:///claims/{number:064x}", sha256=f"{number:064x}", size=1)
        for number in range(100)
    )
    held = sum(
        sys.getsizeof(claim) + sys.getsizeof(claim.uri) + sys.getsizeof(claim.sha256)
        for claim in claims
    )
    assert weight(msgspec.structs.replace(call, pieces=claims)) >= weight(call) + held


async def test_statuses_of_an_open_attempt_are_held_once() -> None:
    reader = Reader()
    for number in range(100):
        await reader.take(started(number, "\U0001f600" * 65_536))
    (attempt,) = reader.partition._groups[DECLARED.group_id].attempts.values()  # pyright: ignore[reportPrivateUsage]
    assert len(attempt.inputs) == 1
    assert 262_144 < attempt.held_bytes < 300_000


async def test_ends_that_are_told_over_and_over_outgrow_the_attempt() -> None:
    reader = Reader(AggregatorSettings(attempt_mb=1))
    reader.log.ends[LLM_CALLS.name] = 1
    for number in range(10):
        await reader.take(make_status(at=NOW + number, message="\U0001f600" * 65_536))
    assert [
        event.error_type for _, event in reader.log.published if isinstance(event, DeadLetter)
    ] == ["AttemptTooLarge"]


async def test_a_status_after_the_end_that_adds_nothing_makes_no_revision() -> None:
    reader = Reader()
    reader.log.ends[LLM_CALLS.name] = 1
    first = make_status(kind=StatusKind.started, at=NOW + 1)
    for event in (DECLARED, first, CALL, DONE, *map(started, range(150))):
        await reader.take(event)
    (episode,) = reader.log.episodes()
    assert set(episode.inputs) == {DECLARED.event_id, first.event_id, CALL.event_id, DONE.event_id}
    assert len(reader.acknowledged) == 154
    reader.log.ends[LLM_CALLS.name] = 2
    await reader.take(late := make_call(turn=1, at=NOW + 20))
    assert set(reader.log.episodes()[-1].inputs) == {*episode.inputs, late.event_id}


async def test_a_status_of_an_episode_that_an_earlier_worker_wrote_makes_none_either() -> None:
    before = Reader()
    before.log.ends[LLM_CALLS.name] = 1
    events: list[LlmCall | AgentStatus] = [
        DECLARED,
        make_status(kind=StatusKind.started, at=NOW + 1),
        CALL,
        DONE,
    ]
    for event in events:
        await before.take(event)
    reader = Reader(written=before.log.episodes())
    for event in (*events, started(1)):
        await reader.take(event)
    assert reader.log.published == []
    assert len(reader.acknowledged) == 5


async def test_an_episode_has_so_many_revisions_and_no_more() -> None:
    reader = Reader(AggregatorSettings(revisions=3))
    calls = [make_call(turn=turn, at=NOW + turn) for turn in range(4)]
    reader.log.ends[LLM_CALLS.name] = 1
    for event in (DECLARED, calls[0], DONE, *calls[1:3]):
        await reader.take(event)
    assert [len(episode.calls) for episode in reader.log.episodes()] == [1, 2, 3]
    *_, (_, letter) = reader.log.published
    assert isinstance(letter, DeadLetter)
    assert (letter.error_type, letter.actions) == ("TooManyRevisions", ())
    with pytest.raises(Rejected, match="FULGURITE_AGGREGATOR_REVISIONS") as refused:
        await reader.take(calls[3])
    assert refused.value.actions == (action_id(calls[3].call_id, 0),)
    await reader.take(make_status(at=NOW + 500))
    assert len(reader.log.episodes()) == 3


async def test_a_clock_that_was_wrong_for_a_moment_does_not_keep_an_attempt_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(AggregatorSettings(silence_s=3))
    years = NOW + 10 * 365 * 86_400_000
    acknowledged: list[int] = []
    ack = AckOrder().add(lambda: acknowledged.append(1), NOW)
    ahead = msgspec.structs.replace(
        make_call(at=NOW, mode=Mode.live), event_time=years, finished_at=2**62
    )
    reader.read[LLM_CALLS.name] = reader.log.ends[LLM_CALLS.name] = 1
    await reader.partition.consume(LLM_CALLS, ahead, ack)
    await later(reader, monkeypatch, 60_000)
    assert reader.log.published == []
    await later(reader, monkeypatch, 64_000)
    ((topic, timeout),) = reader.log.published
    assert isinstance(timeout, AgentStatus)
    assert (topic, timeout.event_time) == (AGENT_STATUS, NOW + 63_000)
    await reader.take(timeout)
    assert acknowledged == [1]
