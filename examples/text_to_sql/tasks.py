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
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from database import Rows, run_query
from tables import HELD_OUT, TRAINING, WORDS, Schema, make_database, schemas

MOST_TRIES = 50
"""For each question that is wanted: some kinds have few, and soon give none that is new."""


class Kind(NamedTuple):
    """A kind of question: its query, and how it is asked in training and in the examination."""

    query: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]


KINDS = (
    Kind(
        "SELECT COUNT(*) FROM {items}",
        ("How many {items} are there?", "Count the {items}."),
        ("What is the number of {items}?",),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {category} = '{value}'",
        (
            "List the {label} of all {items} with {category} {value}.",
            "Which {items} have {category} {value}? Give the {label}.",
        ),
        ("Show the {label} of the {items} whose {category} is {value}.",),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {number} > {limit}",
        (
            "List the {label} of all {items} with {number} above {limit}.",
            "Which {items} have more {number} than {limit}? Give the {label}.",
        ),
        ("Show the {label} of the {items} whose {number} is greater than {limit}.",),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {number} < {limit}",
        (
            "List the {label} of all {items} with {number} below {limit}.",
            "Which {items} have less {number} than {limit}? Give the {label}.",
        ),
        ("Show the {label} of the {items} whose {number} is smaller than {limit}.",),
    ),
    Kind(
        "SELECT {function}({number}) FROM {items}",
        ("What is the {word} {number} of all {items}?", "Give the {word} {number} of the {items}."),
        ("Find the {word} {number} among the {items}.",),
    ),
    Kind(
        "SELECT {label} FROM {items} ORDER BY {number} {order} LIMIT 1",
        (
            "Which of the {items} has the {superlative} {number}? Give the {label}.",
            "Give the {label} of the {items} with the {superlative} {number}.",
        ),
        ("Name the {label} that has the {superlative} {number} of all {items}.",),
    ),
    Kind(
        "SELECT {category}, COUNT(*) FROM {items} GROUP BY {category}",
        ("How many {items} are there for each {category}?", "Count the {items} by {category}."),
        ("Show each {category} with its number of {items}.",),
    ),
    Kind(
        "SELECT COUNT(*) FROM {items} WHERE {category} = '{value}'",
        (
            "How many {items} have {category} {value}?",
            "Count the {items} with {category} {value}.",
        ),
        ("What is the number of {items} whose {category} is {value}?",),
    ),
    Kind(
        "SELECT {label} FROM {items} JOIN {parents} ON {reference} = {parents}.id "
        "WHERE {parent_label} = '{owner}'",
        (
            "List the {label} of all {items} of the {parent} {owner}.",
            "Which {items} belong to the {parent} {owner}? Give the {label}.",
        ),
        ("Show the {label} of the {items} whose {parent} is {owner}.",),
    ),
    Kind(
        "SELECT COUNT(*) FROM {items} JOIN {parents} ON {reference} = {parents}.id "
        "WHERE {parent_label} = '{owner}'",
        (
            "How many {items} does the {parent} {owner} have?",
            "Count the {items} of the {parent} {owner}.",
        ),
        ("What is the number of {items} whose {parent} is {owner}?",),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {category} = '{value}' AND {number} > {limit}",
        (
            "List the {label} of all {items} with {category} {value} and {number} above {limit}.",
            "Which {items} have {category} {value} and more {number} than {limit}? Give the "
            "{label}.",
        ),
        (
            "Show the {label} of the {items} whose {category} is {value} and whose {number} is "
            "greater than {limit}.",
        ),
    ),
    Kind(
        "SELECT {label} FROM {items} WHERE {number} > (SELECT AVG({number}) FROM {items})",
        (
            "List the {label} of all {items} with {number} above the average.",
            "Which {items} have more {number} than the average? Give the {label}.",
        ),
        ("Show the {label} of the {items} whose {number} is greater than the mean.",),
    ),
    Kind(
        "SELECT {category} FROM {items} GROUP BY {category} HAVING COUNT(*) > {few}",
        (
            "Which {category} has more than {few} {items}?",
            "List each {category} with more than {few} {items}.",
        ),
        ("Show every {category} that is given to over {few} {items}.",),
    ),
)

FUNCTIONS = {"MAX": "largest", "MIN": "smallest", "AVG": "average", "SUM": "total"}
ORDERS = {"DESC": "highest", "ASC": "lowest"}


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
    """A question of this kind; None if its answer is empty."""
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
    if run_query(str(file), query) in ([], [(0,)]):
        return None
    wording = chance.choice(kind.training if split == "train" else kind.held_out)
    return Task(wording.format(**values), str(file), query, wording)


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
    parser.add_argument("--warm", type=int, default=96, help="questions of the warm start")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    written = write_tasks(
        options.out, options.seed, options.training, options.held_out, options.warm
    )
    for path in written.values():
        print(path)


if __name__ == "__main__":
    main()
