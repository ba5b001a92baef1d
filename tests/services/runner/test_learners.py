"""What a runner knows of learners from their claims."""

from __future__ import annotations

import pytest

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from services.runner.learners import Learners


def claim(config: str) -> PolicyUpdate:
    return PolicyUpdate(
        event_id="claim",
        event_time=1,
        policy="policy",
        kind=UpdateKind.claim,
        epoch=1,
        step=0,
        learner_id="learner",
        trained_actions=0,
        config=config,
    )


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
