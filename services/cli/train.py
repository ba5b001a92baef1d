"""Defines the command `fulgurite train`: runs a learner on a topic, in this process."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from services.cli.errors import report_errors
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import metrics_port
from services.learner.config_file import load, variable
from services.learner.errors import LearnerError
from services.learner.main import check_start, main
from services.replay.errors import BadArgument


def train(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN.TOML]", help="File that describes the run; see the docs."),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option(metavar="TOPIC", help="Topic of trajectories, named without the prefix."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="Policy to train: one of the file's, if it has several, else its name.",
        ),
    ] = None,
    rows_of: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="Train on the trajectories of this policy; for a replayed topic."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Hugging Face folder of the base model; without it, the file's."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints and artifacts; without it, FULGURITE_DATA_DIR."),
    ] = None,
) -> None:
    """Train a policy on a topic of trajectories until stopped.

    A file describes the run: model, algorithm, batches, optimizer (docs/reference/runs.md). A
    variable FULGURITE__SECTION__KEY counts before the file, and an option before both. On a
    replayed topic, train a separate policy, as in the example. Needs the extra `learner`.

    At the start, exits 1 if the run, its model or topic is wrong, 2 if no Kafka broker answers.
    Later, exits 78 if a person must change something, 69 if a restart may help.

    Example: `fulgurite train run.toml --topic trajectories.v2 --policy policy-v2 --rows-of policy`
    """
    given = {
        "FULGURITE_RUN": file,
        variable("policy.topic"): topic,
        variable("policy.name"): policy,
        variable("policy.rows_of"): rows_of,
        variable("policy.model"): model,
        "FULGURITE_DATA_DIR": data_dir,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    with ExitStack() as stack:
        with report_errors("train"):
            try:
                check_start(load(file), answering(KafkaSettings()))
            except LearnerError as error:
                raise BadArgument(str(error)) from error
            stack.enter_context(metrics_port.shown())
        code = main()
    raise typer.Exit(code)
