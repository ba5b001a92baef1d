"""Defines the command `fulgurite train`: runs a learner on a topic, in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from fulgurite.topics import TRAJECTORIES
from services.cli.errors import report_errors
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.learner.errors import LearnerError
from services.learner.main import check_start, main
from services.learner.settings import LearnerSettings
from services.replay.errors import BadArgument


def train(
    topic: Annotated[
        str, typer.Option(metavar="TOPIC", help="Topic of trajectories, named without the prefix.")
    ] = TRAJECTORIES.name,
    policy: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help="Policy to train; without it, FULGURITE_POLICY."),
    ] = None,
    rows_of: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="Train on the trajectories of this policy; for a replayed topic."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Hugging Face folder of the base model; without it, FULGURITE_MODEL."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints and artifacts; without it, FULGURITE_DATA_DIR."),
    ] = None,
) -> None:
    """Train a policy on a topic of trajectories until stopped.

    The topic is `trajectories`, or one that `fulgurite replay` wrote. Other settings come from the
    environment (docs/reference/settings.md). On a replayed topic, train a separate policy, as in
    the example. Needs the extra `learner`.

    At the start, exits 1 if the model or topic is missing, 2 if no Kafka broker answers. Later,
    exits 78 if a person must change something, 69 if a restart may help.

    Example: `fulgurite train --topic trajectories.v2 --policy policy-v2 --rows-of policy`
    """
    with report_errors("train"):
        if rows_of is not None and topic == TRAJECTORIES.name:
            raise BadArgument(
                f"--rows-of {rows_of} needs a replayed topic (--topic): rows of the live topic "
                "are trained by the learner of their own policy"
            )
    given = {
        "FULGURITE_TOPIC": topic,
        "FULGURITE_POLICY": policy,
        "FULGURITE_ROWS_OF": rows_of,
        "FULGURITE_MODEL": model,
        "FULGURITE_DATA_DIR": data_dir,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    with report_errors("train"):
        settings = _settings()
        try:
            check_start(settings, answering(KafkaSettings()))
        except LearnerError as error:
            raise BadArgument(str(error)) from error
    raise typer.Exit(main())


def _settings() -> LearnerSettings:
    """Read the settings. Raises BadArgument for one that is missing or invalid."""
    try:
        return LearnerSettings()  # pyright: ignore[reportCallIssue] - pydantic reads the environment
    except ValidationError as error:
        named = "; ".join(
            f"FULGURITE_{'.'.join(map(str, one['loc'])).upper()}: {one['msg']}"
            for one in error.errors()
        )
        raise BadArgument(
            f"{named} (--model is FULGURITE_MODEL; all settings: docs/reference/settings.md)"
        ) from error
