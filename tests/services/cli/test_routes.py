"""What is a route, as an operator writes it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fulgurite.events import RouteTarget
from services.cli.main import app
from services.cli.routes import BadTarget, parse_targets


def test_shares_and_the_newest() -> None:
    assert parse_targets(["policy@1.3=0.9", "policy=0.1"]) == (
        RouteTarget(policy="policy", version="policy@1.3", weight=0.9),
        RouteTarget(policy="policy", version=None, weight=0.1),
    )
    assert parse_targets(["a-b.c@0.0"]) == (RouteTarget(policy="a-b.c", version="a-b.c@0.0", weight=1.0),)


@pytest.mark.parametrize(
    "targets",
    [
        ["policy@1=1"],
        ["policy@1.3=x"],
        ["policy@1.3=-1"],
        ["policy=inf"],
        ["policy=nan"],
        ["=1"],
        ["p q=1"],
        ["policy=0"],
        [],
        ["p", "p=2"],
    ],
)
def test_what_is_none(targets: list[str]) -> None:
    with pytest.raises(BadTarget):
        parse_targets(targets)


def test_a_slip_of_the_pen_is_said_before_anything_is_asked() -> None:
    done = CliRunner().invoke(app, ["routes", "set", "policy", "policy@one"])
    assert done.exit_code == 1
    assert "policy@one" in done.output


@pytest.mark.parametrize("command", ["set", "clear", "list"])
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, ["routes", command, "--help"])
    assert done.exit_code == 0
    assert "alias" in done.output
