"""The chain of the learning benchmark: disjoint tasks, and what each reward pays for."""

from __future__ import annotations

import pytest

from fulgurite import EpisodeView
from tests.examples.recorded import PROJECT, load, make_call, make_task_view

FOLDER = PROJECT / "benchmarks" / "learning" / "chain"
agent = load(FOLDER / "agent.py")
tasks = load(FOLDER / "tasks.py")
rewards = load(FOLDER / "rewards.py")

REFERENCE = ["12+7", "19-4", "15*3", "45+20", "65-1"]


def episode(expressions: list[str | None]) -> EpisodeView:
    """An episode whose turns call the calculator so; None is a turn without a call."""
    calls = [
        make_call(
            number,
            agent.opening(),
            {"content": "no"} if expression is None else agent.tool_call(expression, number),
        )
        for number, expression in enumerate(expressions)
    ]
    task = {"start": 12, "reference": {"expressions": REFERENCE, "answer": 64}}
    return make_task_view(calls, task)


@pytest.mark.parametrize(
    ("expressions", "right"),
    [
        (REFERENCE, [1, 1, 1, 1, 1]),
        (["7+12", "19 - 4", "3*15", "45+20", "65-1"], [1, 1, 1, 1, 1]),
        (["12+7", "4-19", "15*3", "45+20", "65-1"], [1, 0, 1, 1, 1]),
        (["12+8", "20-4", "16*3", "48+20", "68-1"], [0, 0, 0, 0, 0]),
        (["12+7", "19-4", None], [1, 1, 0]),
        (["19"], [0]),
        ([], []),
    ],
)
def test_each_reward_pays_for_right_steps(
    expressions: list[str | None], right: list[float]
) -> None:
    view = episode(expressions)
    all_right = float(right == [1] * 5)
    assert rewards.end(view) == {"reward": all_right, "all_right": all_right}
    assert rewards.share(view) == {"reward": sum(right) / 5, "all_right": all_right}
    paid = {f"call{number}": value / 5 for number, value in enumerate(right)}
    assert rewards.steps(view) == {"reward": paid, "all_right": all_right}


def test_training_and_held_out_chains_share_no_operand() -> None:
    sides = [tasks.make_tasks(split, 300, seed=0) for split in ("train", "heldout")]
    operands = [
        {
            int(word)
            for task in side
            for step in task["steps"]
            for word in step.split()
            if word.isdigit()
        }
        | {task["start"] for task in side}
        for side in sides
    ]
    assert not operands[0] & operands[1]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_reference_leads_from_start_to_answer(split: str) -> None:
    for task in tasks.make_tasks(split, 100, seed=1):
        value = str(task["start"])
        for expression in task["reference"]["expressions"]:
            assert expression.startswith(value)
            value = agent.calculate(expression)
        assert value == str(task["reference"]["answer"])
        assert len(task["steps"]) == len(task["reference"]["expressions"]) == 5


def test_the_calculator_says_error_where_it_cannot_help() -> None:
    assert [agent.calculate(text) for text in ("3*4", "3-4", "3**4", "", "a+b")] == [
        "12",
        "-1",
        "error",
        "error",
        "error",
    ]
