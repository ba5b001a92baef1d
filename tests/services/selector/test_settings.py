"""What a user may set, and what is refused with a line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from fulgurite.selection.rules import GuardRules, Objective, SelectionRules
from services.cli.main import app
from services.selector.main import run
from services.selector.settings import SelectorSettings


def test_the_settings_defaults_are_those_of_the_rules() -> None:
    assert SelectorSettings().rules() == SelectionRules()
    changed = SelectorSettings(
        objective="verdict", price_weight=2, latency_weight=0.1, guard_call_s=3, guard_window=5
    ).rules()
    assert changed.objective is Objective.verdict
    assert (changed.weights.price, changed.weights.latency) == (2, 0.1)
    assert changed.guard == GuardRules(window=5, call_seconds=3)


def test_aliases_are_a_list() -> None:
    assert SelectorSettings(aliases="a, b,a,").names() == ["a", "b"]
    with pytest.raises(ValueError, match="FULGURITE_SELECTOR_ALIASES"):
        SelectorSettings().names()


def test_prices_are_read_where_they_count(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('currency = "EUR"\n[tokens.gpt]\ninput = 1.0\noutput = 2.0\n')
    prices = SelectorSettings(prices=file).read_prices()
    assert prices is not None
    assert prices.currency == "EUR"
    assert SelectorSettings().read_prices() is None
    with pytest.raises(ValueError, match="FULGURITE_SELECTOR_PRICES"):
        SelectorSettings(price_weight=1).read_prices()
    file.write_text("nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        SelectorSettings(prices=file).read_prices()
    with pytest.raises(ValueError, match="cannot be read"):
        SelectorSettings(prices=tmp_path / "none").read_prices()


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "sometimes"},
        {"objective": "win"},
        {"floor": 0},
        {"floor": 0.6},
        {"guard_share": 0},
        {"guard_share": 0.00004},
        {"floor": 0.00004},
        {"warmup": 1},
        {"price_weight": -1},
        {"confidence": 1},
    ],
)
def test_values_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SelectorSettings(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no alias is named"),
        (["--alias", "a", "--mode", "sometimes"], "mode"),
        (["--alias", "a", "--price-weight", "much"], "price_weight"),
        (["--alias", "a", "--price-weight", "1"], "FULGURITE_SELECTOR_PRICES"),
        (["--alias", "a", "--prices", "/none"], "/none cannot be read"),
    ],
)
async def test_a_selector_with_wrong_options_does_not_start(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await run(arguments) == 78
    shown = capfd.readouterr()
    assert message in shown.out + shown.err


@pytest.mark.parametrize("arguments", [["status"], ["accept", "a"], ["start", "--alias", "a"]])
def test_without_a_broker_commands_exit_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("FULGURITE_METRICS_PORT", "0")
    assert CliRunner().invoke(app, ["select", *arguments]).exit_code == 2
