"""What a person does from a page is what the command line does, and is refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from fulgurite.events import RouteTarget
from fulgurite.selection.variants import name_variant
from services.common.kafka.settings import KafkaSettings
from services.console.operator import operator_actions, with_canary
from services.console.pages.actions import ActionRefused
from services.console.pages.blocks import Buttons
from services.console.pages.views import dead_letters, routes, versions


def make_target(version: str | None, weight: float, **settings: Any) -> RouteTarget:
    return RouteTarget(policy="policy", version=version, weight=weight, **settings)


def shares(targets: tuple[RouteTarget, ...]) -> list[tuple[str | None, float]]:
    return [(one.version, round(one.weight, 6)) for one in targets]


def test_a_canary_leaves_the_others_their_proportions() -> None:
    before = (make_target("policy@1.1", 3.0), make_target("policy@1.2", 1.0))
    found = with_canary(before, make_target("policy@1.3", 1.0), 0.2)
    assert shares(found) == [("policy@1.1", 0.6), ("policy@1.2", 0.2), ("policy@1.3", 0.2)]


def test_a_canary_without_a_route_runs_beside_the_newest_version() -> None:
    canary = make_target("policy@1.3", 1.0)
    assert shares(with_canary((), canary, 0.1)) == [(None, 0.9), ("policy@1.3", 0.1)]


@pytest.mark.parametrize("other", [(), (make_target("policy@1.2", 0.0),)])
def test_a_canary_beside_which_nothing_serves_is_refused(other: tuple[RouteTarget, ...]) -> None:
    canary = make_target("policy@1.3", 1.0)
    with pytest.raises(ActionRefused, match="is all that the route has"):
        with_canary((canary, *other), canary, 0.1)


def test_a_canary_leaves_other_prompts_and_parameters_of_its_version() -> None:
    settings = (
        make_target("policy@1.3", 1.0, prompt="prompt@2"),
        make_target("policy@1.3", 1.0, parameters={"temperature": 0.7}),
    )
    found = with_canary(settings, make_target("policy@1.3", 1.0), 0.2)
    assert [(name_variant(one), one.weight) for one in found] == [
        ("policy@1.3,prompt@2", 0.4),
        ("policy@1.3,temperature=0.7", 0.4),
        ("policy@1.3", 0.2),
    ]
    # With the same settings it is the same variant, which gets another share.
    changed = with_canary(found, settings[0], 0.5)
    assert [name_variant(one) for one in changed] == [
        "policy@1.3,temperature=0.7",
        "policy@1.3",
        "policy@1.3,prompt@2",
    ]
    assert changed[-1].weight == 0.5


def test_a_canary_has_its_share_in_every_context_cell() -> None:
    before = (
        make_target("policy@1.1", 3.0, cell_weights={"short": 1.0, "long": 0.0, "code": 0.0}),
        make_target("policy@1.2", 1.0, cell_weights={"long": 9.0, "code": 0.0}),
        make_target("policy@1.3", 5.0, cell_weights={"short": 7.0}),
    )
    first, second, canary = with_canary(before, make_target("policy@1.3", 1.0), 0.2)
    assert [one.weight for one in (first, second, canary)] == pytest.approx([0.6, 0.2, 0.2])
    assert {
        cell: [one.cell_weights[cell] for one in (first, second, canary)]
        for cell in ("short", "long", "code")
    } == {
        # The second target has its weight where it names no other.
        "short": pytest.approx([0.4, 0.4, 0.2]),
        "long": pytest.approx([0.0, 0.8, 0.2]),
        # All are 0 there, so that the gateway takes the weights outside of cells.
        "code": pytest.approx([0.6, 0.2, 0.2]),
    }


def test_every_button_has_an_action() -> None:
    blocks = (
        versions.buttons("policy@1.1", "policy", ["policy"]),
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
