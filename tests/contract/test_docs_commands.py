"""Commands that the pages show exist, and take the options and arguments that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from services.cli.main import COMMANDS, app, load
from tests.contract.test_docs import ROOT, pages

ROOT_COMMAND: Any = typer.main.get_command(app)
BLOCK = re.compile(r"^ *```(?:bash|sh)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}(?:\$ )?(?=fulgurite |make )(.*)$", re.MULTILINE)
"""A command in a block without a language."""
EXPANSION = re.compile(r"\$\{[^}]*\}")
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
CONTAINERS = {"docker": "cli", "kubectl": "--"}
"""Programs that run our commands in a container, and the word before such a command."""
WRITTEN = sorted(page for page in pages() if "CHANGELOG" not in page.name)


def shown_commands(page: Path) -> list[list[str]]:
    """The words of each `fulgurite` and `make` command that a page shows, without what stands
    before it.
    """
    text = page.read_text()
    shown = "\n".join([*BLOCK.findall(text), *INDENTED.findall(BLOCK.sub("", text))])
    return [
        words[at:]
        for line in re.sub(r"\\\n", " ", shown).splitlines()
        for words in commands_in(line)
        for at in [begin_of_command(words)]
        if at is not None
    ]


def commands_in(line: str) -> Iterator[list[str]]:
    """The words of each command in a line: of `a | b`, `a > file; b` and `eval "$(a)"` both."""
    for inner in SUBSTITUTION.findall(line):
        yield from commands_in(inner)
    words = shlex.shlex(EXPANSION.sub("$X", line), posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    command: list[str] = []
    is_target = False
    for word in words:
        if set(word) <= set("<>"):
            is_target = True
        elif set(word) <= set("|&;"):
            yield command
            command = []
        elif not is_target:
            command.append(word)
        else:
            is_target = False
    yield command


def begin_of_command(words: list[str]) -> int | None:
    """Where our command begins, if only variables and a container to run it in stand before it."""
    for place, word in enumerate(words):
        if word == "make" or word.rsplit("/", 1)[-1] == "fulgurite":
            before = [other for other in words[:place] if "=" not in other]
            is_ours = not before or CONTAINERS.get(before[0]) == before[-1]
            return place if is_ours else None
    return None


def problem_of(words: list[str]) -> str | None:
    """What the command line says against a `fulgurite` command, which is not run."""
    try:
        command, name, rest = resolve(words[1:])
        command.make_context(name, rest)
    except typer.Exit:
        return None
    except typer.TyperException as error:
        # A placeholder such as FORMAT is no value; that there is one is right.
        is_placeholder = any(word.isupper() and f"'{word}'" in str(error) for word in words)
        return None if is_placeholder else str(error)
    return None


def resolve(words: list[str]) -> tuple[Any, str, list[str]]:
    """The command that the words name, its name, and the words after it. Raises TyperException."""
    command: Any = load(words[0]) if words[0] in COMMANDS else ROOT_COMMAND
    name, rest = ("fulgurite", words) if command is ROOT_COMMAND else (words[0], words[1:])
    while hasattr(command, "resolve_command") and rest and not rest[0].startswith("-"):
        name, command, rest = command.resolve_command(command.context_class(command), rest)
    return command, name, rest


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_shown_commands_are_taken_as_they_are(page: Path) -> None:
    for words in shown_commands(page):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= TARGETS, words
            continue
        assert problem_of(words) is None, (words, problem_of(words))


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("policy list warm", "unexpected extra argument"),
        ("policy lisst", "No such command 'lisst'"),
        ("polcy list", "No such command 'polcy'"),
        ("policy list --polcy warm", "No such option: --polcy"),
        ("policy list --last many", "should be a valid integer"),
        ("policy pull warm", "Missing parameter: folder"),
        ("policy list --policy warm", None),
        ("run --tasks t.jsonl -n 6 --reward r.py:f -- python agent.py --own", None),
        ("--version", None),
    ],
)
def test_a_command_that_would_be_refused_is_found(command: str, problem: str | None) -> None:
    found = problem_of(["fulgurite", *shlex.split(command)])
    assert found is None if problem is None else problem in str(found)


def test_commands_of_a_line_are_told_apart() -> None:
    assert list(commands_in('eval "$(fulgurite env)"; a > b # c')) == [
        ["fulgurite", "env"],
        ["eval", "$(fulgurite env)"],
        ["a"],
    ]
    assert list(commands_in("a 'x | y' | b &")) == [["a", "x | y"], ["b"], []]


def test_commands_were_found() -> None:
    found = [words for page in WRITTEN for words in shown_commands(page)]
    assert sum(words[0] == "fulgurite" for words in found) > 20
    assert ["make", "up"] in found


def test_examples_of_command_help_are_taken_as_they_are() -> None:
    shown = (ROOT / "docs" / "reference" / "cli.md").read_text()
    examples = re.findall(r"^Example: `([^`]+)`", shown, re.MULTILINE)
    assert len(examples) > 40
    problems = {
        shlex.join(words): problem_of(words)
        for example in examples
        for words in commands_in(example)
        if words and words[0] == "fulgurite"
    }
    assert not {words: problem for words, problem in problems.items() if problem}
