"""What a calculator episode is paid: 1 only if the expression is right *and* the answer is the
tool's result.

`score` gives the reward and, beside it, its two components, to be recorded apart (`--weight
expression_right=0 --weight answer_follows=0`): a reward that rises while no tool is called is a bug
found. All read nothing but the recorded episode.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from fulgurite import EpisodeView


def score(episode: EpisodeView) -> dict[str, float]:
    """`reward`: 1.0 if the model wrote the right expression for the calculator and answered with
    the calculator's result, else 0.0.
    """
    parts = {
        "expression_right": expression_right(episode),
        "answer_follows": answer_follows(episode),
    }
    return {**parts, "reward": parts["expression_right"] * parts["answer_follows"]}


def expression_right(episode: EpisodeView) -> float:
    """1.0 if the only tool call of the episode is `calc` with an expression that means the
    reference.
    """
    calls: list[Any] = []
    for message in own_turns(episode):
        calls.extend(message.get("tool_calls") or ())
    if len(calls) != 1 or calls[0]["function"]["name"] != "calc":
        return 0.0
    try:
        written = str(json.loads(calls[0]["function"]["arguments"])["expression"])
    except (ValueError, KeyError, TypeError):
        return 0.0
    return float(same_meaning(written, episode.task["reference"]["expression"]))


def answer_follows(episode: EpisodeView) -> float:
    """1.0 if the last turn is `answer: N` where N is what the tool has just said."""
    turns = own_turns(episode)
    results = [str(message.get("content")) for message in turns if message.get("role") == "tool"]
    found = re.fullmatch(r"\s*answer:\s*(-?\d+)\s*\.?\s*", episode.final_text())
    return float(found is not None and bool(results) and found[1] == results[-1])


def own_turns(episode: EpisodeView) -> list[dict[str, Any]]:
    """What came after the question: the earlier turns are the agent's worked examples."""
    messages = episode.messages
    asked = max(
        (place for place, message in enumerate(messages) if message.get("role") == "user"),
        default=-1,
    )
    return messages[asked + 1 :]


def same_meaning(written: str, reference: str) -> bool:
    """Whether two expressions are equal up to blanks, brackets and the order of the terms of a sum,
    difference or product.
    """
    try:
        return _normal(ast.parse(written.strip(), mode="eval").body) == _normal(
            ast.parse(reference, mode="eval").body
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _normal(node: ast.expr) -> str:
    """The same text for expressions that differ in blanks, brackets and order only."""
    match node:
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            return f"sum({' '.join(sorted(_terms(node)))})"
        case ast.BinOp(op=ast.Mult()):
            return f"product({' '.join(sorted(_factors(node)))})"
        case ast.BinOp():
            sides = f"{_normal(node.left)} {_normal(node.right)}"
            return f"{type(node.op).__name__}({sides})"
        case _:
            return ast.dump(node)


def _terms(node: ast.expr, sign: str = "+") -> list[str]:
    """The terms of a sum or difference, each with its sign."""
    match node:
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as operator, right=right):
            turned = {"+": "-", "-": "+"}[sign] if isinstance(operator, ast.Sub) else sign
            return _terms(left, sign) + _terms(right, turned)
        case _:
            return [sign + _normal(node)]


def _factors(node: ast.expr) -> list[str]:
    match node:
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _factors(left) + _factors(right)
        case _:
            return [_normal(node)]
