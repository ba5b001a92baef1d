"""Questions that take two searches (a city's country has a capital) or three (an airport's city).

Training and held-out questions share neither an entity nor a wording, which is asserted whenever
the files are written. One property, the calling code, is in no training question: `stretch.jsonl`
asks for it. Each question can be answered by the expert's searches; that is tried. The agent sees
`question` and `knowledge`; `reference` is for the reward function and never reaches it.

    python tasks.py --out DIR    writes DIR/{train,warm,heldout,stretch}.jsonl and DIR/knowledge.db
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from knowledge import PROPERTIES, Entity, Knowledge, build, queries_of, read_knowledge, search

MOST_OF_A_COUNTRY = 0.05
"""Share of the questions: two of three airports are American, and a guess shall not pay."""
STRETCH = "calling code"
TRAINING = tuple(what for what in PROPERTIES if what != STRETCH)
WORDINGS = {
    "train": (
        "What is the {what} of the country that {name} is in?",
        "{name} is in a country. What is its {what}?",
    ),
    "heldout": ("Find the {what} of the country where {name} lies.",),
}


class Task(NamedTuple):
    """A question, and the way to its answer."""

    question: str
    entity: Entity
    what: str
    wording: str
    answer: str
    knowledge: Path
    queries: tuple[str, ...]
    passages: tuple[str, ...]
    """What these queries find."""

    def to_json(self) -> str:
        """One line of a tasks file."""
        return json.dumps(
            {
                "question": self.question,
                "knowledge": str(self.knowledge),
                "reference": {
                    "answer": self.answer,
                    "queries": self.queries,
                    "passages": self.passages,
                },
            }
        )


def split_of(entity: Entity) -> str:
    """The side of an entity: a third is held out."""
    return "heldout" if zlib.crc32(entity.name.encode()) % 3 == 0 else "train"


def is_answerable(task: Task) -> bool:
    """Whether each search finds the passage that it is for."""
    *ways, last = task.passages
    bridges = [*task.entity.path[1:], task.entity.country]
    return last == f"The {task.what} of {task.entity.country} is {task.answer}." and all(
        passage.startswith(f"{name} is ") and f" in {bridge}." in passage
        for name, bridge, passage in zip(task.entity.path, bridges, ways, strict=True)
    )


def make_tasks(
    knowledge: Knowledge,
    file: Path,
    split: str,
    count: int,
    seed: int,
    properties: tuple[str, ...] = TRAINING,
) -> list[Task]:
    """Questions of a split, each about another city or airport. Raises ValueError if there are not
    as many.
    """
    chance = random.Random(f"{seed} {split} {properties}")
    entities = [entity for entity in knowledge.entities if split_of(entity) == split]
    by_kind = [
        chance.sample(of_kind, len(of_kind))
        for kind in ("city", "airport")
        if (of_kind := [entity for entity in entities if entity.kind == kind])
    ]
    tasks: list[Task] = []
    asked: Counter[str] = Counter()
    for pair in zip(*by_kind, strict=False):
        for entity in pair:
            if asked[entity.country] >= count * MOST_OF_A_COUNTRY:
                continue
            what, wording = chance.choice(properties), chance.choice(WORDINGS[split])
            queries = tuple(queries_of(entity, what))
            task = Task(
                wording.format(what=what, name=entity.name),
                entity,
                what,
                wording,
                knowledge.properties[entity.country][what],
                file,
                queries,
                tuple(search(str(file), query) for query in queries),
            )
            if is_answerable(task):
                tasks.append(task)
                asked[entity.country] += 1
        if len(tasks) >= count:
            return tasks[:count]
    raise ValueError(f"there are only {len(tasks)} questions for {split}, not {count}")


def assert_disjoint(training: list[Task], held_out: list[Task]) -> None:
    """Raises AssertionError when an entity or a wording is on both sides."""
    for what, left, right in (
        ("entities", {t.entity.name for t in training}, {t.entity.name for t in held_out}),
        ("wordings", {t.wording for t in training}, {t.wording for t in held_out}),
    ):
        if left & right:
            raise AssertionError(
                f"training and held-out questions share {what}: {sorted(left & right)[:5]}"
            )


def write_tasks(
    folder: Path, seed: int, training: int, held_out: int, warm: int
) -> dict[str, Path]:
    """Write the knowledge base and the task files; the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    knowledge, file = read_knowledge(), (folder / "knowledge.db").resolve()
    build(knowledge, file)
    drawn = make_tasks(knowledge, file, "train", training + warm, seed)
    tasks = {
        "train": drawn[warm:],
        "warm": drawn[:warm],
        "heldout": make_tasks(knowledge, file, "heldout", held_out, seed),
        "stretch": make_tasks(knowledge, file, "heldout", held_out, seed, (STRETCH,)),
    }
    assert_disjoint(drawn, tasks["heldout"] + tasks["stretch"])
    written = {name: folder / f"{name}.jsonl" for name in tasks}
    for name, path in written.items():
        path.write_text("".join(task.to_json() + "\n" for task in tasks[name]), encoding="utf-8")
    return written


def main() -> None:
    """Write the task files."""
    parser = argparse.ArgumentParser(description="Write a knowledge base and questions about it.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training", type=int, default=1000, help="number of training questions")
    parser.add_argument("--held-out", type=int, default=210, help="number of held-out questions")
    parser.add_argument("--warm", type=int, default=48, help="questions of the warm start")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    written = write_tasks(
        options.out, options.seed, options.training, options.held_out, options.warm
    )
    for path in written.values():
        print(path)


if __name__ == "__main__":
    main()
