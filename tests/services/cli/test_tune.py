"""`fulgurite tune` with wrong input: each is named before the log or the gateway is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from fulgurite.prompts.overlap import OverlapGuard
from fulgurite.prompts.tuning import Budget
from services.cli.main import app
from services.cli.tuning import key_of, read_tuning_tasks, reward_files, tuning_id
from services.runner.options import RunOptions
from services.tuner.plan import Method, Plan

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


def test_a_limit_of_money_needs_a_price_of_the_reflection_model(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('currency = "EUR"\n[tokens.policy]\ninput = 1.0\noutput = 1.0\n')
    gepa = ("--method", "gepa", "--reflection-model", "teacher", "--prices", str(prices))
    limited = (*gepa, "--max-money", "3")
    found = output(tmp_path, *limited)
    assert "no price for the reflection model 'teacher', so --max-money cannot be held" in found
    assert 'add [tokens."teacher"]' in found
    assert "127.0.0.1:1" in output(tmp_path, *gepa, code=2)
    with prices.open("a") as file:
        file.write("[tokens.teacher]\ninput = 1.0\noutput = 1.0\n")
    assert "127.0.0.1:1" in output(tmp_path, *limited, code=2)


def test_without_a_log_it_exits_2(tmp_path: Path) -> None:
    assert "127.0.0.1:1" in output(tmp_path, code=2)


def test_a_task_is_named_by_what_the_agent_gets(tmp_path: Path) -> None:
    write(tmp_path / "tasks.jsonl", "a", "b", "a")
    found = read_tuning_tasks(tmp_path / "tasks.jsonl")
    assert [one.task["question"] for one in found] == ["a", "b"]
    assert found[0].key == key_of({"question": "a", "reference": "another"})


def plan_of(folder: Path, **changed: Any) -> Plan:
    default = Plan(
        method=Method.gepa,
        train=read_tuning_tasks(Path(write(folder / "train.jsonl", "a", "b"))),
        validation=read_tuning_tasks(Path(write(folder / "validation.jsonl", "c"))),
        guard=OverlapGuard([]),
        n=1,
        candidates=16,
        budget=Budget(),
        seed=0,
        slots=4,
        pool=16,
        least_reward=1.0,
        start=None,
        minibatch=3,
        promote=False,
    )
    return msgspec.structs.replace(default, **changed)


def test_a_tuning_is_named_by_its_command_and_its_reward_function(tmp_path: Path) -> None:
    path = tmp_path / "rewards.py"
    path.write_text("1")
    rewards = {"own": f"{path}:score", "f1": "builtin:f1", "gone": "gone.py:score"}
    assert reward_files(rewards.values()) == [path]
    plan = plan_of(tmp_path)
    options = RunOptions(tasks=tmp_path, command=("true",), run_id="r", rewards=rewards)
    before = tuning_id(plan, options, None, "teacher")
    another_run = msgspec.structs.replace(options, run_id="s")
    more = msgspec.structs.replace(plan, candidates=20, budget=Budget(calls=9), promote=True)
    assert tuning_id(more, another_run, None, "teacher") == before
    assert tuning_id(msgspec.structs.replace(plan, seed=1), options, None, "teacher") != before
    assert (
        tuning_id(plan, msgspec.structs.replace(options, command=("false",)), None, "teacher")
        != before
    )
    assert tuning_id(plan, options, "writer", "teacher") != before
    assert tuning_id(plan, options, None, "larger") != before, "another model writes other texts"
    path.write_text("2")
    assert tuning_id(plan, options, None, "teacher") != before


def test_a_corrected_reference_begins_a_tuning_anew(tmp_path: Path) -> None:
    options = RunOptions(tasks=tmp_path, command=("true",), run_id="r")
    before = plan_of(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"question": "c", "reference": "corrected"}')
    corrected = read_tuning_tasks(tmp_path / "other.jsonl")
    assert [one.key for one in corrected] == [one.key for one in before.validation]
    after = msgspec.structs.replace(before, validation=corrected)
    assert tuning_id(after, options, None, "teacher") != tuning_id(before, options, None, "teacher")
