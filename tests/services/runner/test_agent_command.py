"""Commands of agents: which program they name, and which are refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from services.runner.agent_command import find_program
from services.runner.errors import BadCommand

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("command", "preload", "words"),
    [
        ([], False, "no command"),
        (["no-such-program"], False, "no such program"),
        (["sleep", "1"], True, "--preload needs"),
        (["python"], True, "--preload needs"),
        (["python", "-u", "agent.py"], True, "-u"),
        (["python", "/no/such/agent.py"], True, "no such file"),
    ],
)
def test_commands_that_cannot_be_started_are_refused(
    command: list[str], preload: bool, words: str
) -> None:
    with pytest.raises(BadCommand, match=words):
        find_program(command, PATH, preload)
