"""What Agent Lightning's agents are paid, and what their experts say."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fulgurite import EpisodeView
from tests.examples.recorded import PROJECT, load, make_call, make_task_view, make_tool_view

FOLDER = PROJECT / "examples" / "agent_lightning"
QUESTION: dict[str, Any] = {"role": "user", "content": "?"}
GOLD = "SELECT name FROM animals WHERE height > 100"


def part(agent: str, name: str) -> Any:
    return load(FOLDER / agent / f"{name}.py")


@pytest.fixture
def database(tmp_path: Path) -> str:
    file = tmp_path / "zoo.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE animals (name TEXT, height INTEGER)")
        connection.executemany("INSERT INTO animals VALUES (?, ?)", [("lion", 120), ("otter", 30)])
    connection.close()
    return str(file)


@pytest.mark.parametrize(
    ("turns", "reward"),
    [
        ([("writer", f"```sqlite\n{GOLD}\n```")], 1),
        ([("writer", f"So:\n```\n{GOLD}\n``` That is it.")], 1),
        ([("writer", GOLD)], 1),
        ([("writer", "```sql\nSELECT 1\n```"), ("checker", "THE QUERY IS INCORRECT."), ("rewriter", f"```sql\n{GOLD}\n```")], 1),
        # A rewriter without a fence changes nothing; what the checker writes is no query.
        ([("writer", f"```sql\n{GOLD}\n```"), ("checker", "no"), ("rewriter", "SELECT 1")], 1),
        ([("writer", "```sql\nSELECT 1\n```"), ("checker", f"```sql\n{GOLD}\n```")], 0),
        ([("writer", f"```sql\n{GOLD}\n```\n```sql\nSELECT 1\n```")], 0),
        ([], 0),
    ],
)  # fmt: skip
def test_the_last_query_of_the_sql_agent_is_paid(
    database: str, turns: list[tuple[str, str]], reward: int
) -> None:
    calls = [
        make_call(number, [QUESTION], {"content": text}, role)
        for number, (role, text) in enumerate(turns)
    ]
    task = {"question": "?", "database": database, "reference": {"query": GOLD}}
    assert part("sql", "rewards").score(make_task_view(calls, task)) == {"reward": reward}


def episode(reference: dict[str, Any], *turns: tuple[str, str, str] | str) -> EpisodeView:
    """An episode of tool calls (name, argument, result) and of texts."""
    calls = [
        turn if isinstance(turn, str) else (turn[0], {"x": turn[1]}, turn[2]) for turn in turns
    ]
    return make_tool_view({"question": "?", "reference": reference}, calls)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((("calculate", "12*7", "84"), "### ANSWER: 84 ###"), (1, 1, 1)),
        ((("calculate", "12*7", "84.0"), "### ANSWER: 84.0 ###"), (1, 1, 1)),
        (("### ANSWER: 84 ###",), (0, 1, 0)),
        ((("calculate", "12*7", "84"), "### ANSWER: 84 or 85 ###"), (0, 0, 1)),
        ((("calculate", "12*7", "84"), "### ANSWER: 85 ### ### ANSWER: 84 ###"), (0, 0, 1)),
        ((("calculate", "12*7", "84"), "84"), (0, 0, 1)),
        ((), (0, 0, 0)),
    ],
)
def test_the_calculator_agent_is_paid_for_a_right_answer_after_a_call(
    turns: tuple[Any, ...], expected: tuple[int, int, int]
) -> None:
    found = part("calculator", "rewards").score(episode({"answer": 84}, *turns))
    assert found == dict(zip(("reward", "answer", "called"), expected, strict=True))


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((("retrieve", "Njeru", "..."), "Found. <answer> kampala </answer>"), (1, 1)),
        (("<answer>Kampala</answer>",), (1, 0)),
        (("<answer>Entebbe</answer> <answer>Kampala</answer>",), (0, 0)),
        (("<answer>Kampala or Entebbe</answer>",), (0, 0)),
        (("Kampala",), (0, 0)),
    ],
)
def test_the_rag_agent_is_paid_for_one_right_answer(
    turns: tuple[Any, ...], expected: tuple[int, int]
) -> None:
    found = part("rag", "rewards").score(episode({"answer": "Kampala"}, *turns))
    assert found == dict(zip(("reward", "searched"), expected, strict=True))


def test_the_experts_end_with_what_is_paid(database: str) -> None:
    sql = {"reference": {"query": GOLD}, "database": database}
    said = part("sql", "expert").answer(sql, [{"content": "Given an input question"}, QUESTION])
    checked = part("sql", "expert").answer(sql, [{"content": "Double check the query"}, QUESTION])
    view = make_task_view([make_call(0, [QUESTION], {"content": said}, "writer")], sql)
    assert part("sql", "rewards").score(view)["reward"] == 1
    assert "THE QUERY IS CORRECT" in checked

    tool: dict[str, Any] = {"role": "tool"}
    calculator = {"reference": {"expression": "12*7", "answer": 84}}
    answer = part("calculator", "expert").answer
    [call] = answer(calculator, [QUESTION])["tool_calls"]
    assert call == {"name": "calculate", "arguments": {"expression": "12*7"}}
    assert answer(calculator, [QUESTION, tool]) == "### ANSWER: 84 ###"

    rag = {"reference": {"queries": ["Njeru"], "answer": "Kampala"}}
    answer = part("rag", "expert").answer
    [call] = answer(rag, [QUESTION])["tool_calls"]
    assert call == {"name": "retrieve", "arguments": {"query": "Njeru"}}
    assert answer(rag, [QUESTION, tool]) == "<answer>Kampala</answer>"
