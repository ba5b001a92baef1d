"""Chains of five instructions. Training and held-out chains share no operand.

python tasks.py --seed 0 --out DIR        writes DIR/train.jsonl and DIR/heldout.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

STEPS = 5
LARGEST = 900
WORDINGS = {
    "+": ("Add {}", "Add {}", "{} more come in"),
    "-": ("Take away {}", "Take away {}", "{} of them go"),
    "*": ("Multiply by {}", "Multiply by {}", "Take that {} times"),
}
"""Two of three instructions are worded as in the agent's example. With other words alone a small
model succeeds once in a hundred chains, and a reward at the end tells it nothing.
"""


def operands(split: str, low: int, high: int) -> list[int]:
    """The numbers of a split: each third one is held out."""
    return [n for n in range(low, high + 1) if (n % 3 == 0) == (split == "heldout")]


def make_task(split: str, chance: random.Random) -> dict[str, Any]:
    """A chain whose values stay between 1 and LARGEST."""
    start = value = chance.choice(operands(split, 11, 60))
    steps: list[str] = []
    expressions: list[str] = []
    while len(steps) < STEPS:
        operator = chance.choice("++--*")
        operand = chance.choice(
            operands(split, 2, 6) if operator == "*" else operands(split, 5, 60)
        )
        following = {"+": value + operand, "-": value - operand, "*": value * operand}[operator]
        if not 1 <= following <= LARGEST:
            continue
        expressions.append(f"{value}{operator}{operand}")
        steps.append(chance.choice(WORDINGS[operator]).format(operand))
        value = following
    return {
        "start": start,
        "steps": steps,
        "reference": {"expressions": expressions, "answer": value},
    }


def make_tasks(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Distinct chains of a split."""
    chance = random.Random(f"{seed} {split}")
    tasks: dict[str, dict[str, Any]] = {}
    while len(tasks) < count:
        task = make_task(split, chance)
        tasks.setdefault(json.dumps(task), task)
    return list(tasks.values())


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description="Write train.jsonl and heldout.jsonl.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=210)
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 2000), ("heldout", options.held_out)):
        lines = "".join(json.dumps(t) + "\n" for t in make_tasks(split, count, options.seed))
        (options.out / f"{split}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
