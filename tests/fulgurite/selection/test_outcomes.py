"""What becomes of rollouts: a function of the set of events."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from fulgurite.enums import CallOutcome, Mode
from fulgurite.episodes.stitching import stitch
from fulgurite.events import Episode, Event
from fulgurite.failures import FailureKind
from fulgurite.selection import rollout_fold
from fulgurite.selection.outcomes import AliasOutcomes, Outcome, of_variants
from tests.synthetic import make_call, make_declared, make_reward, make_status

ALIAS = make_call().alias


def episode(number: int, *, attempt: int = 0, retries: bool = False, **changes: Any) -> Episode:
    call = msgspec.structs.replace(
        make_call(number, attempt=attempt, mode=changes.get("mode", Mode.live)),
        **({"variant": "a", "propensity": 0.5, "started_at": 100, "finished_at": 1_100} | changes),
    )
    declared = make_declared(number, 1, mode=call.mode, max_attempts=2)
    found = stitch([declared, call, make_status(number, attempt=attempt, mode=call.mode)])
    assert found is not None
    return msgspec.structs.replace(found, will_retry=retries)


def folded(*events: Event, remembered: int = 100) -> list[Outcome]:
    fold = AliasOutcomes(ALIAS, None, remembered)
    for event in events:
        fold.apply(event)
    return fold.ordered()


def test_a_reward_may_come_before_or_after_its_episode() -> None:
    ended, reward = episode(0), make_reward(0, value=0.7, at=9_000)
    (before,) = folded(ended)
    assert (before.is_rewarded, before.episode.reward, before.known_at) == (
        False,
        0.0,
        ended.event_time,
    )
    (after,) = folded(ended, reward)
    assert (after.is_rewarded, after.episode.reward, after.known_at) == (True, 0.7, 9_000)
    assert (after.call_seconds, after.started_at, after.is_failed) == (1.0, 100, False)
    assert before.ended_at == after.ended_at == ended.ended_at
    assert folded(reward, ended) == [after]


def test_the_order_and_duplicates_change_nothing() -> None:
    events: list[Event] = []
    for number in range(5):
        events += [episode(number), make_reward(number, value=number / 10, at=5_000 + number)]
    expected = folded(*events)
    shuffled = [*events, *events]
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert folded(*shuffled) == expected


def test_an_event_that_changes_nothing_says_so() -> None:
    fold = AliasOutcomes(ALIAS, None, 100)
    ended, reward = episode(0), make_reward(0)
    assert not fold.apply(reward)
    assert fold.apply(ended)
    assert not fold.apply(ended)
    assert not fold.apply(reward)
    assert not fold.apply(episode(1, mode=Mode.val))
    assert not fold.apply(episode(2, alias="another"))
    assert not fold.apply(make_status(0))


def test_of_an_attempt_the_revision_with_the_most_inputs_counts() -> None:
    first = episode(0)
    later = msgspec.structs.replace(
        first, revision="later", inputs=(*first.inputs, "more"), event_time=first.event_time + 5
    )
    assert folded(first, later) == folded(later, first)
    assert folded(first, later)[0].known_at == later.event_time


def test_only_the_final_attempt_counts() -> None:
    first, second = episode(0, retries=True), episode(0, attempt=1, variant="b")
    assert folded(first) == []
    (found,) = folded(first, second)
    assert found.episode.variant == "b"
    without = episode(0, attempt=1, alias="another")
    assert folded(first, without) == []


def test_a_reward_that_cannot_be_computed_is_none() -> None:
    (found,) = folded(episode(0), make_reward(0, value=None))
    assert not found.is_rewarded


@pytest.mark.parametrize(
    ("outcome", "failure", "is_failed"),
    [
        (CallOutcome.upstream_error, FailureKind.upstream_error, True),
        (CallOutcome.upstream_timeout, FailureKind.upstream_timeout, True),
        (CallOutcome.upstream_error, FailureKind.context_overflow, True),
        (CallOutcome.upstream_error, FailureKind.unknown, False),
        (CallOutcome.client_disconnected, FailureKind.client_disconnected, False),
        (CallOutcome.success, FailureKind.truncated, False),
    ],
)
def test_what_the_model_server_did_is_a_failure(
    outcome: CallOutcome, failure: FailureKind, is_failed: bool
) -> None:
    (found,) = folded(episode(0, outcome=outcome, failure=failure))
    assert found.is_failed is is_failed


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_fold, "_WAITING", 1)
    events = [
        msgspec.structs.replace(episode(number), event_time=1_000 + number) for number in range(4)
    ]
    assert [one.known_at for one in folded(*events, remembered=2)] == [1_002, 1_003]
    rewards = [make_reward(number, value=0.5) for number in range(4)]
    found = folded(*rewards, *events)
    assert [one.is_rewarded for one in found].count(True) == 1


def test_an_episode_is_of_the_alias_whose_route_answered() -> None:
    assert len(folded(episode(0, alias="agent", routed_alias=ALIAS))) == 1
    assert not folded(episode(0, alias=ALIAS, routed_alias="critic"))


def test_outcomes_are_sorted_by_variant() -> None:
    found = folded(episode(0), episode(1, variant="b"), episode(2, variant="c"))
    by_variant = of_variants(found, ["a", "b"])
    assert {name: len(ones) for name, ones in by_variant.items()} == {"a": 1, "b": 1}
