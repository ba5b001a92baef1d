"""Reads `example.toml`: an agent with its tasks and rewards, which the demo can train and measure.

    title = "Calculator agent"
    agent = "agent.py"                      # gets its task as `fulgurite run` gives it
    tasks = "tasks.py"                      # writes train.jsonl and heldout.jsonl
    reward = "rewards.py:score"
    recorded = ["expression_right"]         # further rewards that it returns, of weight 0
    preload = ["openai"]

Files are named relative to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from services.local_stack.errors import SettingsInvalid


class Example(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One example. Paths are absolute once it is read."""

    title: str
    agent: Path
    agent_arguments: tuple[str, ...] = ()
    """All but `--temperature`, which the demo adds for an evaluation."""
    tasks: Path
    """A program with the options `--seed`, `--held-out` and `--out FOLDER`."""
    reward: str
    """`FILE.py:FUNCTION`"""
    recorded: tuple[str, ...] = ()
    """Names of rewards that are only recorded."""
    credit_rule: str | None = None
    group_size: int = 6
    preload: tuple[str, ...] = ()
    run: Path | None = None
    """The run file of the training; without it, the defaults."""


def _as_path(_type: type, value: Any) -> Path:
    """Convert to the only type here that TOML does not have."""
    return Path(value)


def read_example(file: Path) -> Example:
    """Read the file. Raises SettingsInvalid."""
    try:
        example = msgspec.toml.decode(file.read_bytes(), type=Example, dec_hook=_as_path)
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingsInvalid(f"{file}: {error}") from error
    folder = file.resolve().parent
    return msgspec.structs.replace(
        example,
        agent=folder / example.agent,
        tasks=folder / example.tasks,
        reward=str(folder / example.reward),
        run=folder / example.run if example.run is not None else None,
    )
