"""Defines the command `fulgurite reward-worker`: runs `services.rewards.worker` in this process."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.run_service import serve


def reward_worker(
    reward: Annotated[
        str,
        typer.Option(
            metavar="FILE.py:FN|builtin:NAME",
            help="Reward function, called with every finished episode.",
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Name of the reward where the function returns a plain number."
        ),
    ] = "reward",
    run_id: Annotated[
        str | None, typer.Option(metavar="RUN", help="Score only episodes of this run.")
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Score live traffic that is opted in to training. A vote wins over the score.",
        ),
    ] = False,
) -> None:
    """Run a reward worker: score every new episode with a reward function until stopped.

    Workers with the same --name share the episodes. FULGURITE_REWARD_WORKER_* limits time, memory
    and concurrency. Exits 78 if the function cannot be loaded or a setting is invalid, 2 if the log
    cannot be read.

    Example: `fulgurite reward-worker --reward rewards.py:score --name correct`
    """
    from services.rewards.worker import run

    serve("reward-worker", run, reward=reward, name=name, run_id=run_id, live=live)
