"""Made-up live traffic: conversations of one call each, and votes."""

from __future__ import annotations

from msgspec.structs import replace

from fulgurite.enums import CallOutcome, Mode, StatusKind, TrainingUse
from fulgurite.episodes.stitching import stitch
from fulgurite.events import AgentReward, Episode
from fulgurite.failures import FailureKind
from fulgurite.ids import derive_id
from tests.synthetic import group_id, make_call, make_status, rollout_id


def live_episode(
    number: int,
    variant: str | None = "policy@1.1",
    *,
    at: int = 10_000,
    alias: str = "policy",
    routed_alias: str | None = None,
    subject: str | None = None,
    use: TrainingUse = TrainingUse.live,
    mode: Mode = Mode.live,
    outcome: CallOutcome = CallOutcome.success,
    finish: str = "stop",
    failure: FailureKind | None = None,
    seconds: float = 1.0,
) -> Episode:
    """The episode of one call."""
    call = replace(
        make_call(number, at=at, mode=mode, use=use, outcome=outcome, finish=finish),
        alias=alias,
        routed_alias=routed_alias,
        variant=variant,
        propensity=0.5,
        subject=subject,
        finished_at=at + int(seconds * 1000),
        failure=None if outcome is CallOutcome.success else FailureKind(outcome.value),
    )
    status = make_status(number, kind=StatusKind.finished, at=at + 5_000, mode=mode)
    episode = stitch([call, status])
    assert episode is not None
    return replace(episode, failure=failure) if failure else episode


def vote(number: int, value: float, *, at: int = 20_000, name: str = "reward") -> AgentReward:
    """A thumb for the conversation."""
    return AgentReward(
        event_id=derive_id("vote", number, str(value), at, name),
        event_time=at,
        group_id=group_id(number),
        rollout_id=rollout_id(number, 0),
        name=name,
        value=value,
        final=True,
        source="rest",
    )
