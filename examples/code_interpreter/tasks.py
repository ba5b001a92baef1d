"""Questions that a line of Python answers, and questions that need none.

Training and held-out questions share neither a wording nor a number nor a word, which is asserted
whenever the files are written. The agent sees `question`; `reference` (the answer, and the program
where one is needed) is for the reward function and never reaches it.

    python tasks.py --seed 0 --out DIR    writes DIR/{train,warm,heldout}.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

NAMES = {
    "train": ("Ann", "Ben", "Carla", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jack"),
    "heldout": ("Lena", "Max", "Nora", "Omar", "Pia", "Ruth"),
}
WORDS = {
    "train": ("banana", "committee", "elephant", "mississippi", "parallel", "tomorrow"),
    "heldout": ("successful", "bookkeeper", "cinnamon", "referee", "excellence"),
}  # fmt: skip


class Kind(NamedTuple):
    """A kind of question: how it is asked in training and in the examination, and the program."""

    training: str
    held_out: str
    program: str | None
    """None where the answer stands in the question: it is `a`."""


KINDS = (
    Kind(
        "What is the sum of all numbers from 1 to {a} that can be divided by {k}?",
        "Add up every number up to {a} that is a multiple of {k}.",
        "sum(range({k}, {a} + 1, {k}))",
    ),
    Kind(
        "How many numbers from 1 to {a} can be divided by {k}?",
        "Count the multiples of {k} up to {a}.",
        "len(range({k}, {a} + 1, {k}))",
    ),
    Kind("What is {a} times {b}?", "Multiply {a} by {b}.", "{a} * {b}"),
    Kind(
        "What is left when {a} is divided by {k}?",
        "Find the remainder of {a} divided by {k}.",
        "{a} % {k}",
    ),
    Kind(
        "What is the sum of {a}, {b}, {c} and {d}?",
        "Add up {a}, {b}, {c} and {d}.",
        "sum([{a}, {b}, {c}, {d}])",
    ),
    Kind(
        "What is the sum of the digits of {a}{b}?",
        "Add up the digits of {a}{b}.",
        "sum(int(x) for x in '{a}{b}')",
    ),
    Kind(
        "How often does the letter {letter} occur in {word}?",
        "Count the letter {letter} in the word {word}.",
        "'{word}'.count('{letter}')",
    ),
    Kind(
        "{name} has the number {a} and {other} the number {b}. What is the number of {name}?",
        "The room of {name} is {a}, the room of {other} is {b}. Which room has {name}?",
        None,
    ),
    Kind(
        "{other} is {b} years old, {name} weighs {a} pounds. How many pounds does {name} weigh?",
        "{other} owns {b} coins, and {name} scored {a} points. How many points has {name}?",
        None,
    ),
    Kind(
        "{name} lives at {a} {word} Street. What is the house number of {name}?",
        "The locker of {name}, {word}, opens with {a}. What opens it?",
        None,
    ),
)


class Task(NamedTuple):
    """A question and its answer."""

    question: str
    kind: Kind
    numbers: tuple[int, ...]
    words: tuple[str, ...]
    program: str | None
    answer: str

    def to_json(self) -> str:
        """One line of a tasks file."""
        reference = {"answer": self.answer, "program": self.program}
        return json.dumps({"question": self.question, "reference": reference})


def split_of(number: int) -> str:
    """The side a number belongs to: a third of all numbers is held out."""
    return "heldout" if number % 3 == 0 else "train"


def make_task(kind: Kind, split: str, chance: random.Random, value: Callable[[str], Any]) -> Task:
    """A question of this kind; `value` works a program out."""

    def number(low: int, high: int) -> int:
        return chance.choice([n for n in range(low, high + 1) if split_of(n) == split])

    name, other = chance.sample(NAMES[split], 2)
    word = chance.choice(WORDS[split])
    a, b, c, d, k = (*(number(23, 999) for _ in range(4)), number(4, 19))
    values = {
        "a": a, "b": b, "c": c, "d": d, "k": k, "word": word, "letter": chance.choice(word),
        "name": name, "other": other,
    }  # fmt: skip
    program = None if kind.program is None else kind.program.format(**values)
    wording = kind.training if split == "train" else kind.held_out
    return Task(
        wording.format(**values),
        kind,
        (a, b, c, d, k),
        (word, name, other),
        program,
        str(a if program is None else value(program)),
    )


def make_tasks(split: str, count: int, seed: int) -> list[Task]:
    """Distinct questions of a split, all kinds about equally often, in an order that mixes them."""
    chance = random.Random(f"{seed} {split}")
    tasks: dict[str, Task] = {}
    while len(tasks) < count:
        for kind in KINDS:
            # The programs are those above, and no one else's.
            task = make_task(kind, split, chance, eval)
            tasks.setdefault(task.question, task)
    mixed = list(tasks.values())
    chance.shuffle(mixed)
    return mixed[:count]


def assert_disjoint(training: list[Task], held_out: list[Task]) -> None:
    """Raises AssertionError when a wording, a number or a word is on both sides."""
    sides: list[tuple[str, Callable[[Task], set[Any]]]] = [
        ("numbers", lambda task: set(task.numbers)),
        ("words", lambda task: set(task.words)),
        ("questions", lambda task: {task.question}),
    ]
    for what, of in sides:
        left, right = (
            {value for task in tasks for value in of(task)} for tasks in (training, held_out)
        )
        if left & right:
            raise AssertionError(
                f"training and held-out questions share {what}: {sorted(left & right)[:5]}"
            )
    if {kind.training for kind in KINDS} & {kind.held_out for kind in KINDS}:
        raise AssertionError("training and held-out questions share a wording")


def write_tasks(
    folder: Path, seed: int, training: int, held_out: int, warm: int
) -> dict[str, Path]:
    """Write the task files; the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = make_tasks("train", training + warm, seed)
    tasks = {
        "train": drawn[warm:],
        "warm": drawn[:warm],
        "heldout": make_tasks("heldout", held_out, seed),
    }
    assert_disjoint(drawn, tasks["heldout"])
    written = {name: folder / f"{name}.jsonl" for name in tasks}
    for name, path in written.items():
        path.write_text("".join(task.to_json() + "\n" for task in tasks[name]), encoding="utf-8")
    return written


def main() -> None:
    """Write the task files."""
    parser = argparse.ArgumentParser(description="Write questions with and without a program.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training", type=int, default=1500, help="number of training questions")
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
