"""Reads `example.toml`: an agent with its tasks and rewards, which the demo can train and measure.

    title = "Calculator agent"
    agent = "agent.py"                      # gets its task as `fulgurite run` gives it
    tasks = "tasks.py"                      # writes train.jsonl and heldout.jsonl
    reward = "rewards.py:score"
    recorded = ["expression_right"]         # further rewards that it returns, of weight 0
    preload = ["openai"]
    requirements = "requirements.txt"       # packages of the agent, in an environment of their own

    [warm_start]                            # the base model learns from an expert first
    expert = "expert.py:answer"
    run = "warm.toml"

Files are named relative to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from services.local_stack.errors import SettingsInvalid


class WarmStart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the base model learns before there is any reward."""

    expert: str
    """`FILE.py:FUNCTION` that knows the answers; it answers the tasks of `warm.jsonl`."""
    run: Path
    """The run file of `fulgurite sft`."""


class Example(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One example. Paths are absolute once it is read."""

    title: str
    agent: Path
    agent_arguments: tuple[str, ...] = ()
    """All but `--temperature`, which the demo adds for an evaluation."""
    tasks: Path
    """A program with the options `--seed`, `--held-out` and `--out FOLDER`. It writes
    `train.jsonl`, `heldout.jsonl` and, for a warm start, `warm.jsonl`.
    """
    task_arguments: tuple[str, ...] = ()
    """Further options of that program."""
    reward: str
    """`FILE.py:FUNCTION`"""
    recorded: tuple[str, ...] = ()
    """Names of rewards that are only recorded."""
    credit_rule: str | None = None
    group_size: int = 6
    concurrency: int | None = None
    """Most agents at once, for agents that need much of the machine; without it, what the engine
    can serve.
    """
    preload: tuple[str, ...] = ()
    requirements: Path | None = None
    """Pins of every package that agent and tasks need; without it they use those of the demo."""
    source_distributions: Path | None = None
    """Pins of source distributions, unpacked in that environment's folder `sdists`."""
    aliases: tuple[str, ...] = ()
    """Model names that the agent asks for, beside `policy`. Those that the run has no policy for
    are answered by its first one.
    """
    settings: dict[str, str] = {}
    """Further settings of the services."""
    warm_start: WarmStart | None = None
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
    warm = example.warm_start
    if warm is not None:
        warm = WarmStart(expert=str(folder / warm.expert), run=folder / warm.run)
    return msgspec.structs.replace(
        example,
        agent=folder / example.agent,
        tasks=folder / example.tasks,
        reward=str(folder / example.reward),
        requirements=_within(folder, example.requirements),
        source_distributions=_within(folder, example.source_distributions),
        warm_start=warm,
        run=_within(folder, example.run),
    )


def _within(folder: Path, file: Path | None) -> Path | None:
    return None if file is None else (folder / file).resolve()
