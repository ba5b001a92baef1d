"""The text-to-SQL example: questions that are apart, queries that may only read, and what is paid."""

from __future__ import annotations

import json
import re
import sqlite3
import string
from pathlib import Path
from typing import Any

import pytest

from fulgurite import EpisodeView
from services.learner.config_file import load as load_run
from services.learner.config_file import load_all
from services.runner.pace import usual_max_ahead
from tests.examples.recorded import PROJECT, load, make_call, make_task_view

FOLDER = PROJECT / "examples" / "text_to_sql"
database = load(FOLDER / "database.py")
kinds = load(FOLDER / "kinds.py")
tables = load(FOLDER / "tables.py")
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


def named(text: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.query[:60])
def test_each_kind_is_asked_in_several_ways_that_name_the_same(kind: Any) -> None:
    wordings = (*kind.training, *kind.held_out)
    assert len(set(kind.training)) >= 4
    assert len(set(wordings)) == len(wordings)
    for wording in wordings:
        assert named(wording) == named(kind.training[0]), wording


def fills(template: str, text: str) -> bool:
    """Whether a text is a wording with something in the place of each brace."""
    parts = re.split(r"{\w+}", template)
    return re.fullmatch(".+".join(map(re.escape, parts)), text) is not None


def test_no_training_wording_fills_a_held_out_one_or_the_other_way_round() -> None:
    training = [wording for kind in kinds.KINDS for wording in kind.training]
    held_out = [wording for kind in kinds.KINDS for wording in kind.held_out]
    assert fills("Count the {items} of {owner}.", "Count the {items} by {hour} of {owner}.")
    assert not [
        (one, other)
        for one in training
        for other in held_out
        if fills(one, other) or fills(other, one)
    ]


def test_every_training_wording_is_asked(written: dict[str, Path]) -> None:
    asked = [task["question"] for task in lines(written["train"]) + lines(written["warm"])]
    for kind in kinds.KINDS:
        for wording in kind.training:
            assert any(fills(wording, question) for question in asked), wording


def test_a_query_without_its_condition_answers_otherwise(written: dict[str, Path]) -> None:
    for task in lines(written["train"]) + lines(written["heldout"]):
        query = task["reference"]["query"]
        unconditional = re.split(" (?:WHERE|HAVING) ", query)[0]
        if unconditional != query:
            assert not database.is_right(task["database"], unconditional, query)


@pytest.mark.parametrize("schema", tables.TRAINING + tables.HELD_OUT, ids=lambda one: one.name)
def test_the_highest_and_the_lowest_are_one_row(written: dict[str, Path], schema: Any) -> None:
    file = written["train"].parent / "databases" / f"{schema.name}.sqlite"
    found = database.run_query(str(file), f"SELECT {schema.number} FROM {schema.items}")
    assert len(set(found)) == len(found) == tables.ITEMS


def test_training_and_held_out_share_nothing(written: dict[str, Path]) -> None:
    training, held_out = (
        {task["database"] for task in lines(written[file])} for file in ("train", "heldout")
    )
    assert len(training) == 16
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


def test_the_schedule_of_the_warm_start_ends_with_it() -> None:
    run = load_run(FOLDER / "warm.toml", {"FULGURITE_MODEL": "model"})
    steps = tasks.WARM * run.sft.epochs // run.sft.batch_size
    assert run.optimizer.decay_steps == steps


def test_a_policy_of_one_word_takes_smaller_steps() -> None:
    runs = {
        run.policy.name: run for run in load_all(FOLDER / "run.toml", {"FULGURITE_MODEL": "model"})
    }
    assert list(runs) == ["writer", "checker", "rewriter"]
    assert runs["checker"].optimizer.lr < runs["writer"].optimizer.lr
    assert runs["writer"].optimizer.lr == runs["rewriter"].optimizer.lr
    assert all(run.batch.groups <= usual_max_ahead(None) for run in runs.values())


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
