"""Services that write an alias's route. An alias has one author of its shares."""

from __future__ import annotations

GATE = "fulgurite gate"
"""Author of a gate's routes."""
EVALUATION = "fulgurite eval"
"""Author of the routes that hold a version at the backends while it is evaluated."""


def evaluation_for(alias: str) -> str:
    """Author of such routes while the gate of an alias evaluates."""
    return f"{EVALUATION} for {GATE} {alias}"


def is_evaluation(author: str) -> bool:
    """Whether a route holds a version while it is evaluated."""
    return author == EVALUATION or author.startswith(f"{EVALUATION} for ")
