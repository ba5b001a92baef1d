"""The view of policies: a claim shuts out lower epochs, the first claim wins, and a failed update
leaves what was served.
"""

from __future__ import annotations

from typing import Any

from fulgurite.enums import ApplyOutcome, UpdateKind
from fulgurite.events import PolicyApplied, PolicyUpdate
from services.gateway.upstream.policies import PolicyView


def update(kind: UpdateKind, epoch: int, step: int, learner: str) -> PolicyUpdate:
    return PolicyUpdate(
        event_id=f"{kind}{epoch}.{step}{learner}",
        event_time=1,
        policy="p",
        kind=kind,
        epoch=epoch,
        step=step,
        version=f"p@{epoch}.{step}" if kind is UpdateKind.update else None,
        learner_id=learner,
        trained_actions=0,
    )


def applied(version: str, outcome: ApplyOutcome, previous: str | None) -> PolicyApplied:
    return PolicyApplied(
        event_id=version,
        event_time=2,
        policy="p",
        backend="b",
        engine_id="e",
        version=version,
        previous=previous,
        outcome=outcome,
        seconds=0.1,
    )


def only(view: PolicyView) -> dict[str, Any]:
    [policy] = view.as_json({"p"})["data"]
    return policy


def test_a_policy_nobody_wrote_of_is_the_base() -> None:
    assert only(PolicyView())["newest"] == "p@0.0"
    assert PolicyView().served("p", "b") is None


def test_the_first_claim_wins_and_lower_epochs_are_ignored() -> None:
    view = PolicyView()
    for event in (
        update(UpdateKind.claim, 1, 0, "a"),
        update(UpdateKind.claim, 1, 0, "b"),
        update(UpdateKind.update, 1, 1, "b"),
        update(UpdateKind.update, 1, 1, "a"),
        update(UpdateKind.claim, 2, 1, "c"),
        update(UpdateKind.update, 1, 2, "a"),
        None,
    ):
        view.apply(event)
    assert (only(view)["newest"], only(view)["epoch"]) == ("p@1.1", 2)


def test_what_is_served_is_what_was_proved() -> None:
    view = PolicyView()
    view.apply(applied("p@1.1", ApplyOutcome.applied, "p@0.0"))
    assert view.served("p", "b") == "p@1.1"
    view.apply(applied("p@1.2", ApplyOutcome.failed, "p@1.1"))
    assert view.served("p", "b") == "p@1.1"
    assert only(view)["backends"][0]["last_attempt"]["version"] == "p@1.2"
