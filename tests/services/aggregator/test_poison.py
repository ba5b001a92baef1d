"""An attempt that cannot be stitched, or whose timeouts cannot be published, is a dead letter; its
neighbours go on.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest

from fulgurite.episodes.stitching import Input, stitch
from fulgurite.events import AgentStatus, DeadLetter, Episode, LlmCall
from fulgurite.ids import action_id
from fulgurite.topics import DEAD_LETTERS, LLM_CALLS
from services.aggregator import attempts as attempts_module
from services.aggregator import partition as partition_module
from services.aggregator.settings import AggregatorSettings
from services.common.kafka.errors import LogUnavailable
from services.common.streaming.worker import Rejected
from tests.services.aggregator.test_partition import NOW, Reader, later
from tests.synthetic import make_call, make_declared, make_status, rollout_id

POISONED = rollout_id(0, 0)
DECLARED = make_declared(0, 2, at=NOW, deadline=NOW + 1_000)
CALLS = [make_call(0, index, turn, at=NOW + turn) for index in (0, 1) for turn in (0, 1)]
DONE = [make_status(0, index, at=NOW + 10) for index in (0, 1)]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still until a test moves it."""
    monkeypatch.setattr(partition_module, "now_ms", lambda: NOW)


def poison(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """The attempts of one rollout cannot be stitched."""
    tried: list[str] = []

    def stitched(events: Iterable[Input], whole: object = None) -> Episode | None:
        given = list(events)
        if any(event.rollout_id == POISONED for event in given):
            tried.append(POISONED)
            raise error
        return stitch(given, whole)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(attempts_module, "stitch", stitched)
    return tried


def dead_letters(reader: Reader) -> list[DeadLetter]:
    return [
        event
        for topic, event in reader.log.published
        if topic is DEAD_LETTERS and isinstance(event, DeadLetter)
    ]


@pytest.mark.parametrize("seed", range(5))
async def test_an_attempt_that_cannot_be_stitched_is_a_dead_letter_and_the_rest_goes_on(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = poison(monkeypatch, AttributeError("'str' object has no attribute 'get'"))
    events: list[LlmCall | AgentStatus] = [DECLARED, *CALLS, *DONE]
    random.Random(seed).shuffle(events)
    reader = Reader()
    reader.log.ends[LLM_CALLS.name] = len(CALLS)
    for event in events:
        await reader.take(event)
    [letter] = dead_letters(reader)
    assert (letter.error_type, letter.stage, letter.value) == ("AttributeError", "aggregator", None)
    assert "no attribute 'get'" in letter.error
    assert sorted(letter.actions) == sorted(action_id(call.call_id, 0) for call in CALLS[:2])
    assert len(tried) == 2, "one more try"
    assert [episode.rollout_id for episode in reader.log.episodes()] == [rollout_id(0, 1)]
    assert len(reader.acknowledged) == len(events), "the group is over"

    again = Reader()
    again.log.ends[LLM_CALLS.name] = len(CALLS)
    for event in reversed(events):
        await again.take(event)
    assert dead_letters(again) == [letter], "a worker that was started again says the same"

    late = make_call(0, 0, 7, at=NOW + 20)
    with pytest.raises(Rejected, match="was given up: it cannot be written") as refused:
        await reader.take(late)
    assert refused.value.actions == (action_id(late.call_id, 0),)


async def test_what_comes_late_and_cannot_be_stitched_leaves_the_revision_that_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader()
    reader.log.ends[LLM_CALLS.name] = 1
    for event in (make_declared(0, 1, at=NOW), CALLS[0], DONE[0]):
        await reader.take(event)
    poison(monkeypatch, KeyError("x"))
    await reader.take(CALLS[1])
    [letter] = dead_letters(reader)
    assert letter.actions == (action_id(CALLS[1].call_id, 0),)
    assert len(reader.log.episodes()) == 1
    assert len(reader.acknowledged) == 4


async def test_a_log_that_is_away_buries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, LogUnavailable("away"))
    reader = Reader()
    await reader.take(DECLARED)
    with pytest.raises(LogUnavailable):
        await reader.take(DONE[0])
    assert (reader.log.published, reader.acknowledged) == ([], [])


async def test_a_group_whose_timeouts_cannot_be_published_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(AggregatorSettings(silence_s=1))

    def overdue(*_: object) -> tuple[AgentStatus, ...]:
        raise OverflowError("too far")

    monkeypatch.setattr(partition_module, "overdue", overdue)
    other = [
        make_declared(1, 1, at=NOW, deadline=NOW + 86_400_000),
        make_call(1, at=NOW),
        make_status(1, at=NOW + 10),
    ]
    reader.log.ends[LLM_CALLS.name] = 2
    for event in (DECLARED, CALLS[0], *other):
        await reader.take(event)
    await later(reader, monkeypatch, 2_000)
    await later(reader, monkeypatch, 3_000)
    [letter] = dead_letters(reader)
    assert (letter.error_type, letter.actions) == (
        "OverflowError",
        (action_id(CALLS[0].call_id, 0),),
    )
    assert [episode.group_id for episode in reader.log.episodes()] == [other[0].group_id]
    assert len(reader.acknowledged) == 5
    with pytest.raises(Rejected, match="is of a group whose timeouts cannot be published"):
        await reader.take(CALLS[1])
    with pytest.raises(Rejected, match="is of a group whose timeouts cannot be published"):
        await reader.take(msgspec.structs.replace(CALLS[2], event_time=NOW + 4_000))
