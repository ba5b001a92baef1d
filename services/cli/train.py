"""Defines the command `fulgurite train`: runs a learner on a topic, in this process."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from services.cli.errors import report_errors
from services.cli.options import Archive, ArchiveOnly
from services.cli.prepare_retraining import prepare_retraining, show_result
from services.cli.retraining import Retraining
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
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUBJECT|TENANT",
            help="Train the policy again without this subject (su_...), or this tenant (SHA-256 of "
            "its plain key): a new policy, from the last version that knows nothing of them, until "
            "all that came later is trained. Repeatable.",
        ),
    ] = None,
    archive: Archive = None,
    archive_only: ArchiveOnly = False,
) -> None:
    """Train a policy on a topic of trajectories until stopped.

    A file describes the run: model, algorithm, batches, optimizer (docs/reference/runs.md). A
    variable FULGURITE__SECTION__KEY counts before the file, and an option before both. On a
    replayed topic, train a separate policy, as in the example. Needs the extra `learner`.

    With --without, the groups that the policy was trained on since are replayed without these
    people into a topic of their own, and a new policy is trained on it. The command ends when it
    is, and goes on where it ended if it is given again. Stop the policy's learner first, and keep
    the people in FULGURITE_NO_TRAIN_SUBJECTS or FULGURITE_NO_TRAIN_KEYS.

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
    plan: Retraining | None = None
    with ExitStack() as stack:
        with report_errors("train"):
            try:
                if not without:
                    # What is wrong with the file is said before Kafka is asked.
                    load(file)
                kafka = answering(KafkaSettings())
                if without:
                    _only_with_run_file(topic, rows_of)
                    plan = prepare_retraining(
                        load(file), kafka, without, archive, archive_only=archive_only
                    )
                    if plan is None:
                        raise typer.Exit
                elif archive is not None or archive_only:
                    raise BadArgument("--archive and --archive-only are for --without")
                check_start(load(file), kafka)
            except LearnerError as error:
                raise BadArgument(str(error)) from error
            stack.enter_context(metrics_port.shown())
        code = main()
    if plan is not None:
        with report_errors("train"):
            show_result(plan, kafka)
    raise typer.Exit(code)


def _only_with_run_file(topic: str | None, rows_of: str | None) -> None:
    """Check that nothing is chosen that follows from the log. Raises BadArgument."""
    given = {"--topic": topic, "--rows-of": rows_of}
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise BadArgument(f"--without chooses what {' and '.join(named)} would: leave it out")
