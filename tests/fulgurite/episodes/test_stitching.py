"""An episode is a function of the set of its inputs."""

from __future__ import annotations

from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import EpisodeOutcome, StatusKind
from fulgurite.episodes.stitching import (
    Input,
    adds_nothing,
    is_terminal,
    missing_inputs,
    revision_of,
    stitch,
    supersede,
)
from fulgurite.events import Episode
from fulgurite.failures import FailureKind
from tests.synthetic import make_call, make_declared, make_status

EVENTS: tuple[Input, ...] = (
    make_declared(),
    make_status(kind=StatusKind.started, at=950),
    make_status(kind=StatusKind.heartbeat, at=960),
    make_call(turn=0, at=1_000),
    make_call(turn=1, at=1_100),
    make_call(turn=2, at=1_100),
    make_status(kind=StatusKind.finished, at=2_000),
    make_status(kind=StatusKind.timed_out, at=10_000, failure=FailureKind.agent_timeout),
)


def delivered(deliveries: list[Input]) -> Episode | None:
    """What a processor ends with that stitches after every single event."""
    held: list[Input] = []
    last: Episode | None = None
    for event in deliveries:
        held.append(event)
        candidate = stitch(held)
        if candidate is not None:
            last = supersede(last, candidate) or last
    return last


@given(st.permutations(EVENTS), st.lists(st.sampled_from(EVENTS), max_size=6), st.randoms())
def test_any_permutation_duplication_or_delay_gives_the_same_final_episode(
    order: list[Input], duplicates: list[Input], random: Random
) -> None:
    deliveries = [*order, *duplicates]
    random.shuffle(deliveries)
    # A delay is a late place in the order; every event comes at least once.
    final = delivered(deliveries)
    assert final is not None
    assert msgspec.structs.replace(final, supersedes=None) == stitch(EVENTS)


def test_the_earliest_terminal_status_closes() -> None:
    episode = stitch(EVENTS)
    assert episode is not None
    assert (episode.outcome, episode.failure, episode.ended_at) == (
        EpisodeOutcome.finished,
        None,
        2_000,
    )
    assert (episode.started_at, episode.event_time) == (950, 10_000)
    assert [call.started_at for call in episode.calls] == [1_000, 1_100, 1_100]
    assert episode.declaration is not None
    assert episode.inputs == tuple(
        sorted(event.event_id for event in EVENTS if event.event_id != EVENTS[2].event_id)
    )
    assert episode.revision == revision_of(reversed(episode.inputs))


def test_no_terminal_status_no_episode() -> None:
    assert stitch(EVENTS[:6]) is None
    assert not is_terminal(EVENTS[0])


def test_an_episode_without_calls_or_declaration() -> None:
    episode = stitch([make_status(kind=StatusKind.failed, failure=FailureKind.infrastructure)])
    assert episode is not None
    assert (episode.calls, episode.declaration, episode.started_at) == ((), None, 2_000)


def test_one_id_with_two_contents_is_decided_by_content() -> None:
    first, second = make_call(at=1_000), make_call(at=1_001)
    assert first.event_id == second.event_id
    end = make_status()
    assert stitch([first, second, end]) == stitch([second, end, first])


def test_a_revision_supersedes_only_by_a_strict_superset() -> None:
    full, less = stitch(EVENTS), stitch(EVENTS[3:7])
    assert full is not None
    assert less is not None
    assert supersede(None, full) == full
    superseding = supersede(less, full)
    assert superseding is not None
    assert superseding.supersedes == less.revision
    assert supersede(full, less) is None
    assert supersede(full, full) is None
    assert missing_inputs(full, less.inputs) == set(full.inputs) - set(less.inputs)


def test_only_the_first_start_before_the_end_is_an_input() -> None:
    started, again = (make_status(kind=StatusKind.started, at=at) for at in (950, 960))
    assert not adds_nothing(started, [make_call()])
    assert adds_nothing(again, [make_call(), started])
    assert adds_nothing(started, [make_status()])
    assert not adds_nothing(make_status(), [started, make_status(at=5)])
    assert not adds_nothing(make_call(), [started, make_status()])
