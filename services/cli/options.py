"""Defines the options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from services.replay.errors import BadArgument
from services.runner.options import JUDGE, read_rewards

Archive = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Read this archive first, then the records in Kafka that it does not have.",
    ),
]
ArchiveOnly = Annotated[
    bool, typer.Option("--archive-only", help="Read only the archive, not Kafka.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Episodes scored at once.")]
MemoryLimit = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="MIB",
        help="Memory limit per reward process in MiB, on top of its imports; 0: no limit.",
    ),
]
Margin = Annotated[
    float,
    typer.Option(
        min=0,
        help="Largest loss of reward that a promotion accepts, held against the lower 95% bound of "
        "the difference.",
    ),
]
MinTasks = Annotated[
    int,
    typer.Option(min=2, help="Held-out tasks that both versions must have answered, to promote."),
]
RewardName = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Name of the reward where --reward gives a function without NAME=."
    ),
]
Timeout = Annotated[
    float, typer.Option(min=0.001, help="Seconds that scoring one episode may take.")
]
Weights = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=W", help="Weight of a named reward in the sum. Repeatable."),
]

Since = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Only groups that began at or after this time: an age (90s, 30m, 24h, 7d), an "
        "ISO time in UTC, or `all`.",
    ),
]


def read_reward_functions(given: Sequence[str]) -> dict[str, str]:
    """Parse `[NAME=]REFERENCE` where rewards must compare versions: a judge's do not.

    Raises ValueError, BadArgument.
    """
    rewards = read_rewards(given)
    for reference in rewards.values():
        if reference.startswith(JUDGE):
            raise BadArgument(
                f"--reward {reference}: a judge ranks the rollouts of one group, and all rollouts "
                "of a group are of one version here, so its rewards compare no versions. Give a "
                "reward function, FILE.py:FN or builtin:NAME (docs/how-to/rewards.md)"
            )
    return rewards
