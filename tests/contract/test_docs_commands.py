"""Commands that the pages show exist, with the options that they show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from services.cli.main import COMMANDS, app, load
from tests.contract.test_docs import ROOT, pages

ROOT_COMMAND: Any = typer.main.get_command(app)
BLOCK = re.compile(r"^ *```(?:bash|sh)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
COMPOSE = {"docker", "compose", "run", "--rm", "cli"}
WRITTEN = sorted(page for page in pages() if "CHANGELOG" not in page.name)


def shown_commands(page: Path) -> list[list[str]]:
    """The words of each `fulgurite` and `make` command in a page's shell blocks, without what
    stands before it.
    """
    lines = [
        line
        for block in BLOCK.findall(page.read_text())
        for line in re.sub(r"\\\n", " ", block).splitlines()
    ]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[at:] for words in split for at in [begin_of_command(words)] if at is not None]


def begin_of_command(words: list[str]) -> int | None:
    """Where our command begins, if only variables and a container to run it in stand before it."""
    at = next((place for place, word in enumerate(words) if word in ("fulgurite", "make")), None)
    return (
        at
        if at is not None and all("=" in word or word in COMPOSE for word in words[:at])
        else None
    )


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and the words after its name."""
    command: Any = load(words[1]) if words[1] in COMMANDS else ROOT_COMMAND
    rest = words[2:] if words[1] in COMMANDS else words[1:]
    while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
        found = command.get_command(None, rest[0])
        assert found is not None, f"fulgurite has no command {rest[0]!r}"
        command, rest = found, rest[1:]
    return command, rest


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_shown_commands_exist_with_their_options(page: Path) -> None:
    for words in shown_commands(page):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= TARGETS, words
            continue
        command, rest = resolve(words)
        own = rest[: rest.index("--")] if "--" in rest else rest
        known = {
            name
            for parameter in command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
        } | {"--help"}
        unknown = [
            word for word in own if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known
        ]
        assert not unknown, (words, unknown)


def test_commands_were_found() -> None:
    found = [words for page in WRITTEN for words in shown_commands(page)]
    assert sum(words[0] == "fulgurite" for words in found) > 20
    assert ["make", "up"] in found
