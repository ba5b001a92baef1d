"""What `fulgurite sft` and `fulgurite dpo` say, and what they refuse before anything is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fulgurite.learning.offline import LeftOut, RecordedEpisode, RecordedRow, Span
from services.cli import offline
from services.cli.main import app
from services.learner.config import RunConfig
from services.learner.offline import Chosen, Step, method_of

runner = CliRunner()


def invoke(name: str, *arguments: str) -> Any:
    return runner.invoke(app, [name, *arguments])


def leave_logging_alone(service: str, level: str) -> None:
    """In the place of `logs.configure`: this process is not the command's."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands set variables: none of them outlives a test."""
    given = {"FULGURITE_MODEL": str(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    monkeypatch.setattr("os.environ", given)
    monkeypatch.setattr("services.common.runtime.logs.configure", leave_logging_alone)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_one_place_to_read_is_enough(name: str, tmp_path: Path) -> None:
    result = invoke(name, "--topic", "trajectories.v2", "--from", str(tmp_path))
    assert result.exit_code == 1
    assert "give either --topic TOPIC or --from DIR, not both" in result.stderr


def test_a_wrong_run_is_refused_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[dpo]\nbeta = 0\n")
    result = invoke("dpo", str(file))
    assert result.exit_code == 1
    assert "run.toml: dpo.beta" in result.stderr


def test_a_log_that_is_not_there_exits_2() -> None:
    result = invoke("sft")
    assert result.exit_code == 2
    assert "no Kafka broker answers" in result.stderr


def episode() -> RecordedEpisode:
    row = RecordedRow(token_ids=b"", spans=(Span(action="call#0", start=1, end=2),))
    return RecordedEpisode(
        group_id="group", group_revision="", rollout_id="", reward=1.0, context=b"", rows=(row,)
    )


def test_what_is_chosen_is_told_and_what_is_left_out_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = RunConfig.model_validate({"policy": {"model": "m"}})
    chosen = Chosen(((episode(), episode()),), 3, Counter(dict.fromkeys(LeftOut, 2)))
    offline._show_chosen(method_of("dpo", config), chosen)  # pyright: ignore[reportPrivateUsage]
    shown = capsys.readouterr().out
    assert "1 pairs of 1 groups, 2 actions; 3 groups were read" in shown
    assert all(f"({reason})" in shown for reason in LeftOut)


def test_the_bar_tells_of_the_step_and_each_part_has_one() -> None:
    bars = offline._progress()  # pyright: ignore[reportPrivateUsage]
    bars.disable = False
    for step in (
        Step("reference", 1, 2, {}),
        Step("epoch 1 of 1", 1, 3, {"loss": 0.6931, "preference/accuracy": 0.5}),
        Step("epoch 1 of 1", 2, 3, {"loss": 0.5, "preference/accuracy": 1.0}),
    ):
        offline._show_step(bars, step)  # pyright: ignore[reportPrivateUsage]
    assert [(task.description, task.completed, task.total) for task in bars.tasks] == [
        ("reference", 1, 2),
        ("epoch 1 of 1 loss 0.5, accuracy 1", 2, 3),
    ]
