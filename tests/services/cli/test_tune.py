"""`fulgurite tune` with wrong input: each is named before the log or the gateway is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.cli.tuning import key_of, read_tuning_tasks, reward_files, tuning_id

NOWHERE = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "COLUMNS": "200"}


def write(path: Path, *questions: str) -> str:
    path.write_text("\n".join(json.dumps({"question": one, "reference": "r"}) for one in questions))
    return str(path)


def output(folder: Path, *options: str, code: int = 1) -> str:
    given = [
        "--alias", "policy",
        "--tasks", write(folder / "train.jsonl", "a", "b"),
        "--validation", write(folder / "validation.jsonl", "c"),
        "--reward", "builtin:exact_match",
    ]  # fmt: skip
    done = CliRunner().invoke(app, ["tune", *given, *options, "--", "true"], env=NOWHERE)
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--method", "gepa"), "needs --reflection-model"),
        (("--reflection-model", "m"), "are for --method gepa"),
        (("--start", "s.txt"), "are for --method gepa"),
        (("--method", "gepa", "--reflection-model", "m", "--since", "7d"), "--since is for"),
        (("--max-money", "3"), "--max-money needs --prices"),
        (("--since", "yesterday"), "'yesterday' is neither a span"),
        (("--weight", "reward"), "is not NAME=NUMBER"),
        (("--reward", "builtin:f1"), "are both named"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: tuple[str, ...], error: str) -> None:
    assert error in output(tmp_path, *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "luck"),
        ("-n", "0"),
        ("--candidates", "0"),
        ("--max-calls", "0"),
        ("--max-money", "-1"),
        ("--slots", "0"),
        ("--pool", "0"),
        ("--minibatch", "0"),
        ("--seed", "-1"),
        ("--deadline", "0"),
        ("--concurrency", "0"),
    ],
)
def test_values_out_of_range(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert options[0] in output(tmp_path, *options, code=2)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    same = write(tmp_path / "same.jsonl", "x", "a")
    assert "1 tasks stand in --tasks and in --held-out" in output(tmp_path, "--held-out", same)
    assert '{"question":"a"}' in output(tmp_path, "--held-out", same)
    assert "stand in --validation and in --held-out" in output(
        tmp_path, "--held-out", write(tmp_path / "other.jsonl", "c")
    )
    assert "stand in --tasks and in --validation" in output(tmp_path, "--validation", same)
    missing = str(tmp_path / "missing")
    for option in ("--tasks", "--validation", "--held-out"):
        assert f"the tasks file {missing} cannot be read" in output(tmp_path, option, missing)
    gepa = ("--method", "gepa", "--reflection-model", "m")
    assert "cannot be read" in output(tmp_path, *gepa, "--start", missing)
    assert "the price file" in output(tmp_path, "--prices", missing)


def test_without_a_log_it_exits_2(tmp_path: Path) -> None:
    assert "127.0.0.1:1" in output(tmp_path, code=2)


def test_a_task_is_named_by_what_the_agent_gets(tmp_path: Path) -> None:
    write(tmp_path / "tasks.jsonl", "a", "b", "a")
    found = read_tuning_tasks(tmp_path / "tasks.jsonl")
    assert [one.task["question"] for one in found] == ["a", "b"]
    assert found[0].key == key_of({"question": "a", "reference": "another"})


def test_a_tuning_is_named_by_its_command_and_its_reward_function(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text("1")
    [file] = reward_files([f"{path}:score", "builtin:f1", "judge:policy", "gone.py:score"])
    before = tuning_id("policy", 1, file)
    assert tuning_id("policy", 1, file) == before
    assert tuning_id("policy", 2, file) != before
    path.write_text("2")
    assert tuning_id("policy", 1, file) != before
