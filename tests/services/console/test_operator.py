"""What a person does from a page is what the command line does, and is refused in words."""

from __future__ import annotations

import pytest

from fulgurite.events import RouteTarget
from services.common.kafka.settings import KafkaSettings
from services.console.operator import operator_actions, with_canary
from services.console.pages.actions import ActionRefused
from services.console.pages.blocks import Buttons
from services.console.pages.views import dead_letters, routes, versions


def make_target(version: str | None, weight: float) -> RouteTarget:
    return RouteTarget(policy="policy", version=version, weight=weight)


def shares(targets: tuple[RouteTarget, ...]) -> list[tuple[str | None, float]]:
    return [(one.version, round(one.weight, 6)) for one in targets]


def test_a_canary_leaves_the_others_their_proportions() -> None:
    before = (make_target("policy@1.1", 3.0), make_target("policy@1.2", 1.0))
    found = with_canary(before, make_target("policy@1.3", 1.0), 0.2)
    assert shares(found) == [("policy@1.1", 0.6), ("policy@1.2", 0.2), ("policy@1.3", 0.2)]


def test_a_canary_without_a_route_runs_beside_the_newest_version() -> None:
    canary = make_target("policy@1.3", 1.0)
    expected = [(None, 0.9), ("policy@1.3", 0.1)]
    assert shares(with_canary((), canary, 0.1)) == expected
    assert shares(with_canary((canary,), canary, 0.1)) == expected


def test_every_button_has_an_action() -> None:
    blocks = (
        versions.buttons("policy@1.1", ["policy"]),
        routes.buttons(["policy"]),
        Buttons((dead_letters.redrive_stage("aggregator"),)),
        Buttons((dead_letters.redrive_one({"topic": "llm.calls", "event_id": "e"}),)),
    )
    names = {button.action for block in blocks for button in block.items}
    assert names == operator_actions(KafkaSettings()).keys()


@pytest.mark.parametrize("share", ["", "much", "0", "1", "-0.5", "nan"])
def test_a_share_that_is_none_is_refused_before_anything_is_asked(share: str) -> None:
    act = operator_actions(KafkaSettings())["canary"]
    with pytest.raises(ActionRefused, match="share"):
        act({"version": "policy@1.1", "alias": "policy", "share": share})


def test_an_action_without_an_alias_is_refused() -> None:
    act = operator_actions(KafkaSettings())["roll_back"]
    with pytest.raises(ActionRefused, match="name the alias"):
        act({"alias": " "})
