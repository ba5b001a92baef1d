"""Find the program of an agent's command."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from services.common.processes.fork_server import Program
from services.runner.errors import BadCommand


def find_program(command: Sequence[str], path: str | None, preload: bool) -> Program:
    """Look a command up on this PATH. Raises BadCommand."""
    if not command:
        raise BadCommand(
            "no command: put the agent's command after `--`, for example `-- python agent.py`"
        )
    executable = shutil.which(command[0], path=path)
    if executable is None:
        raise BadCommand(f"{command[0]}: no such program on PATH={path}")
    if not preload:
        return Program((executable, *command[1:]))
    if not Path(command[0]).name.startswith("python") or len(command) < 2:
        raise BadCommand(
            "--preload needs a command of the form `python FILE [arguments]` or `python -m "
            "MODULE [arguments]`"
        )
    if command[1] == "-m" and len(command) > 2:
        return Program(tuple(command[3:]), executable, module=command[2])
    if command[1].startswith("-"):
        raise BadCommand(
            f"--preload cannot honour the Python option {command[1]}: give FILE or -m MODULE first"
        )
    if not Path(command[1]).is_file():
        raise BadCommand(f"{command[1]}: no such file")
    return Program(tuple(command[2:]), executable, script=command[1])
