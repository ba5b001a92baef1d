"""Whether what a reward is for was recorded: from memory, from the log, or not known in time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.events import Event
from fulgurite.ids import RolloutRef, parse_completion, parse_rollout
from fulgurite.topics import Topic
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.settings import KafkaSettings
from services.gateway.errors import NotFound, Unavailable
from services.gateway.recording import recorded_calls, rollout_search
from services.gateway.recording.log_search import SearchTooLong
from services.gateway.recording.recorded_calls import RecordedCalls
from services.gateway.recording.rollout_search import RolloutSearch
from services.gateway.telemetry.metrics import Metrics
from tests.synthetic import make_call, make_declared, make_reward, make_status, rollout_id

CALL = make_call(answers=((1,), (2,)))
OTHER = make_call(0, 1)
REF = parse_completion(CALL.call_id)


class Log:
    """A log that is a list, may be away or slow, and counts its readers."""

    def __init__(self, *events: Event) -> None:
        self.events = list(events)
        self.problem: Exception | None = None
        self.away: str | None = None
        self.searches = 0
        self.silent: threading.Event | None = None

    def open(self, *_: object) -> AbstractContextManager[Log]:
        self.searches += 1
        return nullcontext(self)

    def newest_first(self, topic: Topic, _group: str, _deadline: float) -> Iterator[list[Event]]:
        if self.silent is not None:
            self.silent.wait(30)
        yield [event for event in self.events if isinstance(event, topic.carries)]
        if self.problem is not None:
            raise self.problem


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log()
    monkeypatch.setattr(rollout_search, "open_search", made.open)
    return made


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def recorded(log: Log, metrics: Metrics) -> Iterator[RecordedCalls]:
    made = RecordedCalls(RolloutSearch(KafkaSettings(), Codec()), lambda: log.away, metrics)
    yield made
    made.close()


def unchecked(metrics: Metrics) -> Any:
    return metrics.registry.get_sample_value("fulgurite_gateway_unchecked_rewards_total")


async def test_a_remembered_call_needs_no_look_up(log: Log, recorded: RecordedCalls) -> None:
    recorded.remember(CALL)
    await recorded.require_call(REF, None)
    await recorded.require_call(REF, 1)
    await recorded.require_rollout(REF.rollout)
    assert log.searches == 0


async def test_another_gateways_call_is_found_in_the_log(
    log: Log, recorded: RecordedCalls, metrics: Metrics
) -> None:
    log.events += [OTHER, CALL]
    await recorded.require_call(REF, 1)
    assert (log.searches, unchecked(metrics)) == (1, 0)


async def test_a_call_that_was_never_recorded_is_named(log: Log, recorded: RecordedCalls) -> None:
    log.events.append(OTHER)
    with pytest.raises(NotFound, match=REF.completion_id) as caught:
        await recorded.require_call(REF, None)
    assert (caught.value.code, caught.value.param) == ("unknown_completion", "completion_id")
    assert "allow_unknown" in caught.value.message


@pytest.mark.parametrize("remembered", [True, False])
async def test_a_choice_that_the_call_does_not_have(
    log: Log, recorded: RecordedCalls, remembered: bool
) -> None:
    if remembered:
        recorded.remember(CALL)
    else:
        log.events.append(CALL)
    with pytest.raises(NotFound, match=r"no choice 2\. Its choices are: 0, 1") as caught:
        await recorded.require_call(REF, 2)
    assert (caught.value.code, caught.value.param) == ("unknown_choice", "choice")


@pytest.mark.parametrize("event", [CALL, make_declared(), make_status()])
async def test_a_rollout_that_was_declared_or_called(
    log: Log, recorded: RecordedCalls, event: Event
) -> None:
    log.events.append(event)
    await recorded.require_rollout(REF.rollout)


async def test_a_rollout_of_which_the_log_has_nothing(log: Log, recorded: RecordedCalls) -> None:
    """Neither another rollout of its group, nor a declaration without it, makes it exist."""
    log.events += [OTHER, make_declared(size=2), make_status(0, 1)]
    with pytest.raises(NotFound, match="the log holds nothing of it") as caught:
        await recorded.require_rollout(parse_rollout(rollout_id(0, 5)))
    assert caught.value.code == "unknown_rollout"


@pytest.mark.parametrize("problem", [LogUnavailable("gone"), SearchTooLong()])
async def test_where_the_log_cannot_say_a_reward_is_accepted_and_counted(
    log: Log, recorded: RecordedCalls, metrics: Metrics, problem: Exception
) -> None:
    log.problem = problem
    await recorded.require_call(REF, None)
    await recorded.require_rollout(REF.rollout)
    assert unchecked(metrics) == 2


async def test_nobody_waits_for_a_log_that_is_known_to_be_away(
    log: Log, recorded: RecordedCalls, metrics: Metrics
) -> None:
    log.away = "no broker"
    await recorded.require_call(REF, None)
    assert (log.searches, unchecked(metrics)) == (0, 1)
    with pytest.raises(Unavailable, match="no broker"):
        await recorded.read(REF.rollout)


async def test_a_silent_log_holds_up_no_reward_for_long(
    log: Log, recorded: RecordedCalls, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_calls, "_LOOK_UP_TIMEOUT_S", 0.05)
    monkeypatch.setattr(recorded_calls, "_READ_TIMEOUT_S", 0.05)
    log.silent = threading.Event()
    await recorded.require_call(REF, None)
    assert unchecked(metrics) == 1
    with pytest.raises(Unavailable, match="does not answer"):
        await recorded.read(REF.rollout)
    log.silent.set()


async def test_only_so_many_calls_are_remembered(
    log: Log, recorded: RecordedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded_calls, "_REMEMBERED", 2)
    recorded.remember(CALL)
    recorded.remember(OTHER)
    with pytest.raises(NotFound):
        await recorded.require_call(REF, None)
    assert log.searches == 1


async def test_a_rollouts_events_are_read_each_once(log: Log, recorded: RecordedCalls) -> None:
    reward = make_reward()
    log.events += [make_declared(), CALL, OTHER, reward, reward, make_status(), make_status(0, 1)]
    found = await recorded.read(REF.rollout)
    assert [call.completion_id for call in found.calls] == [CALL.call_id]
    assert [len(found.statuses), len(found.rewards), found.unread] == [2, 1, ()]


async def test_what_was_read_in_time_is_given(log: Log, recorded: RecordedCalls) -> None:
    log.events.append(CALL)
    log.problem = SearchTooLong()
    found = await recorded.read(REF.rollout)
    assert (len(found.calls), found.unread) == (1, ("agent.status", "agent.rewards", "llm.calls"))


async def test_a_rollout_that_was_not_found_in_time_may_exist(
    log: Log, recorded: RecordedCalls
) -> None:
    log.problem = SearchTooLong()
    with pytest.raises(Unavailable, match="nothing was found in time"):
        await recorded.read(REF.rollout)
    log.problem = None
    with pytest.raises(NotFound, match="holds nothing of it"):
        await recorded.read(RolloutRef(REF.rollout.group_id, "ro_none", 0))
