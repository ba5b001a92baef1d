"""Rewards that compare versions: by a function, and by no judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.cli.options import read_reward_functions
from services.replay.errors import BadArgument

NOWHERE = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "COLUMNS": "200"}


def test_functions_are_read_as_of_a_run() -> None:
    given = ["rewards.py:score", "f1=builtin:f1"]
    assert read_reward_functions(given) == {"reward": "rewards.py:score", "f1": "builtin:f1"}
    with pytest.raises(BadArgument, match="--reward judge:big: a judge ranks"):
        read_reward_functions([*given, "style=judge:big"])
    with pytest.raises(ValueError, match="are both named"):
        read_reward_functions(["a.py:f", "b.py:f"])


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "--model", "policy@0.0"),
        ("gate", "policy"),
        ("tune", "--alias", "policy", "--validation", "validation.jsonl"),
    ],
)
def test_commands_that_compare_versions_refuse_a_judge(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tasks", "validation"):
        Path(f"{name}.jsonl").write_text(json.dumps({"question": name}))
    given = ("--tasks", "tasks.jsonl", "--reward", "judge:big", "--", "true")
    done = CliRunner().invoke(app, [*words, *given], env=NOWHERE)
    assert done.exit_code == 1, done.output
    assert "compare no versions. Give a reward function" in " ".join(done.output.split())
