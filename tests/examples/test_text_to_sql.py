"""The text-to-SQL example: questions that are apart, queries that may only read, and what is paid."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fulgurite import EpisodeView
from tests.examples.recorded import PROJECT, load, make_call, make_task_view

FOLDER = PROJECT / "examples" / "text_to_sql"
database = load(FOLDER / "database.py")
tasks = load(FOLDER / "tasks.py")
rewards = load(FOLDER / "rewards.py")
expert = load(FOLDER / "expert.py")

GOLD = "SELECT title FROM books WHERE pages > 300"
ALIKE = "select title from books where 300 < pages"
OTHER = "SELECT genre FROM books WHERE pages > 300"
BROKEN = "SELECT name FROM books"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    return tasks.write_tasks(folder, seed=0, training=300, held_out=120, warm=24)


@pytest.fixture(scope="module")
def library(written: dict[str, Path]) -> str:
    return str(written["train"].parent / "databases" / "library.sqlite")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def episode(library: str, *turns: tuple[str, str], **task: str) -> EpisodeView:
    """An episode of these roles' answers."""
    calls = [
        make_call(number, [{"role": "user", "content": "?"}], {"content": text}, role)
        for number, (role, text) in enumerate(turns)
    ]
    return make_task_view(
        calls, {"question": "?", "database": library, "reference": {"query": GOLD}, **task}
    )


def test_questions_are_distinct_and_have_answers(written: dict[str, Path]) -> None:
    for file, count in (("train", 300), ("heldout", 120), ("warm", 24)):
        found = lines(written[file])
        assert len({(task["database"], task["question"]) for task in found}) == count
        for task in found:
            assert database.run_query(task["database"], task["reference"]["query"])


def test_training_and_held_out_share_nothing(written: dict[str, Path]) -> None:
    training, held_out = (
        {task["database"] for task in lines(written[file])} for file in ("train", "heldout")
    )
    assert len(training) == 8
    assert len(held_out) == 4
    assert not training & held_out
    drawn = tasks.make_tasks("train", 50, 0, {Path(file).stem: Path(file) for file in training})
    with pytest.raises(AssertionError, match="share databases"):
        tasks.assert_disjoint(drawn, drawn)


def test_a_number_of_questions_that_is_not_there_is_refused(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MOST_TRIES", 1)
    files = {
        Path(task["database"]).stem: Path(task["database"]) for task in lines(written["train"])
    }
    with pytest.raises(ValueError, match="only"):
        tasks.make_tasks("train", 300, 0, files)


def test_each_wrong_query_of_the_warm_start_answers_otherwise(written: dict[str, Path]) -> None:
    wrong = [task for task in lines(written["warm"]) if "query" in task]
    assert len(wrong) == 12
    for task in wrong:
        view = make_task_view(
            [make_call(0, [{"role": "user", "content": "?"}], {"content": "wrong"}, "checker")],
            task,
        )
        assert rewards.score(view) == {"reward": 0.0, "checker": 1.0}


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE books",
        "DELETE FROM books",
        "ATTACH DATABASE '/tmp/other' AS other",
        "PRAGMA writable_schema = 1",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT MAX(x) FROM n",
        "SELECT * FROM books, books, books",
        "SELECT title FROM books; SELECT 1",
    ],
)
def test_a_query_may_only_read_and_soon_ends(
    library: str, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SECONDS", 0.2)
    before = Path(library).read_bytes()
    with pytest.raises((sqlite3.Error, sqlite3.Warning)):
        database.run_query(library, query)
    assert Path(library).read_bytes() == before


def test_tables_are_shown_as_the_models_see_them(library: str) -> None:
    assert database.tables_of(library) == (
        "authors(id, name)\nbooks(id, title, genre, pages, author_id)"
    )


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("writer", GOLD), ("checker", "correct")], {"reward": 1, "writer": 1, "checker": 1}),
        ([("writer", ALIKE), ("checker", " Correct")], {"reward": 1, "writer": 1, "checker": 1}),
        ([("writer", OTHER), ("checker", "correct")], {"reward": 0, "writer": 0, "checker": 0}),
        ([("writer", BROKEN), ("checker", "wrong.")], {"reward": 0, "writer": 0, "checker": 1}),
        (
            [("writer", OTHER), ("checker", "wrong"), ("rewriter", GOLD), ("checker", "wrong")],
            {"reward": 1, "writer": 0, "checker": 0.5, "rewriter": 1},
        ),
        (
            [("writer", GOLD), ("checker", "wrong"), ("rewriter", BROKEN), ("checker", "wrong")],
            {"reward": 0, "writer": 1, "checker": 0.5, "rewriter": 0},
        ),
        # What would be paid without being an answer.
        ([("writer", "")], {"reward": 0, "writer": 0}),
        ([("writer", "SELECT title FROM books")], {"reward": 0, "writer": 0}),
        ([("writer", f"{GOLD} UNION ALL {GOLD}")], {"reward": 0, "writer": 0}),
        ([("writer", f"{GOLD}; DROP TABLE books")], {"reward": 0, "writer": 0}),
        ([("writer", f"The query is {GOLD}")], {"reward": 0, "writer": 0}),
        ([], {"reward": 0}),
    ],
)
def test_roles_are_paid_for_rows(
    library: str, turns: list[tuple[str, str]], expected: dict[str, float]
) -> None:
    assert rewards.score(episode(library, *turns)) == expected


def test_the_order_counts_where_it_is_asked_for(library: str) -> None:
    ordered = {"query": "SELECT title FROM books ORDER BY pages DESC LIMIT 3"}
    turned = "SELECT * FROM (SELECT title FROM books ORDER BY pages DESC LIMIT 3) ORDER BY 1 DESC"
    rows = database.run_query(library, ordered["query"])
    assert sorted(rows) == sorted(database.run_query(library, turned))
    assert rows != database.run_query(library, turned)
    view = episode(library, ("writer", turned), reference=ordered)  # pyright: ignore[reportArgumentType]
    assert rewards.score(view)["reward"] == 0


def test_the_expert_says_what_is_right() -> None:
    task = {"reference": {"query": GOLD}, "query": OTHER}

    def asked(system: str, *lines: str) -> str:
        return expert.answer(
            task,
            [
                {"role": "system", "content": system},
                {"role": "user", "content": "\n".join(["?", *lines])},
            ],
        )

    assert asked("Write one SQLite query that answers the question.") == GOLD
    assert asked("Say whether the query answers", GOLD, "result: 1 row: A") == "correct"
    assert asked("Say whether the query answers", OTHER, "result: 1 row: B") == "wrong"
    assert asked("The query is wrong. Write it anew.", OTHER, "result: 1 row: B") == GOLD
