"""Questions about databases, for training, for the warm start and for the held-out examination.

Training and held-out questions share neither a database, nor a table, column or value of one, nor a
wording; this is asserted whenever the files are written. The agents see `question` and `database`;
`reference` is for the reward function and never reaches them. Half of the warm start's tasks have a
wrong `query` that the work begins with, to be found out and mended.

    python tasks.py --seed 0 --out DIR    writes DIR/{train,warm,heldout}.jsonl and DIR/databases
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from database import Rows, run_query
from kinds import FUNCTIONS, KINDS, ORDERS, Kind
from tables import HELD_OUT, TRAINING, WORDS, Schema, make_database, schemas

WARM = 88
"""Questions of the warm start; how many steps that makes is said in `warm.toml`."""
MOST_TRIES = 50
"""For each question that is wanted: some kinds have few, and soon give none that is new."""
_CONDITION = re.compile(r" (?:WHERE|HAVING) ")


class Task(NamedTuple):
    """A question about a database, and the query that answers it."""

    question: str
    database: str
    query: str
    wording: str
    wrong_query: str | None = None

    def to_json(self) -> str:
        """One line of a tasks file."""
        task: dict[str, Any] = {"question": self.question, "database": self.database}
        if self.wrong_query is not None:
            task["query"] = self.wrong_query
        return json.dumps({**task, "reference": {"query": self.query}})


def make_task(
    kind: Kind, schema: Schema, split: str, file: Path, chance: random.Random
) -> Task | None:
    """A question of this kind; None if its answer says too little."""
    function, order = chance.choice(list(FUNCTIONS)), chance.choice(list(ORDERS))
    owners = run_query(str(file), f"SELECT {schema.parent_label} FROM {schema.parents}")
    values = {
        **schema._asdict(),
        "reference": schema.reference,
        "value": chance.choice(schema.categories),
        "limit": chance.randint(schema.smallest, schema.largest),
        "few": chance.randint(4, 14),
        "owner": chance.choice(owners)[0],
        "function": function,
        "word": FUNCTIONS[function],
        "order": order,
        "superlative": ORDERS[order],
    }
    query = kind.query.format(**values)
    if not is_telling(str(file), query):
        return None
    wording = chance.choice(kind.training if split == "train" else kind.held_out)
    return Task(wording.format(**values), str(file), query, wording)


def is_telling(database: str, query: str) -> bool:
    """Whether a query gives something, and something else without its condition: a query that
    leaves the condition out must not be paid.
    """
    rows, unconditional = answer(database, query), _CONDITION.split(query)[0]
    is_conditional = unconditional != query
    return rows not in ([], [(0,)]) and not (
        is_conditional and answer(database, unconditional) == rows
    )


def make_tasks(split: str, count: int, seed: int, files: dict[str, Path]) -> list[Task]:
    """Distinct questions of a split, over all databases and kinds. Raises ValueError if there are
    not as many.
    """
    chance = random.Random(f"{seed} {split}")
    rounds = itertools.cycle(itertools.product(KINDS, schemas(split)))
    found: dict[tuple[str, str], Task] = {}
    for kind, schema in itertools.islice(rounds, count * MOST_TRIES):
        task = make_task(kind, schema, split, files[schema.name], chance)
        if task is not None:
            found.setdefault((task.database, task.question), task)
        if len(found) == count:
            tasks = list(found.values())
            chance.shuffle(tasks)
            return tasks
    raise ValueError(f"there are only {len(found)} questions for {split}, not {count}")


def wrong_queries(task: Task, schema: Schema) -> Iterator[str]:
    """Queries like the right one that answer otherwise, or cannot be executed."""
    expected = answer(task.database, task.query)
    swaps = [
        *itertools.permutations((schema.label, schema.category, schema.number), 2),
        *itertools.permutations(schema.categories, 2),
        *itertools.permutations(FUNCTIONS, 2),
        ("DESC", "ASC"),
        ("ASC", "DESC"),
        (" > ", " < "),
        (" < ", " > "),
        ("COUNT(*)", schema.label),
        (f"{schema.label} FROM", "COUNT(*) FROM"),
        (f"FROM {schema.items}", f"FROM {schema.parents}"),
        (f"FROM {schema.items}", f"FROM {schema.items[:-1]}"),
        (schema.number, f"{schema.number}_total"),
    ]
    for old, new in swaps:
        query = task.query.replace(old, new, 1)
        if query != task.query and answer(task.database, query) != expected:
            yield query


def answer(database: str, query: str) -> Rows | str:
    """The rows in order, or why there are none."""
    try:
        return sorted(run_query(database, query), key=repr)
    except sqlite3.Error as error:
        return str(error)


def with_wrong_queries(tasks: list[Task], seed: int) -> list[Task]:
    """Every second task begins with a wrong query."""
    chance = random.Random(f"{seed} wrong")
    by_name = {schema.name: schema for schema in TRAINING}
    return [
        task._replace(
            wrong_query=chance.choice(list(wrong_queries(task, by_name[Path(task.database).stem])))
        )
        if place % 2
        else task
        for place, task in enumerate(tasks)
    ]


def assert_disjoint(training: list[Task], held_out: list[Task]) -> None:
    """Raises AssertionError when the two share a database, a word of one, or a wording."""
    pairs = {
        "databases": [{task.database for task in tasks} for tasks in (training, held_out)],
        "wordings": [{task.wording for task in tasks} for tasks in (training, held_out)],
        "tables, columns or values": [
            {
                word
                for schema in schemas(split)
                for word in (schema.parents, schema.items, *schema.columns, *schema.categories)
            }
            | set(itertools.chain(*WORDS[split]))
            for split in ("train", "heldout")
        ],
    }
    for what, (left, right) in pairs.items():
        if left & right:
            raise AssertionError(
                f"training and held-out questions share {what}: {sorted(left & right)[:5]}"
            )


def write_tasks(
    folder: Path, seed: int, training: int, held_out: int, warm: int
) -> dict[str, Path]:
    """Write databases and task files; the files by name."""
    databases = (folder / "databases").resolve()
    databases.mkdir(parents=True, exist_ok=True)
    files = {
        schema.name: make_database(schema, split, databases)
        for split in ("train", "heldout")
        for schema in schemas(split)
    }
    drawn = make_tasks("train", training + warm, seed, files)
    tasks = {
        "train": drawn[warm:],
        "warm": with_wrong_queries(drawn[:warm], seed),
        "heldout": make_tasks("heldout", held_out, seed, files),
    }
    assert len(HELD_OUT) + len(TRAINING) == len(files)
    assert_disjoint(drawn, tasks["heldout"])
    written = {name: folder / f"{name}.jsonl" for name in tasks}
    for name, file in written.items():
        file.write_text("".join(task.to_json() + "\n" for task in tasks[name]), encoding="utf-8")
    return written


def main() -> None:
    """Write the task files."""
    parser = argparse.ArgumentParser(description="Write questions and databases.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training", type=int, default=1000, help="number of training questions")
    parser.add_argument("--held-out", type=int, default=240, help="number of held-out questions")
    parser.add_argument("--warm", type=int, default=WARM, help="questions of the warm start")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    written = write_tasks(
        options.out, options.seed, options.training, options.held_out, options.warm
    )
    for path in written.values():
        print(path)


if __name__ == "__main__":
    main()
