"""The calculator example: disjoint problems, a calculator that cannot be abused, and what the
reward pays for.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fulgurite import EpisodeView
from fulgurite.events import LlmCall
from tests.examples.recorded import PROJECT, load, make_call, make_task_view

FOLDER = PROJECT / "examples" / "calculator"
agent = load(FOLDER / "agent.py")
tasks = load(FOLDER / "tasks.py")
rewards = load(FOLDER / "rewards.py")


def _tool_turn(expression: Any, name: str = "calc", copies: int = 1) -> dict[str, Any]:
    function = {
        "name": name,
        "arguments": json.dumps({"expression": expression})
        if isinstance(expression, str)
        else "nonsense",
    }
    return {
        "content": None,
        "tool_calls": [
            {"id": f"c{n}", "type": "function", "function": function} for n in range(copies)
        ],
    }


def _episode(turns: list[dict[str, Any]], tool: str = "84", reference: str = "12*7") -> EpisodeView:
    """An episode of these assistant turns, the tool answering between them."""
    messages = list(agent.opening("How many?"))
    calls: list[LlmCall] = []
    for number, turn in enumerate(turns):
        calls.append(make_call(number, list(messages), turn))
        messages.append({"role": "assistant", **turn})
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": tool}
            for call in turn.get("tool_calls", ())
        ]
    task = {"question": "How many?", "reference": {"expression": reference, "answer": 84}}
    return make_task_view(calls, task)


@pytest.mark.parametrize(
    ("turns", "expression", "answer"),
    [
        ([_tool_turn("12*7"), {"content": "answer: 84"}], 1.0, 1.0),
        ([_tool_turn(" 7 * 12 "), {"content": " answer: 84.\n"}], 1.0, 1.0),
        ([_tool_turn("(12)*(7)"), {"content": "answer:84"}], 1.0, 1.0),
        ([_tool_turn("12*7"), {"content": "answer: 85"}], 1.0, 0.0),
        ([_tool_turn("12*7"), {"content": "84"}], 1.0, 0.0),
        ([_tool_turn("12*7"), {"content": "answer: 84 or 85"}], 1.0, 0.0),
        ([_tool_turn("12*7"), _tool_turn("12*7")], 0.0, 0.0),
        ([_tool_turn("12*7", copies=2), {"content": "answer: 84"}], 0.0, 1.0),
        ([_tool_turn("12+7"), {"content": "answer: 84"}], 0.0, 1.0),
        ([_tool_turn("84"), {"content": "answer: 84"}], 0.0, 1.0),
        ([_tool_turn("12*"), {"content": "answer: 84"}], 0.0, 1.0),
        ([_tool_turn("12*7", name="other"), {"content": "answer: 84"}], 0.0, 1.0),
        ([_tool_turn(None), {"content": "answer: 84"}], 0.0, 1.0),
        ([{"content": "answer: 84"}], 0.0, 0.0),
        ([_tool_turn("12*7")], 1.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_the_reward_pays_for_both_halves_only(
    turns: list[dict[str, Any]], expression: float, answer: float
) -> None:
    episode = _episode(turns)
    assert (rewards.expression_right(episode), rewards.answer_follows(episode)) == (
        expression,
        answer,
    )
    assert rewards.score(episode) == {
        "reward": expression * answer,
        "expression_right": expression,
        "answer_follows": answer,
    }


def test_the_answer_counts_against_what_the_tool_said_not_against_the_truth() -> None:
    turns = [_tool_turn("12*7"), {"content": "answer: 83"}]
    assert rewards.score(_episode(turns, tool="83"))["reward"] == 1.0
    assert rewards.score(_episode(turns, tool="84"))["reward"] == 0.0


@pytest.mark.parametrize(
    ("written", "reference", "same"),
    [
        ("3+8", "8+3", True),
        ("3-8", "8-3", False),
        ("3/8", "8/3", False),
        ("2*3+4", "4+3*2", True),
        ("40+12-7", "40-7+12", True),
        ("40-(7-12)", "40+12-7", True),
        ("40-(12+7)", "40-12-7", True),
        ("40-12+7", "40-12-7", False),
        ("2*(3*4)", "4*3*2", True),
        ("2*(3+4)", "2*3+4", False),
        ("8/2/2", "8/(2/2)", False),
        ("11", "3+8", False),
        ("3+8", "3+9", False),
        ("-3+8", "8-3", False),
        ("__import__('os')", "3+8", False),
        ("3+", "3+8", False),
        ("(" * 500 + "3", "3+8", False),
    ],
)
def test_expressions_are_compared_by_meaning(written: str, reference: str, same: bool) -> None:
    assert rewards.same_meaning(written, reference) is same


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("3+8", "11"),
        (" 12 * 7 ", "84"),
        ("7/2", "3.5"),
        ("9/3", "3"),
        ("-(2-5)", "3"),
        ("1/3", "0.3333"),
        ("2*(3+4)", "14"),
    ],
)
def test_the_calculator_calculates(expression: str, result: str) -> None:
    assert agent.calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "2**99999999",
        "1/0",
        "__import__('os').system('true')",
        "open('x')",
        "[1]*9",
        "'a'*9",
        "9" * 5000,
        "1e400",
        "x",
        "True",
        "3,4",
        "3 4",
        "(" * 5000,
        "lambda: 1",
        "1\0",
    ],
)
def test_the_calculator_refuses_everything_else(expression: str) -> None:
    with pytest.raises(agent.Uncomputable):
        agent.calculate(expression)
    assert agent.use_tool("calc", json.dumps({"expression": expression})).startswith("error: ")


@pytest.mark.parametrize("arguments", ["", "3+8", "[]", "{}", "null"])
def test_malformed_tool_calls_are_told_to_the_model(arguments: str) -> None:
    assert agent.use_tool("calc", arguments).startswith("error: ")


def test_an_unknown_tool_is_told_to_the_model() -> None:
    assert agent.use_tool("search", "{}") == "error: there is no tool search"


@pytest.mark.parametrize("harder", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_and_held_out_problems_share_neither_templates_nor_numbers(
    seed: int, *, harder: bool
) -> None:
    training = tasks.make_tasks("train", 500, seed, harder=harder)
    held_out = tasks.make_tasks("heldout", 210, seed, harder=harder)
    assert not {task.template for task in training} & {task.template for task in held_out}
    assert not {number for task in training for number in task.numbers} & {
        number for task in held_out for number in task.numbers
    }
    assert not {task.question for task in training} & {task.question for task in held_out}
    assert len({task.question for task in held_out}) == 210
    tasks.assert_disjoint(training, held_out)


def test_a_shared_number_or_template_is_noticed() -> None:
    task = tasks.make_tasks("train", 1, 0)[0]
    with pytest.raises(AssertionError, match="templates"):
        tasks.assert_disjoint([task], [task])
    with pytest.raises(AssertionError, match="numbers"):
        tasks.assert_disjoint([task], [task._replace(template="another")])


@pytest.mark.parametrize("harder", [False, True])
def test_problems_are_answerable_and_repeatable(tmp_path: Path, *, harder: bool) -> None:
    paths = (
        tasks.write_tasks(tmp_path / "a", 0, 120, 60, harder=harder),
        tasks.write_tasks(tmp_path / "b", 0, 120, 60, harder=harder),
    )
    assert [path.read_text() for path in paths[0]] == [path.read_text() for path in paths[1]]
    for path in paths[0]:
        for line in path.read_text().splitlines():
            task = json.loads(line)
            reference = task["reference"]
            assert agent.calculate(reference["expression"]) == str(reference["answer"])
            assert all(
                number in task["question"] or tasks.IN_WORDS[int(number)] in task["question"]
                for number in re.findall(r"\d+", reference["expression"])
            )
            assert reference["answer"] > 0


def test_the_opening_shows_a_call_its_result_and_the_answer() -> None:
    roles = [message["role"] for message in agent.opening("Why?")]
    assert roles[0] == "system"
    assert roles[-1] == "user"
    assert roles[1:5] == ["user", "assistant", "tool", "assistant"]
