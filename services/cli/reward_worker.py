"""`fulgurite reward-worker`: a reward worker in this process, the same as
`services.rewards.worker`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.run_service import serve


def reward_worker(
    reward: Annotated[
        str,
        typer.Option(
            metavar="FILE.py:FN|builtin:NAME", help="The function, called with every episode."
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Name of the reward, where the function gives a plain number."
        ),
    ] = "reward",
    run_id: Annotated[
        str | None, typer.Option(metavar="RUN", help="Judge only the episodes of this run.")
    ] = None,
) -> None:
    """Judge every finished episode with a reward function until stopped; several of one name share
    the work.

    Time, memory and how many at once: FULGURITE_REWARD_WORKER_*. Exits 78 if the function cannot be
    loaded or a setting cannot be used, 2 if the log cannot be read.
    """
    from services.rewards.worker import run

    serve("reward-worker", run, reward=reward, name=name, run_id=run_id)
