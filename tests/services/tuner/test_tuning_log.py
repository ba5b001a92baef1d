"""What a decision of a tuning says that it replaces, so that a rollback returns there."""

from __future__ import annotations

import pytest

from fulgurite.enums import PromptKind
from fulgurite.events import PromptUpdate
from services.tuner.tuning_log import TuningLog
from tests.services.tuner.tuned_agent import Topic


def set_version(topic: Topic, version: str, role: str | None) -> None:
    update = PromptUpdate(
        event_id=version, event_time=1, alias="policy", role=role, kind=PromptKind.set, version=version, system=version, reason="", author="",
    )  # fmt: skip
    topic.publish("policy", update)


@pytest.mark.parametrize("own", [None, "prompt@2"])
def test_a_roles_candidate_replaces_the_roles_version_and_not_the_aliass(own: str | None) -> None:
    topic = Topic()
    set_version(topic, "prompt@1", None)
    if own is not None:
        set_version(topic, own, "writer")
    log = TuningLog("policy", "writer", "t", "me", topic.read, topic.publish)
    begun = log.begin(method="gepa", train_tasks=1, validation_tasks=1, seed=0)
    assert begun.baseline == (own or "prompt@1"), "it is compared with what the role gets"
    candidate = log.write_candidate({"system": "better"}, parent=begun.baseline, reason="")
    decision = log.decide(PromptKind.promoted, candidate, "better")
    assert decision.parent == own
    assert log.decide(PromptKind.promoted, candidate, "better") is decision
