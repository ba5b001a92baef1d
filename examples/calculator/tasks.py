"""Word problems for the calculator agent, for training and for the held-out examination.

Training and held-out problems share neither a template nor a number: held-out templates say the
same things in other words, and every operand belongs to one side only (`split_of`). Both are
asserted whenever the files are written. What the agent sees of a task is its `question`;
`reference` is for the reward function and never reaches the agent.

    python tasks.py --seed 0 --out DIR        writes DIR/train.jsonl and DIR/heldout.jsonl

`--harder` asks for two operations, writes numbers as words, and tells what does not matter.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import NamedTuple

NAMES = (
    "Ann",
    "Ben",
    "Carla",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Iris",
    "Jack",
    "Lena",
    "Max",
    "Nora",
    "Omar",
    "Pia",
    "Ruth",
)
THINGS = (
    "apples",
    "books",
    "cards",
    "coins",
    "eggs",
    "keys",
    "marbles",
    "nuts",
    "pears",
    "shells",
    "stamps",
    "stones",
)


OPERANDS = "abc"
WORDS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen",
)  # fmt: skip
IN_WORDS = dict(enumerate(WORDS, 2))


class Template(NamedTuple):
    """A problem with places for a name, another name, a thing and up to three numbers (`a`, as a
    word `a_word`), and the expression that solves it.
    """

    text: str
    expression: str
    smallest: tuple[int, ...]
    largest: tuple[int, ...]


class Task(NamedTuple):
    """A problem and its solution."""

    question: str
    expression: str
    answer: int
    template: str
    numbers: tuple[int, ...]

    def to_json(self) -> str:
        """One line of a tasks file."""
        return json.dumps(
            {
                "question": self.question,
                "reference": {"expression": self.expression, "answer": self.answer},
            }
        )


def _sum(text: str) -> Template:
    return Template(text, "{a}+{b}", (11, 11), (99, 99))


def _difference(text: str) -> Template:
    return Template(text, "{a}-{b}", (51, 11), (99, 49))


def _product(text: str) -> Template:
    return Template(text, "{a}*{b}", (3, 11), (29, 59))


TRAINING = (
    _sum("{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?"),
    _sum("{name} has {a} {things} and {other} has {b}. How many {things} do they have together?"),
    _difference("{name} had {a} {things} and lost {b} of them. How many {things} are left?"),
    _difference(
        "{name} has {a} {things}. {other} has {b} fewer. How many {things} does {other} have?"
    ),
    _product("There are {a} boxes with {b} {things} in each. How many {things} are there in all?"),
    _product("{name} fills {a} bags. Each bag holds {b} {things}. How many {things} is that?"),
)

HELD_OUT = (
    _sum("{name} owns {a} {things} and gets another {b}. How many {things} does {name} own then?"),
    _sum(
        "{name} has {a} {things}. {other} has {b} {things}. How many {things} do {name} and "
        "{other} have in all?"
    ),
    _difference("{name} had {a} {things} and sold {b}. How many {things} does {name} still have?"),
    _difference(
        "{name} counted {a} {things}. {other} counted {b} less. How many {things} did {other} "
        "count?"
    ),
    _product(
        "A room has {a} shelves with {b} {things} on each. How many {things} are in the room?"
    ),
    _product(
        "{name} buys {a} packs. Every pack has {b} {things}. How many {things} did {name} buy?"
    ),
)

HARDER_TRAINING = (
    Template(
        "{name} has {a} {things}, finds {b} more and gives {c} away. How many {things} does {name} "
        "have now?",
        "{a}+{b}-{c}",
        (31, 11, 11),
        (99, 99, 29),
    ),
    Template(
        "{name} had {a} {things}, lost {b} of them and then {c} more. How many {things} are left?",
        "{a}-{b}-{c}",
        (61, 11, 11),
        (99, 29, 29),
    ),
    Template(
        "There are {a_word} boxes with {b} {things} in each, and {c} more {things} beside them. "
        "How many {things} are there in all?",
        "{a}*{b}+{c}",
        (2, 11, 11),
        (14, 59, 99),
    ),
    Template(
        "{name} fills {a_word} bags. Each bag holds {b} {things}. How many {things} is that?",
        "{a}*{b}",
        (2, 11),
        (14, 59),
    ),
    Template(
        "{name} is {c} years old. {name} has {a} {things} and finds {b} more. How many {things} "
        "does {name} have now?",
        "{a}+{b}",
        (11, 11, 5),
        (99, 99, 99),
    ),
    Template(
        "{c} children play. {name} has {a} {things}. {other} has {b} fewer. How many {things} does "
        "{other} have?",
        "{a}-{b}",
        (51, 11, 11),
        (99, 49, 99),
    ),
)

HARDER_HELD_OUT = (
    Template(
        "{name} owns {a} {things}, gets another {b} and sells {c}. How many {things} does {name} "
        "own then?",
        "{a}+{b}-{c}",
        (31, 11, 11),
        (99, 99, 29),
    ),
    Template(
        "{name} had {a} {things}, gave {b} to {other} and {c} to a friend. How many {things} does "
        "{name} still have?",
        "{a}-{b}-{c}",
        (61, 11, 11),
        (99, 29, 29),
    ),
    Template(
        "A room has {a_word} shelves with {b} {things} on each. {c} {things} lie on the floor. How "
        "many {things} are in the room?",
        "{a}*{b}+{c}",
        (2, 11, 11),
        (14, 59, 99),
    ),
    Template(
        "{name} buys {a_word} packs. Every pack has {b} {things}. How many {things} did {name} "
        "buy?",
        "{a}*{b}",
        (2, 11),
        (14, 59),
    ),
    Template(
        "{name} lives at number {c}. {name} owns {a} {things} and gets another {b}. How many "
        "{things} does {name} own then?",
        "{a}+{b}",
        (11, 11, 5),
        (99, 99, 99),
    ),
    Template(
        "It is {c} miles to the shop. {name} counted {a} {things} there. {other} counted {b} less. "
        "How many {things} did {other} count?",
        "{a}-{b}",
        (51, 11, 11),
        (99, 49, 99),
    ),
)

TEMPLATES = {
    ("train", False): TRAINING,
    ("heldout", False): HELD_OUT,
    ("train", True): HARDER_TRAINING,
    ("heldout", True): HARDER_HELD_OUT,
}


def split_of(number: int) -> str:
    """The side a number belongs to: a third of all numbers is held out."""
    return "heldout" if number % 3 == 0 else "train"


def make_task(template: Template, split: str, chance: random.Random) -> Task:
    """A problem from a template, with numbers of this split."""
    numbers = tuple(
        chance.choice([number for number in range(low, high + 1) if split_of(number) == split])
        for low, high in zip(template.smallest, template.largest, strict=True)
    )
    name, other = chance.sample(NAMES, 2)
    values: dict[str, object] = dict(zip(OPERANDS, numbers, strict=False))
    expression = template.expression.format(**values)
    values["a_word"] = IN_WORDS.get(numbers[0])
    question = template.text.format(name=name, other=other, things=chance.choice(THINGS), **values)
    # The expressions are those above, and no one else's.
    return Task(question, expression, eval(expression), template.text, numbers)


def make_tasks(split: str, count: int, seed: int, *, harder: bool = False) -> list[Task]:
    """Distinct problems of a split, all templates equally often, in an order that mixes them."""
    templates = TEMPLATES[split, harder]
    chance = random.Random(f"{seed} {split}")
    tasks: dict[str, Task] = {}
    while len(tasks) < count:
        task = make_task(templates[len(tasks) % len(templates)], split, chance)
        tasks.setdefault(task.question, task)
    mixed = list(tasks.values())
    chance.shuffle(mixed)
    return mixed


def assert_disjoint(training: list[Task], held_out: list[Task]) -> None:
    """Raises AssertionError when a template or an operand is on both sides."""
    for what, left, right in (
        ("templates", {task.template for task in training}, {task.template for task in held_out}),
        (
            "numbers",
            {n for task in training for n in task.numbers},
            {n for task in held_out for n in task.numbers},
        ),
    ):
        if left & right:
            raise AssertionError(
                f"training and held-out problems share {what}: {sorted(left & right)[:5]}"
            )


def write_tasks(
    folder: Path, seed: int, training: int, held_out: int, *, harder: bool = False, warm: int = 0
) -> tuple[Path, Path]:
    """Write both files; the paths of the training and the held-out problems. `warm`: how many of
    the training problems are in a third file, `warm.jsonl`, alone.
    """
    splits = {
        "train": make_tasks("train", training + warm, seed, harder=harder),
        "heldout": make_tasks("heldout", held_out, seed, harder=harder),
    }
    assert_disjoint(splits["train"], splits["heldout"])
    if warm:
        splits["warm"] = splits["train"][training:]
        splits["train"] = splits["train"][:training]
    folder.mkdir(parents=True, exist_ok=True)
    for split, tasks in splits.items():
        (folder / f"{split}.jsonl").write_text(
            "".join(task.to_json() + "\n" for task in tasks), encoding="utf-8"
        )
    return folder / "train.jsonl", folder / "heldout.jsonl"


def main() -> None:
    """Write the task files."""
    parser = argparse.ArgumentParser(description="Write train.jsonl and heldout.jsonl.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training", type=int, default=2000, help="number of training problems")
    parser.add_argument("--held-out", type=int, default=210, help="number of held-out problems")
    parser.add_argument("--warm", type=int, default=0, help="number of problems in warm.jsonl")
    parser.add_argument("--harder", action="store_true", help="two operations, words, distractions")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    for path in write_tasks(
        options.out,
        options.seed,
        options.training,
        options.held_out,
        harder=options.harder,
        warm=options.warm,
    ):
        print(path)


if __name__ == "__main__":
    main()
