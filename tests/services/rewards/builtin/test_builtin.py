"""The built-in rewards: right and wrong answers, and what is no fault of the answer."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulgurite.episodes.stitching import stitch
from fulgurite.episodes.view import EpisodeView
from services.rewards import builtin
from services.rewards.builtin import BUILTINS, PREFIX
from services.rewards.builtin.bounded import within
from services.rewards.errors import PluginError, RewardFailed
from services.rewards.functions import load, named, source_of
from tests.synthetic import make_call, make_declared, make_status

SCHEMA = {
    "type": "object",
    "required": ["n"],
    "properties": {"n": {"$ref": "#/$defs/count"}},
    "$defs": {"count": {"type": "integer"}},
}


def episode(answer: str, task: object) -> EpisodeView:
    reply: dict[str, object] = {"role": "assistant", "content": answer}
    made = stitch([make_declared(task=json.dumps(task)), make_call(replies=[reply]), make_status()])
    assert made is not None
    return EpisodeView(made)


def value(reference: str, answer: str, task: Mapping[str, object]) -> float:
    given = load(f"{PREFIX}{reference}")(episode(answer, dict(task)))
    found = named(given, "reward", reference)["reward"]
    assert isinstance(found, float)
    return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sql") / "town's.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table t (name text, n integer); insert into t values ('a', 1), ('b', 2), "
            "('c', 3), ('b', 2);"
        )
    return str(path)


@pytest.mark.parametrize(
    ("reference", "answer", "expected", "worth"),
    [
        ("exact_match", " The  Eiffel tower!", "Eiffel Tower", 1.0),
        ("exact_match", "the tower", "Eiffel Tower", 0.0),
        ("exact_match", "42", [41, 42], 1.0),
        ("exact_match(normalise=none)", "Paris", "paris", 0.0),
        ("exact_match(normalise=none)", " paris\n", "paris", 1.0),
        ("exact_match(after=Answer:)", "Answer: 3? No. Answer: 4", "4", 1.0),
        ("exact_match(after=Answer:)", "4", "4", 0.0),
        ("f1", "the Denver Broncos", "Denver Broncos of Denver", 2 / 3),
        ("f1", "Denver Broncos", ["Paris", "Denver Broncos"], 1.0),
        ("f1", "Paris", "Rome", 0.0),
        ("f1", "the", "a", 1.0),
        ("f1", "", "Rome", 0.0),
        ("math", r"so it is $\frac{2}{4}$", "1/2", 1.0),
        ("math", r"\boxed{0.5}", r"\frac{1}{2}", 1.0),
        ("math", "it is 2", 0.5, 0.0),
        ("math", "I can't tell", "1/2", 0.0),
        ("math", "", "1/2", 0.0),
        ("math(timeout_s=0.5)", "$10^{10^{10}}$", "1/2", 0.0),
        ("math(timeout_s=0.5)", r"\boxed{99999999!}", "1/2", 0.0),
        ("math(timeout_s=0.5)", r"$\sum_{n=1}^{10^9} n^n$", "1/2", 0.0),
        ("math(timeout_s=0.5)", r"\boxed{\binom{10^9}{5\cdot10^8}}", "1/2", 0.0),
        ("math(timeout_s=0.5)", "(" * 3000 + "1" + ")" * 3000, "1/2", 0.0),
        ("math(timeout_s=0.5)", "$" + "{" * 3000 + "}" * 3000 + "$", "1/2", 0.0),
        ("math(timeout_s=0.5)", "a\ud83c", "1/2", 0.0),
    ],
)
def test_answers(reference: str, answer: str, expected: object, worth: float) -> None:
    assert value(reference, answer, {"reference": expected}) == pytest.approx(worth)


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        ('{"n": 3}', 1.0),
        ('Here:\n```json\n{"n": 3}\n```\n', 1.0),
        ('{"m": 3}', 0.0),
        ('{"n": "3"}', 0.0),
        ("n is 3", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_schema(answer: str, worth: float) -> None:
    assert value("json_schema", answer, {"schema": SCHEMA}) == worth


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"type": "string", "pattern": "^(a+)+$"}, json.dumps("a" * 60 + "!")),
        (
            {
                "$ref": "#/$defs/list",
                "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}},
            },
            "[" * 900 + "1" + "]" * 900,
        ),
        ({"type": "integer", "multipleOf": 0.1}, "1e400"),
        ({"type": "integer"}, "9" * 5000 + ".5"),
        ({"uniqueItems": True}, json.dumps([[[number]] for number in range(100_000)])),
    ],
)
def test_an_answer_that_is_made_to_end_the_judge_fits_no_schema(
    schema: object, answer: str
) -> None:
    assert value("json_schema(timeout_s=0.5)", answer, {"schema": schema}) == 0.0


@pytest.mark.parametrize(
    ("query", "answer", "worth"),
    [
        ("select name from t where n > 1", "SELECT t.name FROM t WHERE 1 < n ORDER BY n DESC", 1.0),
        ("select name from t where n > 1", "```sql\nselect name from t where n >= 2\n```", 1.0),
        ("select name from t where n > 1", "select distinct name from t where n > 1", 0.0),
        ("select name from t order by n", "select name from t order by n desc", 0.0),
        ("select name from t order by n", "select name from t order by n", 1.0),
        # The order of a part is none of the whole.
        (
            "select name from (select * from t order by n)",
            "select name from t order by n desc",
            1.0,
        ),
        ("select 1", "selekt 1", 0.0),
        ("select 1", "", 0.0),
        ("select 1", "select 1; drop table t", 0.0),
        ("select 1", "delete from t", 0.0),
        ("select 1", "drop table t", 0.0),
        # Given back as rows, what a query changes would look like what was asked for.
        ("select 1 from t", "delete from t returning 1", 0.0),
        ("select 0", "pragma user_version", 0.0),
        ("select 1", "attach database '/tmp/other.db' as other", 0.0),
        ("select 1", "pragma writable_schema = on", 0.0),
        (
            "select 1",
            "with recursive r(x) as (select 1 union all select x + 1 from r) select count(*) "
            "from r",
            0.0,
        ),
        (
            "select 1",
            "with recursive r(x) as (select 1 union all select x + 1 from r) select x from r",
            0.0,
        ),
        ("select 1", "select zeroblob(2000000000)", 0.0),
        ("select 1", "select printf('%.*c', 999999999, 'x')", 0.0),
        (
            "select 1",
            "select replace(printf('%.*c', 9999999, 'x'), 'x', printf('%.*c', 9999999, 'x'))",
            0.0,
        ),
        ("select 1", "select '\ud83c'", 0.0),
        ("select 1", "select " + "(" * 5000 + "1" + ")" * 5000, 0.0),
    ],
)
def test_sql(database: str, query: str, answer: str, worth: float) -> None:
    before = Path(database).read_bytes()
    assert (
        value("sql(timeout_s=0.3,max_rows=50)", answer, {"reference": query, "database": database})
        == worth
    )
    assert Path(database).read_bytes() == before


@pytest.mark.parametrize(
    ("reference", "task", "told"),
    [
        ("exact_match", {}, "the task has no field 'reference'"),
        ("exact_match(reference=gold)", {"reference": "1"}, "the task has no field 'gold'"),
        ("f1", {"reference": []}, "expected a text, a number, or a list of them"),
        ("f1", {"reference": {"a": 1}}, "expected a text, a number, or a list of them"),
        ("math", {"reference": "?"}, "is no mathematics"),
        ("json_schema", {"schema": 3}, "expected a JSON Schema"),
        ("json_schema", {"schema": {"type": "number of things"}}, "is no JSON Schema"),
        (
            "json_schema",
            {"schema": {"$ref": "https://example.com/schema.json"}},
            "refers to what it does not hold",
        ),
        (
            "sql",
            {"reference": "select 1", "database": "no/such.db"},
            "is no file where the reward worker runs",
        ),
        ("sql", {"reference": "selekt 1"}, "the task has no field 'database'"),
    ],
)
def test_what_is_no_fault_of_the_answer_is_a_failure(
    reference: str, task: dict[str, Any], told: str
) -> None:
    with pytest.raises(RewardFailed, match=told):
        value(reference, '{"n": 1}', task)


def test_a_reference_that_cannot_be_executed_is_a_failure(database: str) -> None:
    with pytest.raises(RewardFailed, match="the reference 'selekt 1' cannot be executed"):
        value("sql", "select 1", {"reference": "selekt 1", "database": database})


ODD = st.text(st.characters()) | st.text(
    "$\\\\{}[]()^_0123456789!,;'\"`\n selct*frombx", max_size=60
)


@given(ODD, st.sampled_from(["math", "json_schema", "sql"]))
@settings(deadline=None, max_examples=60)
def test_every_answer_is_worth_something_and_no_failure(
    database: str, answer: str, name: str
) -> None:
    reference = f"{name}(timeout_s=0.5)"
    task = {
        "reference": "1" if name == "math" else "select 1",
        "database": database,
        "schema": SCHEMA,
    }
    assert value(reference, answer, task) in (0.0, 1.0)


def test_an_answer_that_ends_the_process_is_worth_nothing() -> None:
    assert within(10.0, lambda: os._exit(3)) == 0.0
    assert within(10.0, sys.exit) == 0.0
    assert within(0.2, lambda: threading.Event().wait(600)) == 0.0
    assert within(10.0, lambda: 0.25) == 0.25
    with pytest.raises(RewardFailed, match="no schema"):
        within(10.0, lambda: fail("no schema"))


def fail(why: str) -> float:
    raise RewardFailed(why)


def test_undeclared_traffic_has_no_reference() -> None:
    made = stitch([make_call(), make_status()])
    assert made is not None
    with pytest.raises(RewardFailed, match="the task has no field"):
        load("builtin:f1")(EpisodeView(made))


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.delitem(sys.modules, "services.rewards.builtin.math", raising=False)
    with pytest.raises(
        PluginError, match=r"builtin:math needs math_verify: .*'/path/to/fulgurite\[rewards\]'"
    ):
        load("builtin:math")


@given(st.text(), st.text())
def test_f1_is_symmetric_in_0_to_1_and_1_where_the_match_is_exact(
    answer: str, expected: str
) -> None:
    forth, back = (
        value("f1", answer, {"reference": expected}),
        value("f1", expected, {"reference": answer}),
    )
    assert 0.0 <= forth <= 1.0
    assert forth == pytest.approx(back)
    if value("exact_match", answer, {"reference": expected}):
        assert forth == 1.0


def test_every_built_in_reward_has_its_file() -> None:
    for name in BUILTINS:
        assert callable(load(f"{PREFIX}{name}"))


@pytest.mark.parametrize(
    ("changed", "those"),
    [
        ("answers", set(BUILTINS)),
        ("bounded", {"math", "sql", "json_schema"}),
        ("exact_match", {"exact_match", "f1"}),
        ("sql", {"sql"}),
    ],
)
def test_a_source_changes_with_what_the_reward_shares(
    tmp_path: Path, changed: str, those: set[str]
) -> None:
    folder = shutil.copytree(Path(builtin.__file__).parent, tmp_path / "builtin")
    assert {name: builtin.code_of(name, folder) for name in BUILTINS} == {
        name: builtin.code_of(name) for name in BUILTINS
    }
    with (folder / f"{changed}.py").open("a") as file:
        file.write("# another rule\n")
    assert {
        name for name in BUILTINS if builtin.code_of(name, folder) != builtin.code_of(name)
    } == those
    assert len({source_of(f"{PREFIX}{name}").partition("#")[2] for name in BUILTINS}) == len(
        BUILTINS
    )
