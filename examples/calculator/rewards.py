"""What a calculator episode is paid: 1 only if the expression is right *and* the answer is the tool's result.

`score` is the reward that is trained on. Its two components are functions of their own, so that they can be logged apart:
a reward that rises while no tool is called is a bug found. All read nothing but the recorded episode.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, cast

from fulgurite.events import Episode
from fulgurite.kinds import CallOutcome


def score(episode: Episode) -> float:
    """1.0 if the model wrote the right expression for the calculator and answered with the calculator's result, else 0.0."""
    return expression_right(episode) * answer_follows(episode)


def expression_right(episode: Episode) -> float:
    """1.0 if the only tool call of the episode is `calc` with an expression that means the reference."""
    called: list[Any] = [call for message in _answers(episode) for call in cast(list[Any], message.get("tool_calls") or [])]
    if len(called) != 1 or episode.declaration is None:
        return 0.0
    try:
        function = called[0]["function"]
        written = str(json.loads(function["arguments"])["expression"])
        reference = str(json.loads(episode.declaration.task)["reference"]["expression"])
    except (ValueError, KeyError, TypeError):
        return 0.0
    return float(function["name"] == "calc" and same_meaning(written, reference))


def answer_follows(episode: Episode) -> float:
    """1.0 if the last turn is `answer: N` where N is what the tool had said."""
    answers = _answers(episode)
    if len(answers) < 2:
        return 0.0
    results = [str(message.get("content")) for message in _prompt(episode) if message.get("role") == "tool"]
    found = re.fullmatch(r"\s*answer:\s*(-?\d+)\s*\.?\s*", str(answers[-1].get("content") or ""))
    return float(found is not None and bool(results) and found[1] == results[-1])


def same_meaning(written: str, reference: str) -> bool:
    """Whether two expressions are equal up to blanks and the order of the terms of a sum or product."""
    try:
        return _normal(ast.parse(written.strip(), mode="eval").body) == _normal(ast.parse(reference, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _normal(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp):
        sides = [_normal(node.left), _normal(node.right)]
        if isinstance(node.op, ast.Add | ast.Mult):
            sides.sort()
        return f"({type(node.op).__name__} {' '.join(sides)})"
    return ast.dump(node)


def _answers(episode: Episode) -> list[dict[str, Any]]:
    """The model's own messages of this episode, in order."""
    messages = [
        choice.message for call in episode.calls if call.outcome is CallOutcome.success for choice in call.choices[:1] if choice.message
    ]
    return [cast(dict[str, Any], json.loads(message)) for message in messages]


def _prompt(episode: Episode) -> list[dict[str, Any]]:
    """The messages that the last call was given."""
    return cast(list[dict[str, Any]], json.loads(episode.calls[-1].request or "{}").get("messages", []))
