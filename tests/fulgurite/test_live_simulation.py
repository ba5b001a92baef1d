"""Live traffic that is opted in, in any schedule: every action has one term and is trained once at
most, and what comes late amends.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings

from fulgurite.enums import Mode, TrainingUse
from fulgurite.events import AgentReward, LlmCall
from tests.fulgurite.simulated.deployment import Deployment
from tests.fulgurite.simulated.learner import LiveLearner
from tests.fulgurite.simulated.world import topic_of
from tests.fulgurite.test_simulation import (
    LONG,
    SCHEDULES,
    books,
    check_anew,
    newest_revisions,
    run,
)
from tests.synthetic import make_call, make_reward

pytestmark = pytest.mark.no_cover


def call(
    group: int, turn: int = 0, use: TrainingUse = TrainingUse.live, policy: str = "policy"
) -> LlmCall:
    return make_call(
        group, 0, turn, at=1_000 + turn, prompt=(turn, 2), mode=Mode.live, use=use, policy=policy
    )


def sources() -> tuple[tuple[LlmCall | AgentReward, ...], ...]:
    """Conversations: one that was liked, one without a vote, one beyond the quota, one that the
    person leaves out, and one with two aliases.
    """
    return (
        (call(7), call(7, 1), make_reward(7, 0, 1.0)),
        (call(8),),
        (call(9, use=TrainingUse.quota), make_reward(9, 0, 1.0)),
        (call(10), call(10, 1, TrainingUse.excluded), make_reward(10, 0, 1.0)),
        (call(11), call(11, 1, TrainingUse.by_mode, policy="small"), make_reward(11, 0, 0.0)),
    )


def late_events() -> tuple[LlmCall | AgentReward, ...]:
    """A thumb after the deadline, one that was changed, another turn, and a person who asks to be
    left out afterwards.
    """
    return (
        make_reward(8, 0, 1.0, at=9_000),
        make_reward(7, 0, 0.0, at=9_000),
        call(7, 2),
        call(11, 2, TrainingUse.excluded),
    )


def deployment(*, late: bool) -> Deployment:
    later = [(event,) for event in late_events()] if late else []
    return Deployment([*sources(), *later], {}, learner=LiveLearner)


def test_every_action_has_the_term_that_its_conversation_deserves() -> None:
    world = run(b"", deployment(late=False)).world
    check_anew(world)
    closed = books(world)
    assert closed.terms == {
        "trained": 3,
        "filtered(no_reward)": 1,
        "filtered(quota)": 1,
        "filtered(excluded)": 1,
    }
    assert (closed.untrained, closed.live_rollouts) == ({"live": 1, "left_out": 1}, 2)


def test_what_comes_after_everything_was_trained_amends_and_trains_nothing() -> None:
    live = run(b"", deployment(late=False))
    before = list(live.world.trained)
    for event in late_events():
        live.world.append(topic_of(event), event)
        live.settle()
        check_anew(live.world)
    assert live.world.trained == before
    assert books(live.world).terms == {
        "amended": 3,
        "filtered(late)": 2,
        "filtered(quota)": 1,
        "filtered(excluded)": 1,
    }


@cache
def in_the_end() -> dict[str, str | None]:
    """Each group's last revision where everything came in order."""
    return newest_revisions(run(b"", deployment(late=True)).world)


@settings(max_examples=SCHEDULES // 4)
@given(LONG)
def test_any_schedule_balances_and_ends_at_the_same_revisions(schedule: bytes) -> None:
    world = run(schedule, deployment(late=True)).world
    check_anew(world)
    assert newest_revisions(world) == in_the_end()
