"""`fulgurite train`: a learner on any topic of the deployment, in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fulgurite.topics import TRAJECTORIES
from services.cli.failing import told
from services.replay.errors import BadArgument


def train(
    topic: Annotated[str, typer.Option(help="Topic of trajectories, without the prefix.")] = TRAJECTORIES.name,
    policy: Annotated[str | None, typer.Option(help="The policy to train (FULGURITE_POLICY).")] = None,
    rows_of: Annotated[str | None, typer.Option(help="Learn from the rows of this policy: on a replayed topic.")] = None,
    model: Annotated[Path | None, typer.Option(help="Hugging Face folder to start from (FULGURITE_MODEL).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Checkpoints and artifacts (FULGURITE_DATA_DIR).")] = None,
) -> None:
    """Train a policy on a topic until stopped: `trajectories`, or one that `fulgurite replay` has written.

    Needs the extra `learner`. What is not given is taken from the environment, as by every learner (docs/configuration.md). On a replayed
    topic train a policy of its own: --policy policy-v2 --rows-of policy. Exits 78 if a person has to change something first, 69 if
    starting again may help.
    """
    with told("train"):
        if rows_of is not None and topic == TRAJECTORIES.name:
            raise BadArgument("--rows-of is for a replayed topic: on the live one, rows belong to the learner of their own policy")
    given = {
        "FULGURITE_TOPIC": topic,
        "FULGURITE_POLICY": policy,
        "FULGURITE_ROWS_OF": rows_of,
        "FULGURITE_MODEL": model,
        "FULGURITE_DATA_DIR": data_dir,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    from services.learner.main import main

    raise typer.Exit(main())
