"""Defines the command `fulgurite judge`: runs `services.judge.main` in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.run_service import serve


def judge(
    model: Annotated[
        str,
        typer.Option(
            metavar="ALIAS", help="Model that ranks, one of those that GET /v1/models lists."
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the reward.")] = "judge",
    rubric: Annotated[
        Path | None,
        typer.Option(help="Text file of criteria, added to the default ones."),
    ] = None,
    run_id: Annotated[
        str | None, typer.Option(metavar="RUN", help="Rank only groups of this run.")
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Score live traffic that is opted in to training, where nobody votes within "
            "FULGURITE_JUDGE_LIVE_WAIT_S. A vote wins over the score.",
        ),
    ] = False,
) -> None:
    """Run an LLM judge: rank the trajectories of every declared group until stopped.

    With --live, it scores single conversations of live traffic instead. Judges with the same --name
    share the groups. The model is called through the gateway (FULGURITE_GATEWAY_URL) with the first
    of FULGURITE_API_KEYS, or at FULGURITE_JUDGE_BASE_URL with FULGURITE_JUDGE_API_KEY. Exits 78 if
    a setting or the rubric is invalid, 2 if the log cannot be read.

    Example: `fulgurite judge --model gpt-4o-mini --rubric rubric.md`
    """
    from services.judge.main import run

    serve("judge", run, model=model, name=name, rubric=rubric, run_id=run_id, live=live)
