"""Defines the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
