"""What live episodes are reduced to, and which of them count."""

from __future__ import annotations

import itertools

from msgspec.structs import replace

from fulgurite.enums import CallOutcome, Mode, TrainingUse
from fulgurite.events import Event
from fulgurite.failures import FailureKind
from fulgurite.selection.live_episodes import LiveEpisode, LiveEpisodes
from tests.fulgurite.selection.live_traffic import live_episode, vote
from tests.synthetic import make_call, rollout_id


def reduced(*events: Event | None) -> dict[str, list[LiveEpisode]]:
    found = LiveEpisodes("policy", 10_000)
    for event in events:
        found.apply(event)
    return dict(found.by_variant())


def test_an_episode_is_its_variants_with_its_reward() -> None:
    (one,) = reduced(live_episode(1, subject="su_1", seconds=2.0), vote(1, 1.0))["policy@1.1"]
    assert (one.person, one.reward, one.failed, one.truncated) == ("su_1", 1.0, False, False)
    assert (one.seconds, one.ended_at) == (2.0, 15_000)


def test_without_a_subject_the_rollout_stands_for_a_person() -> None:
    (one,) = reduced(live_episode(1))["policy@1.1"]
    assert (one.person, one.reward) == (rollout_id(1, 0), None)


def test_the_order_of_events_does_not_matter() -> None:
    first = live_episode(1)
    later = replace(first, event_id="later", inputs=(*first.inputs, "one more"), ended_at=16_000)
    events: list[Event] = [first, later, vote(1, 0.0), vote(1, 1.0, at=30_000)]
    found = [reduced(*order) for order in itertools.permutations(events)]
    assert all(one == found[0] for one in found)
    (one,) = found[0]["policy@1.1"]
    assert (one.reward, one.ended_at) == (1.0, 16_000)


def test_what_does_not_count() -> None:
    assert not reduced(
        None,
        make_call(0),
        live_episode(1, at=9_999),
        live_episode(2, alias="other"),
        live_episode(3, mode=Mode.val),
        live_episode(4, use=TrainingUse.excluded),
        live_episode(5, variant=None),
        vote(6, 1.0),
        vote(7, 1.0, at=9_999),
    )


def test_an_episode_that_is_left_out_later_does_not_count() -> None:
    first = live_episode(1)
    last = replace(
        first.calls[0], event_id="last", call_id="last", training_use=TrainingUse.excluded
    )
    later = replace(
        first, event_id="later", inputs=(*first.inputs, "last"), calls=(*first.calls, last)
    )
    assert not reduced(first, vote(1, 1.0), later)
    assert not reduced(later, first, vote(1, 1.0))


def test_an_episode_is_of_the_alias_whose_route_answered() -> None:
    assert reduced(live_episode(1, alias="agent", routed_alias="policy"))
    assert not reduced(live_episode(1, routed_alias="critic"))


def test_an_episode_of_two_variants_counts_for_neither() -> None:
    one = live_episode(1)
    other = replace(one.calls[0], event_id="other", call_id="other", variant="policy@1.2")
    assert not reduced(replace(one, calls=(*one.calls, other)))


def test_failures_and_cut_answers() -> None:
    failed = [
        live_episode(1, outcome=CallOutcome.upstream_error),
        live_episode(2, outcome=CallOutcome.upstream_timeout),
        live_episode(3, failure=FailureKind.tool_parse_error),
        live_episode(4, outcome=CallOutcome.client_disconnected),
        live_episode(5, finish="length"),
    ]
    found = reduced(*failed)["policy@1.1"]
    by_person = {one.person: one for one in found}
    rows = [by_person[rollout_id(number, 0)] for number in range(1, 6)]
    assert [one.failed for one in rows] == [True, True, True, False, False]
    assert [one.truncated for one in rows] == [False, False, False, False, True]
