"""What is known of learners from their claims."""

from __future__ import annotations

import msgspec
import pytest

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.learning.learners import DriftBounds, LearnerConfig, Learners


def claim(config: str | None, policy: str = "policy", **changes: object) -> PolicyUpdate:
    found = PolicyUpdate(
        event_id="claim",
        event_time=1,
        policy=policy,
        kind=UpdateKind.claim,
        epoch=1,
        step=0,
        learner_id="learner",
        trained_actions=0,
        config=config,
    )
    return msgspec.structs.replace(found, **changes)


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        ('{"batch": {"groups": 4, "wait": "groups", "max_wait_s": 9.0}}', 4),
        ('{"batch": {"groups": 4, "wait": "tokens", "tokens": 1000, "max_wait_s": 9.0}}', None),
        ('{"groups_per_step": 6}', 6),
        ("{}", None),
    ],
)
def test_the_groups_of_a_batch_are_known_where_they_make_it(
    config: str, groups: int | None
) -> None:
    learners = Learners()
    learners.on_update(claim(config))
    assert learners.config("policy").groups == groups


def test_learners_are_known_by_their_claims() -> None:
    learners = Learners()
    for update in (
        claim("{}", "replayed", topic="trajectories.v2"),
        claim("{}", "tuned", offline_method="sft"),
        claim("{}", "updated", kind=UpdateKind.update),
        claim("{not json", "odd"),
        claim(None, "silent"),
        claim('{"max_row_tokens": 7}', "ours"),
    ):
        learners.on_update(update)
    names = ("replayed", "tuned", "updated", "odd", "silent", "ours", "other")
    assert [name for name in names if learners.train(name)] == ["odd", "silent", "ours"]
    assert [learners.config(name) for name in ("odd", "other")] == [LearnerConfig()] * 2
    assert learners.config("ours").max_row_tokens == 7


def test_bounds_of_drift_are_those_of_the_alarm() -> None:
    learners = Learners()
    learners.on_update(claim('{"drift": {"alarm": {"k3": 0.02, "ess": 0.8}, "stop": {"k3": 1}}}'))
    assert learners.alarm("policy") == DriftBounds(0.02, 0.8)
    assert learners.alarm("other") == DriftBounds()
