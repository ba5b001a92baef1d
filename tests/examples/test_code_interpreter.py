"""The code-interpreter example: questions that are apart, and what is paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fulgurite import EpisodeView
from tests.examples.recorded import PROJECT, load, make_tool_view

FOLDER = PROJECT / "examples" / "code_interpreter"
tasks = load(FOLDER / "tasks.py")
rewards = load(FOLDER / "rewards.py")
expert = load(FOLDER / "expert.py")

NEEDS_PYTHON = {"answer": "84", "program": "12 * 7"}
NEEDS_NONE = {"answer": "84", "program": None}


def test_questions_are_distinct_apart_and_of_both_sorts(tmp_path: Path) -> None:
    written = tasks.write_tasks(tmp_path, seed=0, training=300, held_out=100, warm=40)
    for name, count in (("train", 300), ("heldout", 100), ("warm", 40)):
        found = [json.loads(line) for line in written[name].read_text().splitlines()]
        assert len({task["question"] for task in found}) == count
        needless = sum(task["reference"]["program"] is None for task in found)
        assert 0.15 < needless / count < 0.5
        for task in found:
            if task["reference"]["program"] is None:
                assert task["reference"]["answer"] in task["question"]
    drawn = tasks.make_tasks("train", 50, 0)
    with pytest.raises(AssertionError, match="share numbers"):
        tasks.assert_disjoint(drawn, drawn)


def episode(reference: dict[str, Any], *turns: tuple[str, str] | str) -> EpisodeView:
    """An episode of programs (and their results) and of texts."""
    programs = [
        turn if isinstance(turn, str) else ("python", {"code": turn[0]}, turn[1]) for turn in turns
    ]
    return make_tool_view({"question": "?", "reference": reference}, programs)


@pytest.mark.parametrize(
    ("reference", "turns", "expected"),
    [
        (NEEDS_PYTHON, (("12 * 7", "84"), "answer: 84"), (0.95, 1, 1, "program_right", 1)),
        (NEEDS_PYTHON, ("answer: 84",), (1.0, 1, 0, "program_right", 0)),
        (NEEDS_PYTHON, (("12*", "error"), ("12*7", "84"), "answer: 84"), (0.9, 1, 2, "program_right", 1)),
        (NEEDS_PYTHON, (("12 * 7", "84"), "answer: 85"), (-0.05, 0, 1, "program_right", 1)),
        (NEEDS_PYTHON, (("12 + 7", "19"), "answer: 19"), (-0.05, 0, 1, "program_right", 0)),
        (NEEDS_NONE, ("answer: 84",), (1.0, 1, 0, "needless", 0)),
        (NEEDS_NONE, (("84", "84"), " Answer: 84."), (0.95, 1, 1, "needless", 1)),
        (NEEDS_NONE, ("answer: 84 or 52",), (0.0, 0, 0, "needless", 0)),
        (NEEDS_NONE, ("84",), (0.0, 0, 0, "needless", 0)),
        # The last program was never run.
        (NEEDS_PYTHON, (("12 * 8", "96"), ("12 * 7", "84")), (-0.05, 0, 1, "program_right", 0)),
        (NEEDS_PYTHON, (), (0.0, 0, 0, "program_right", 0)),
    ],
)  # fmt: skip
def test_right_answers_are_paid_and_runs_cost(
    reference: dict[str, Any],
    turns: tuple[Any, ...],
    expected: tuple[float, int, int, str, int],
) -> None:
    reward, answer, calls, name, value = expected
    found = rewards.score(episode(reference, *turns))
    assert found == pytest.approx({"reward": reward, "answer": answer, "calls": calls, name: value})


def test_the_expert_runs_python_where_it_is_needed() -> None:
    asked, answered = [{"role": "user"}], [{"role": "user"}, {"role": "tool"}]
    [call] = expert.answer({"reference": NEEDS_PYTHON}, asked)["tool_calls"]
    assert call["arguments"] == {"code": "12 * 7"}
    assert expert.answer({"reference": NEEDS_PYTHON}, answered) == "answer: 84"
    assert expert.answer({"reference": NEEDS_NONE}, asked) == "answer: 84"
