"""Credit rules: the worked examples of their docstrings, what holds for all of them, and how they
are named.
"""

from __future__ import annotations

import doctest
import importlib
import statistics
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fulgurite.errors import UnknownRule
from fulgurite.groups.credit import RULES, credit_rule
from fulgurite.groups.credit.types import Path, Scored, Step, mean_and_scale, relative
from fulgurite.groups.rewards import LARGEST_CREDIT, LARGEST_TOTAL, is_bounded

VALUES = st.integers(-8, 8).map(lambda number: number / 4)
"""Quarters, so that sums are exact."""


@pytest.mark.parametrize("name", RULES)
def test_the_worked_example(name: str) -> None:
    module = importlib.import_module(f"fulgurite.groups.credit.{name}")
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0
    assert "Source:" in (module.__doc__ or "")


@st.composite
def episodes(draw: st.DrawFn, number: int) -> Scored:
    """An episode of one to three branches that share their first actions."""
    trunk = draw(st.integers(1, 3))
    outcome = draw(VALUES)
    paid: dict[str, Step] = {}

    def step(name: str) -> Step:
        name = f"{number}-{name}"
        paid[name] = Step(
            action=name,
            agent=draw(st.sampled_from(["", "critic", "writer"])),
            reward=draw(VALUES),
            state=draw(st.sampled_from([b"1", b"2", b"3"])),
            observation=draw(st.sampled_from([b"1", b"2"])),
        )
        return paid[name]

    shared = [step(f"trunk{place}") for place in range(trunk)]
    branches = [
        [*shared, *(step(f"{branch}.{place}") for place in range(draw(st.integers(1, 3))))]
        for branch in range(draw(st.integers(1, 3)))
    ]
    total = outcome + sum(one.reward for one in paid.values())
    named = {
        name: draw(VALUES)
        for name in draw(st.sets(st.sampled_from(["critic", "critic.recall", "writer", "task"])))
    }
    return Scored(
        total=total,
        by_name=named,
        paths=tuple(Path(steps=tuple(way), outcome=outcome, total=total) for way in branches),
    )


@pytest.mark.parametrize("name", RULES)
def test_a_group_without_a_scored_episode_has_no_credits(name: str) -> None:
    assert credit_rule(name)([]) == []


GROUPS = (
    st.integers(1, 4)
    .flatmap(lambda size: st.tuples(*(episodes(number) for number in range(size))))
    .map(list)
)


def actions(episode: Scored) -> set[str]:
    return {step.action for path in episode.paths for step in path.steps}


@given(GROUPS, st.sampled_from(sorted(RULES)), st.randoms())
def test_every_action_has_one_credit_whatever_the_order_of_episodes_and_branches(
    group: list[Scored], name: str, random: Random
) -> None:
    rule = credit_rule(name)
    found = rule(group)
    assert [set(given_to) for given_to in found] == [actions(episode) for episode in group]
    order = list(range(len(group)))
    random.shuffle(order)
    again = rule(
        [
            Scored(
                total=group[place].total,
                by_name=group[place].by_name,
                paths=group[place].paths[::-1],
            )
            for place in order
        ]
    )
    for place, given_to in zip(order, again, strict=True):
        assert given_to == pytest.approx(found[place], abs=1e-9)


@given(GROUPS, st.sampled_from(["identical", "step", "discounted(gamma=0.5)"]))
def test_rules_of_one_path_give_the_mean_over_the_branches_through_an_action(
    group: list[Scored], name: str
) -> None:
    rule = credit_rule(name)
    for episode, given_to in zip(group, rule(group), strict=True):
        alone = [rule([Scored(total=episode.total, paths=(path,))])[0] for path in episode.paths]
        for action, value in given_to.items():
            through = [given_to[action] for given_to in alone if action in given_to]
            assert value == pytest.approx(sum(through) / len(through))


@given(GROUPS)
def test_identical_conserves_the_episode_s_reward_at_every_action(group: list[Scored]) -> None:
    for episode, given_to in zip(group, credit_rule("identical")(group), strict=True):
        assert set(given_to.values()) == {episode.total}


@given(st.lists(VALUES, min_size=1, max_size=6), VALUES, st.floats(0, 1))
def test_returns_differ_by_what_was_paid_and_discounted(
    rewards: list[float], outcome: float, gamma: float
) -> None:
    way = Path(
        steps=tuple(Step(action=str(place), reward=reward) for place, reward in enumerate(rewards)),
        outcome=outcome,
        total=outcome + sum(rewards),
    )
    group = [Scored(total=way.total, paths=(way,))]
    gains = list(credit_rule(f"discounted(gamma={gamma})")(group)[0].values())
    for place in range(len(rewards) - 1):
        assert gains[place] == pytest.approx(rewards[place] + gamma * gains[place + 1])
    assert gains[-1] == rewards[-1] + outcome
    steps = list(credit_rule("step")(group)[0].values())
    assert steps[0] == pytest.approx(way.total)
    assert steps == list(credit_rule("discounted(gamma=1)")(group)[0].values())


@given(GROUPS)
def test_under_last_step_only_leaves_have_an_advantage(group: list[Scored]) -> None:
    mean, _ = mean_and_scale([episode.total for episode in group])
    for episode, given_to in zip(group, credit_rule("last_step")(group), strict=True):
        leaves = {path.steps[-1].action for path in episode.paths}
        assert all(
            given_to[action] == (episode.total if action in leaves else mean) for action in given_to
        )


def advantages(given_to: Sequence[float], totals: Sequence[float]) -> list[float]:
    """What the learner makes of credits: services/learner/estimator.py."""
    mean, scale = mean_and_scale(totals)
    return [(credit - mean) / scale for credit in given_to]


@given(
    GROUPS,
    st.floats(0, 1),
    st.floats(0, 4),
    st.sampled_from(["std", "none"]),
    st.sampled_from(["observation", "prompt"]),
)
def test_the_advantage_under_gigpo_is_that_of_the_paper(
    group: list[Scored], gamma: float, omega: float, norm: str, state: str
) -> None:
    totals = [episode.total for episode in group]
    found = credit_rule(f"gigpo(gamma={gamma!r}, omega={omega!r}, norm={norm}, state={state})")(
        group
    )
    returns = credit_rule(f"discounted(gamma={gamma!r})")(group)
    places = [
        {
            step.action: (step.agent, step.state if state == "prompt" else step.observation)
            for path in episode.paths
            for step in path.steps
        }
        for episode in group
    ]
    mean, scale = mean_and_scale(totals)
    for episode, given_to, gains, where in zip(group, found, returns, places, strict=True):
        for action, advantage in zip(
            given_to, advantages(list(given_to.values()), totals), strict=True
        ):
            same = [
                gain
                for other, at in zip(returns, places, strict=True)
                for a, gain in other.items()
                if at[a] == where[action]
            ]
            flat = max(same) - min(same) <= 1e-6
            spread = statistics.stdev(same) if norm == "std" and not flat else 1.0
            of_step = 0.0 if flat else (gains[action] - statistics.fmean(same)) / spread
            assert advantage == pytest.approx(
                (episode.total - mean) / scale + omega * of_step, abs=1e-6
            )


@given(GROUPS)
def test_gigpo_without_omega_is_identical(group: list[Scored]) -> None:
    assert credit_rule("gigpo(omega=0)")(group) == credit_rule("identical")(group)


@given(GROUPS)
def test_a_role_s_advantage_is_over_its_own_rewards(group: list[Scored]) -> None:
    totals = [episode.total for episode in group]
    mean, scale = mean_and_scale(totals)
    for role in ("", "critic", "writer"):
        paid = [
            [
                value
                for name, value in episode.by_name.items()
                if role and name.split(".")[0] == role
            ]
            for episode in group
        ]
        named = [sum(values) for values in paid if values]
        # Without a reward of the role, the episode's own is compared with the others'.
        compared = [
            relative(sum(values), named) if values else (total - mean) / scale
            for values, total in zip(paid, totals, strict=True)
        ]
        concerned = [
            one
            for one, values, episode in zip(compared, paid, group, strict=True)
            if values or any(step.agent == role for path in episode.paths for step in path.steps)
        ]
        for episode, given_to, one in zip(
            group, credit_rule("per_role")(group), compared, strict=True
        ):
            for step in {
                step.action: step for path in episode.paths for step in path.steps
            }.values():
                if step.agent != role:
                    continue
                expected = one - statistics.fmean(concerned)
                assert given_to[step.action] == pytest.approx(
                    mean + scale * expected if named else episode.total
                )


@given(GROUPS)
def test_a_role_s_advantages_are_centred_over_the_group(group: list[Scored]) -> None:
    totals = [episode.total for episode in group]
    for role in ("critic", "writer"):
        acts = [
            replace(
                episode,
                paths=(
                    Path(
                        steps=(Step(action="a", agent=role),),
                        outcome=episode.total,
                        total=episode.total,
                    ),
                ),
            )
            for episode in group
        ]
        given_to = [found["a"] for found in credit_rule("per_role")(acts)]
        assert statistics.fmean(advantages(given_to, totals)) == pytest.approx(0, abs=1e-6)


def test_an_episode_that_failed_is_held_against_a_role_that_others_pay_by_name() -> None:
    def episode(total: float, **named: float) -> Scored:
        way = Path(steps=(Step(action="a", agent="critic"),), outcome=total, total=total)
        return Scored(total=total, paths=(way,), by_name=named)

    group = [episode(1.0, critic=0.5), episode(1.0, critic=0.5), episode(-2.0)]
    given_to = [found["a"] for found in credit_rule("per_role")(group)]
    penalised = advantages(given_to, [one.total for one in group])
    assert penalised == pytest.approx([0.385, 0.385, -0.770], abs=1e-3)


def test_an_episode_without_a_role_does_not_move_what_the_role_is_compared_with() -> None:
    def episode(total: float, agent: str, **named: float) -> Scored:
        way = Path(steps=(Step(action="a", agent=agent),), outcome=total, total=total)
        return Scored(total=total, paths=(way,), by_name=named)

    group = [
        episode(0.0, "critic", critic=1.0),
        episode(0.0, "critic", critic=0.0),
        episode(1.0, "writer"),
        episode(1.0, "writer"),
    ]
    given_to = [found["a"] for found in credit_rule("per_role")(group)]
    found = advantages(given_to, [one.total for one in group])
    assert found[:2] == pytest.approx([0.707, -0.707], abs=1e-3)


def test_a_rule_s_name_spells_out_its_parameters() -> None:
    assert [
        credit_rule(text).name
        for text in ("identical", "step()", " discounted ", "gigpo( omega = .5,state=prompt )")
    ] == [
        "identical",
        "step",
        "discounted(gamma=0.95)",
        "gigpo(gamma=0.95, omega=0.5, norm=std, state=prompt)",
    ]
    for name in RULES:
        assert credit_rule(credit_rule(name).name) == credit_rule(name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "magic",
            r"no credit rule 'magic'; there are discounted, gigpo, identical, last_step, "
            r"per_role, step",
        ),
        ("Discounted!", "no credit rule"),
        (
            "discounted(0.9)",
            r"expected parameters as in name\(parameter=value\), each once, not '0.9'",
        ),
        ("discounted(gamma=0.9, gamma=0.8)", "each once"),
        ("discounted(gama=0.9)", "no parameter 'gama'; discounted has gamma"),
        ("identical(gamma=1)", "no parameter 'gamma'; identical has no parameters"),
        ("discounted(gamma=much)", "gamma must be a number from 0 to 1, not 'much'"),
        ("discounted(gamma=1.5)", "gamma must be a number from 0 to 1, not '1.5'"),
        ("gigpo(omega=inf)", "omega must be a number from 0 to 1000, not 'inf'"),
        ("gigpo(norm=mean)", "norm must be std or none, not 'mean'"),
    ],
)
def test_what_is_no_rule_is_said_clearly(text: str, complaint: str) -> None:
    with pytest.raises(UnknownRule, match=complaint):
        credit_rule(text)


@st.composite
def largest(draw: st.DrawFn, number: int) -> Scored:
    """An episode that is paid as much as is accepted, or next to nothing, in any shape."""
    shape = draw(episodes(number))
    names = sorted(actions(shape))
    amounts = st.sampled_from([0.0, 1e-9, 2e-6, 1.0, 1e6, LARGEST_TOTAL]) | st.floats(
        0, LARGEST_TOTAL
    )
    parts = [draw(amounts) * draw(st.sampled_from([-1.0, 1.0])) for _ in (*names, "outcome")]
    shrunk = LARGEST_TOTAL / max(sum(map(abs, parts)), LARGEST_TOTAL)
    outcome, *paid = (part * shrunk for part in parts)
    rewards = dict(zip(names, paid, strict=True))
    total = outcome + sum(paid)
    ways = [
        tuple(replace(step, reward=rewards[step.action]) for step in path.steps)
        for path in shape.paths
    ]
    return Scored(
        total=total,
        by_name=dict(zip(("critic", "critic.recall", "writer"), paid, strict=False)),
        paths=tuple(Path(steps=way, outcome=outcome, total=total) for way in ways),
    )


LARGEST = (
    st.integers(1, 4)
    .flatmap(lambda size: st.tuples(*(largest(number) for number in range(size))))
    .map(list)
)
SPELLED = (
    "discounted(gamma=1)",
    "gigpo(omega=1000, norm=none)",
    "gigpo(gamma=1, omega=1000, state=prompt)",
)


@given(LARGEST, st.sampled_from([*sorted(RULES), *SPELLED]))
def test_accepted_rewards_give_credits_that_can_be_trained_under_every_rule(
    group: list[Scored], name: str
) -> None:
    for given_to in credit_rule(name)(group):
        assert all(is_bounded(credit, LARGEST_CREDIT) for credit in given_to.values())
