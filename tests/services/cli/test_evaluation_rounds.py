"""Which version a new one has to beat, and when it does."""

from __future__ import annotations

import signal

import pytest

from fulgurite.events import PolicyRoute, RouteTarget
from fulgurite.versions import parse_version
from services.cli.evaluation_rounds import Promotion, evaluated, promoted, rounds
from services.cli.held_out import Earned
from services.cli.loading import with_share_of_0
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.interrupts import interrupts_noted

PROMOTION = Promotion(policy="policy", alias="prod", every=1, margin=0.02, min_tasks=3)


def target(version: str | None, weight: float = 1.0) -> RouteTarget:
    policy = "policy" if version is None else version.partition("@")[0]
    return RouteTarget(policy=policy, version=version, weight=weight)


def route(*targets: RouteTarget) -> dict[str, PolicyRoute]:
    event = PolicyRoute(
        event_id="r", event_time=1, alias="prod", targets=targets, reason="", author=""
    )
    return {"prod": event, "policy": event}


def test_the_version_to_beat_has_the_greatest_share() -> None:
    split = route(target("policy@1.3", 0.9), target("policy@1.4", 0.1), target("other@1.1", 5))
    assert str(promoted(split, PROMOTION)) == "policy@1.3"
    for routes in ({}, route(), route(target(None)), route(target("policy@1.3", 0.0))):
        assert str(promoted(routes, PROMOTION)) == "policy@0.0"


def test_a_version_is_measured_once() -> None:
    asked: list[str] = []

    def measure(model: str) -> Earned:
        asked.append(model)
        gain = {"policy@1.1": 1.0, "policy@1.2": 1.1, "policy@1.3": 0.5}[model]
        return Earned(model, {f"task {n}": [n * gain] for n in range(4)})

    first, second, third = (parse_version(f"policy@1.{step}") for step in (1, 2, 3))
    measured: dict[str, Earned] = {}
    better = evaluated(PROMOTION, first, second, measured, measure)
    worse = evaluated(PROMOTION, second, third, measured, measure)
    assert asked == ["policy@1.1", "policy@1.2", "policy@1.3"]
    assert (better.pair.baseline, better.pair.candidate) == ("policy@1.1", "policy@1.2")
    assert better.why_not is None or "lower bound" in better.why_not
    assert "lower bound" in (worse.why_not or "")


def test_a_share_of_0_leaves_the_others_as_they_are() -> None:
    wanted = target("policy@1.3")
    assert with_share_of_0((), wanted) == (target(None), target("policy@1.3", 0.0))
    kept = (target("policy@1.2", 0.5), target("policy@1.3", 0.5))
    assert with_share_of_0(kept, wanted) == kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_nobody_hears_stops_the_rounds(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interrupts_noted() as stopped:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert list(rounds(KafkaSettings(), PROMOTION, Earned, stopped)) == []
    assert signal.getsignal(number) is before
