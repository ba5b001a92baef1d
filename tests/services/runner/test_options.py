"""Tasks: how they are read, in which order they are run, and what of them reaches the agent; and
what an agent inherits.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from fulgurite.enums import Mode
from services.runner.errors import BadTasks
from services.runner.options import (
    RunOptions,
    clean_environment,
    for_agent,
    in_order,
    planned_rollouts,
    read_rewards,
    read_tasks,
    read_weights,
    tasks_to_run,
)

TASKS = [{"id": number} for number in range(4)]


def _options(**fields: object) -> RunOptions:
    return RunOptions(tasks=Path("t"), command=("agent",), run_id="r", **fields)  # pyright: ignore[reportArgumentType]


def test_tasks_are_json_objects_a_line(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"a": 1}\n\n{"b": "ü"}\n')
    assert read_tasks(path) == [{"a": 1}, {"b": "ü"}]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order mark"])
def test_a_line_ends_where_json_says(tmp_path: Path, mark: str, end: str) -> None:
    tasks = [{"a": f"one{character}two"} for character in "\u2028\u2029\x85"]
    path = tmp_path / "tasks.jsonl"
    text = mark + end.join(json.dumps(task, ensure_ascii=False) for task in tasks)
    path.write_bytes(text.encode())
    assert read_tasks(path) == tasks


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no task"), ("{}\n[1]\n", "line 2"), ("{\n", "line 1"), ("\xff", "line 1")],
)
def test_what_cannot_be_read_is_told_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(text)
    with pytest.raises(BadTasks, match=words):
        read_tasks(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadTasks, match="No such file"):
        read_tasks(tmp_path / "none.jsonl")


def test_one_pass_in_order_unless_told_otherwise() -> None:
    assert list(in_order(TASKS, _options())) == TASKS
    assert list(in_order(TASKS, _options(mode=Mode.val, epochs=2))) == TASKS * 2


def test_later_passes_of_training_are_shuffled_repeatably() -> None:
    tasks = [{"id": number} for number in range(50)]
    first, second = (list(in_order(tasks, _options(epochs=2, seed=3))) for _ in range(2))
    assert first == second
    assert first[:50] == tasks
    assert first[50:] != tasks
    assert sorted(task["id"] for task in first[50:]) == list(range(50))


def test_a_limit_and_an_endless_run() -> None:
    assert len(list(in_order(TASKS, _options(limit=3)))) == 3
    assert len(list(in_order(TASKS, _options(updates=5, limit=11)))) == 11


def test_the_agent_never_sees_the_reference() -> None:
    assert json.loads(for_agent({"question": "q", "reference": {"answer": 3}})) == {"question": "q"}


def test_a_clean_environment() -> None:
    inherited = {
        "PATH": "/bin",
        "HOME": "/h",
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONPATH": "p",
        "AWS_SECRET": "s",
        "FULGURITE_ADMIN_KEY": "k",
    }
    assert clean_environment(inherited) == {
        "PATH": "/bin",
        "HOME": "/h",
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONPATH": "p",
    }
    assert clean_environment(inherited, ("AWS_SECRET",))["AWS_SECRET"] == "s"


@pytest.mark.parametrize(
    ("given", "rewards"),
    [
        ([], {}),
        (["rewards.py:score"], {"reward": "rewards.py:score"}),
        (
            ["builtin:f1(reference=gold, after=Answer:)"],
            {"reward": "builtin:f1(reference=gold, after=Answer:)"},
        ),
        (
            ["rewards.py:score", "f1=builtin:f1(reference=gold)"],
            {"reward": "rewards.py:score", "f1": "builtin:f1(reference=gold)"},
        ),
        (["./a b/rewards.py:score"], {"reward": "./a b/rewards.py:score"}),
    ],
)
def test_rewards_are_functions_by_name(given: list[str], rewards: dict[str, str]) -> None:
    assert read_rewards(given) == rewards


@pytest.mark.parametrize("given", [["a.py:f", "b.py:f"], ["style=a.py:f", "style=b.py:f"]])
def test_two_rewards_of_one_name_are_refused(given: list[str]) -> None:
    with pytest.raises(ValueError, match=r"are both named '(reward|style)': name one, NAME=b.py:f"):
        read_rewards(given)


def test_weights_are_numbers_by_name() -> None:
    assert read_weights(["style=0.2", "parts=0"]) == {"style": 0.2, "parts": 0.0}


@pytest.mark.parametrize("pair", ["style", "=1", "style=", "style=much", "style=nan", "style=inf"])
def test_a_weight_that_is_none_is_refused(pair: str) -> None:
    with pytest.raises(ValueError, match="NAME=NUMBER"):
        read_weights([pair])


@pytest.mark.parametrize(
    ("fields", "rollouts"),
    [
        ({}, 40),
        ({"epochs": 2}, 80),
        ({"limit": 3}, 12),
        ({"updates": 5}, None),
        ({"updates": 5, "epochs": 1}, 40),
    ],
)
def test_how_much_there_is_to_do(fields: dict[str, int], rollouts: int | None) -> None:
    assert planned_rollouts(10, _options(n=4, **fields)) == rollouts


def test_held_out_tasks_are_left_out_whatever_their_reference(tmp_path: Path) -> None:
    tasks, held_out = tmp_path / "tasks.jsonl", tmp_path / "held-out.jsonl"
    tasks.write_text('{"q": 1, "reference": "a"}\n{"q": 2}\n')
    held_out.write_text('{"reference": "b", "q": 1}\n')
    options = RunOptions(tasks=tasks, command=(), run_id="r")
    assert len(tasks_to_run(options)) == 2
    options = msgspec.structs.replace(options, held_out=held_out)
    assert tasks_to_run(options) == [{"q": 2}]
    held_out.write_text('{"q": 1}\n{"q": 2}\n')
    with pytest.raises(BadTasks, match="nothing is left"):
        tasks_to_run(options)
