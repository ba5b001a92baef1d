"""Credits are compared with their own kind: under every rule a group's comparison is centred."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import FilterReason
from fulgurite.events import Trajectory
from fulgurite.groups.credit import compares_turns, credit_rule, has_baseline
from fulgurite.groups.credit.types import Scored
from fulgurite.learning.comparison import compare, turns_in
from tests.fulgurite.groups.test_credit import GROUPS
from tests.fulgurite.learning.test_batching import action, row


def rows_of(group: Sequence[Scored], rule: str) -> list[Trajectory]:
    """A row for each path; an action carries loss where it comes first."""
    rows: list[Trajectory] = []
    for member, (episode, credit_of) in enumerate(
        zip(group, credit_rule(rule)(group), strict=True)
    ):
        seen: set[str] = set()
        for index, path in enumerate(episode.paths):
            actions = tuple(
                msgspec.structs.replace(
                    action(step.action, credit=credit_of[step.action]),
                    turn=turn,
                    loss=step.action not in seen,
                )
                for turn, step in enumerate(path.steps)
            )
            seen |= {step.action for step in path.steps}
            made = row("g1", member, episode.total, index=index, actions=actions)
            rows.append(msgspec.structs.replace(made, credit_rule=rule))
    return rows


@given(GROUPS, st.sampled_from(["step", "discounted(gamma=0.5)"]))
def test_returns_are_compared_with_those_of_the_same_turns_and_centred(
    group: list[Scored], rule: str
) -> None:
    rows = rows_of(group, rule)
    found = compare(rows, [episode.total for episode in group])
    paid: defaultdict[int, list[float]] = defaultdict(list)
    episodes: defaultdict[int, set[str]] = defaultdict(set)
    for one in rows:
        for act, turn in turns_in(one):
            if act.loss:
                paid[turn].append(act.credit)
                episodes[turn].add(one.rollout_id)
    if len(group) < 2:
        assert (found.turns, found.teaches_nothing) == ({}, FilterReason.no_baseline)
        return
    assert found.turns.keys() == paid.keys()
    together: defaultdict[tuple[float, ...], set[int]] = defaultdict(set)
    for turn, peers in found.turns.items():
        together[peers].add(turn)
        if len(episodes[turn]) > 1:
            assert set(paid[turn]) <= set(peers)
    off = [credit - fmean(found.turns[turn]) for turn in found.turns for credit in paid[turn]]
    assert sum(off) == pytest.approx(0, abs=1e-9)


def test_turns_that_one_episode_alone_reaches_are_compared_with_the_turn_before() -> None:
    long = row(
        "g1",
        0,
        3.0,
        actions=(action("a", credit=3.0), action("b", credit=2.0), action("c", credit=1.0)),
    )
    short = row("g1", 1, 0.0, actions=(action("d", credit=0.0), action("e", credit=4.0)))
    rows = [msgspec.structs.replace(one, credit_rule="step") for one in (long, short)]
    found = compare(rows, [3.0, 0.0])
    assert found.turns == {0: (0.0, 3.0), 1: (1.0, 2.0, 4.0), 2: (1.0, 2.0, 4.0)}
    assert found.teaches_nothing is None


def test_first_turns_that_one_episode_alone_has_are_compared_with_the_next() -> None:
    early = msgspec.structs.replace(action("a", credit=1.0), turn=0)
    rows = [
        row("g1", 0, 1.0, actions=(early, msgspec.structs.replace(action("b"), turn=1))),
        row("g1", 1, 0.0, actions=(msgspec.structs.replace(action("c", credit=0.0), turn=1),)),
    ]
    rows = [msgspec.structs.replace(one, credit_rule="step") for one in rows]
    assert compare(rows, [1.0, 0.0]).turns == {0: (0.0, 1.0, 1.0), 1: (0.0, 1.0, 1.0)}


def test_returns_of_one_episode_have_nothing_to_be_compared_with() -> None:
    (alone,) = [msgspec.structs.replace(row("g1", 0, 1.0), credit_rule="step")]
    assert compare([alone], [1.0, 0.0]).teaches_nothing is FilterReason.no_baseline


def test_what_is_still_to_come_is_no_less_for_having_been_paid_before() -> None:
    """Three actions, each paid 1, in both episodes: compared with whole rewards, later ones would
    look worse than the first.
    """
    paid = tuple(action(f"{place}", credit=3.0 - place) for place in range(3))
    rows = [
        msgspec.structs.replace(row("g1", member, 3.0, actions=paid), credit_rule="step")
        for member in (0, 1)
    ]
    found = compare(rows, [3.0, 3.0])
    assert found.turns == {turn: (3.0 - turn,) * 2 for turn in range(3)}
    assert found.teaches_nothing is FilterReason.no_signal


def test_equal_episodes_whose_actions_differ_teach_something() -> None:
    rows = [
        row("g1", 0, 1.0, actions=(action("a", credit=1.5),)),
        row("g1", 1, 1.0, actions=(action("b", credit=0.5),)),
    ]
    gigpo = [msgspec.structs.replace(one, credit_rule="gigpo") for one in rows]
    assert compare(gigpo, [1.0, 1.0]).teaches_nothing is None


def test_what_cannot_be_computed_with_is_compared_with_nothing() -> None:
    rows = [
        row("g1", 0, 1.0, actions=(action("a", credit=math.nan), action("b", credit=1.0))),
        row(
            "g1", 1, 0.0, actions=(action("c", 0, credit=5.0, loss=False), action("d", credit=0.0))
        ),
        row("g1", 2, None, actions=(action("e", credit=9.0), action("f", credit=9.0))),
    ]
    rows = [msgspec.structs.replace(one, credit_rule="step") for one in rows]
    assert compare(rows, [1.0, 0.0]).turns == {1: (0.0, 1.0)}


@pytest.mark.parametrize(
    ("name", "has_one"),
    [
        ("last_step", True),
        ("gigpo(gamma=1)", True),
        ("per_role", True),
        ("identical", False),
        ("discounted(gamma=0.5)", False),
        ("of a later release(x=1)", False),
    ],
)
def test_a_rule_says_whether_it_has_a_baseline_of_its_own(name: str, *, has_one: bool) -> None:
    assert has_baseline(name) is has_one


@pytest.mark.parametrize(
    ("name", "by_turn"),
    [
        ("step", True),
        ("discounted(gamma=0.5)", True),
        ("identical", False),
        ("gigpo(gamma=1)", False),
        ("of a later release(x=1)", False),
    ],
)
def test_a_rule_says_what_its_credits_are_compared_with(name: str, *, by_turn: bool) -> None:
    assert compares_turns(name) is by_turn
