"""Names say what a thing is: no pronouns, riddles or metaphors (CONTRIBUTING.md, Language)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RIDDLES = frozenset({"desk", "scene", "told", "tell", "anew", "riddle", "gathered"})
"""Words of earlier names that a reader had to decode."""


def words_of(name: str) -> set[str]:
    """The words of a name in snake case or camel case, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("package", ["fulgurite", "services"])
def test_classes_and_functions_have_names_that_say_what_they_are(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and words_of(node.name) & RIDDLES
    ]
    assert not found, "rename these: " + ", ".join(found)


def test_words_of_a_name_are_told_apart() -> None:
    assert words_of("_tellHTTPError2") == {"tell", "http", "error2"}
    assert words_of("told_settings") == {"told", "settings"}
    assert words_of("TopicTail") == {"topic", "tail"}
