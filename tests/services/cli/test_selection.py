"""`fulgurite select try`: what another router would have earned, from the log to the printed lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fulgurite.enums import Mode
from services.cli import selection
from services.cli.main import app
from tests.services.replay.memory_log import MemoryLog
from tests.synthetic import make_call, make_declared, make_reward, make_status

PRICES = """
currency = "EUR"
[tokens.vllm]
input = 1000.0
output = 1000.0
[tokens.gpt]
input = 100000.0
output = 100000.0
"""


def write_episode(
    log: MemoryLog, number: int, reward: float | None, mode: Mode = Mode.live, **call: Any
) -> None:
    """One group of one rollout with one call, of 3 and 2 tokens and 500 ms."""
    made = make_call(number, mode=mode)
    usual = {"prompt_tokens": 3, "completion_tokens": 2, "started_at": 1_000, "finished_at": 1_500}
    log.append(
        make_declared(number, 1, mode=mode),
        msgspec.structs.replace(made, **(usual | call)),
        make_status(number, mode=mode),
    )
    if reward is not None:
        log.append(make_reward(number, value=reward))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MemoryLog:
    """Of 120 episodes, a third is another upstream's, which earns more and costs more."""
    made = MemoryLog()
    for number in range(120):
        if number % 3:
            reward = float(number % 2)
            write_episode(made, number, reward, variant="policy", propensity=2 / 3, backend="vllm")
        else:
            write_episode(
                made, number, 0.9, variant="upstream:gpt", propensity=1 / 3, backend="gpt"
            )
    write_episode(made, 120, 1.0)
    write_episode(made, 121, None, variant="policy", propensity=2 / 3)
    write_episode(made, 122, 1.0, variant="policy", propensity=1.0)
    write_episode(made, 123, 0.0, mode=Mode.val, variant="policy", propensity=2 / 3)

    def opened(*_: Any, **__: Any) -> MemoryLog:
        return made

    monkeypatch.setattr(selection, "open_source", opened)
    return made


def select_try(*arguments: str) -> Any:
    return CliRunner().invoke(
        app, ["select", "try", "--alias", "policy", "--since", "all", *arguments]
    )


def test_both_routers_are_shown_with_what_is_left_out(log: MemoryLog) -> None:
    done = select_try("--shares", "policy=0.1", "upstream:gpt=0.9")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]
    assert ["policy", "80", "66.7%", "10.0%", "0.500", "0.50", "0.500"] in rows
    assert ["upstream:gpt", "40", "33.3%", "90.0%", "0.900", "0.50", "0.900"] in rows
    assert "logged router:  0.633 [" in done.stdout
    assert "doubly robust:           0.860 [" in done.stdout
    assert "inverse propensity:      0.860 [" in done.stdout
    assert "minus logged:             0.227 [" in done.stdout
    assert "of 120 episodes" in done.stdout
    for reason in ("no reward", "no propensity", "bound to get"):
        assert any(line.startswith("1 episodes") and reason in line for line in lines), reason


def test_prices_and_latency_decide_by_their_weights(log: MemoryLog, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(PRICES)
    options = ["--prices", str(path), "--price-weight", "2", "--latency-weight", "0.1"]
    done = select_try("--shares", "upstream:gpt", *options, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["candidate"]["mean"] == pytest.approx(0.9 - 2 * 0.5 - 0.05)
    assert found["variants"][0]["price"] == pytest.approx(0.005)
    assert found["shares"] == {"upstream:gpt": 1.0}
    assert (found["currency"], found["unrewarded"]) == ("EUR", 1)
    shown = select_try("--shares", "upstream:gpt", *options)
    assert "EUR" in shown.stdout
    assert "0.0050" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shares", "policy@1.9"], "no episode in the log was answered by 'policy@1.9'"),
        (["--shares", "policy=0.5", "upstream:gpt=0.6"], "add up to 1.1"),
        (["--shares", "policy", "--price-weight", "1"], "--price-weight needs --prices FILE"),
        (["--shares", "policy", "--alias", "another"], "no rewarded episode"),
    ],
)
def test_what_cannot_be_said_is_refused(log: MemoryLog, arguments: list[str], words: str) -> None:
    done = select_try(*arguments)
    assert (done.exit_code, words in " ".join(done.stderr.split())) == (1, True), done.output
