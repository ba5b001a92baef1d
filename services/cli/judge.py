"""`fulgurite judge`: a judge in this process, the same as `services.judge.main`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.run_service import serve


def judge(
    model: Annotated[
        str,
        typer.Option(
            metavar="ALIAS", help="The model that is asked, one of those that GET /v1/models lists."
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the reward.")] = "judge",
    rubric: Annotated[
        Path | None,
        typer.Option(help="A file of standards to judge by, added to the default ones."),
    ] = None,
    run_id: Annotated[
        str | None, typer.Option(metavar="RUN", help="Judge only the groups of this run.")
    ] = None,
) -> None:
    """Have a model rank the trajectories of every declared group until stopped; several of one name
    share the work.

    It is asked at the gateway (FULGURITE_GATEWAY_URL) with the first of FULGURITE_API_KEYS, or at
    FULGURITE_JUDGE_BASE_URL with FULGURITE_JUDGE_API_KEY. Exits 78 if a setting or the rubric
    cannot be used, 2 if the log cannot be read.
    """
    from services.judge.main import run

    serve("judge", run, model=model, name=name, rubric=rubric, run_id=run_id)
