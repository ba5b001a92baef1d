"""Prepares `fulgurite train --without`: replays what is to be trained, and chooses the model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fulgurite.events import LedgerEntry
from fulgurite.topics import TRAINING_LEDGER, TRAJECTORIES
from services.cli.errors import show_left_out
from services.cli.people import parse_people
from services.cli.pull import pull
from services.cli.retraining import Retraining, find_calls, left_out_before, plan_retraining
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_targets import Published, read_published
from services.common.runtime.terminal import make_console, plain
from services.learner.config import RunConfig
from services.learner.config_file import variable
from services.learner.settings import LearnerSettings
from services.replay.archive import open_source
from services.replay.closings import Changes
from services.replay.errors import BadArgument
from services.replay.groups import read_groups
from services.replay.replay import Report, run
from services.replay.sinks import open_sink
from services.rewarder.closing_settings import ClosingSettings


def prepare_retraining(
    config: RunConfig,
    kafka: KafkaSettings,
    without: Sequence[str],
    archive: Path | None,
    *,
    archive_only: bool,
) -> Retraining | None:
    """Write the topic to train on, and set the variables of the run that follow from the plan.

    Prints what it does. None, if no version was trained on what these people contributed. Raises
    BadArgument, TargetInUse, LogUnavailable.
    """
    policy = config.policy
    if policy.topic != TRAJECTORIES.name or policy.rows_of is not None:
        raise BadArgument(
            f"--without trains again what was trained on {TRAJECTORIES.name}, but the run has "
            f"policy.topic = {policy.topic!r} and policy.rows_of = {policy.rows_of!r}: leave both "
            "out"
        )
    codec = make_codec()
    published = read_published(kafka)
    before = left_out_before(policy.name, published)
    people = tuple(dict.fromkeys([*without, *before]))
    subjects, tenants = parse_people(people)
    source = open_source(kafka, codec, archive, archive_only=archive_only)
    ledger = (record.event for record in read_all(kafka, TRAINING_LEDGER, codec))
    plan = plan_retraining(
        policy.name,
        published,
        [event for event in ledger if isinstance(event, LedgerEntry)],
        find_calls(source, codec, subjects, tenants),
        people,
    )
    console = make_console()
    if before:
        console.print(plain(f"left out as before: {', '.join(before)}"))
    if plan is None:
        console.print(
            plain(f"no version of {policy.name} was trained on a call of theirs: nothing to do")
        )
        return None
    console.print(plain(_description(plan)))
    claimed = {name for name, _ in published.claims}
    if plan.new_policy in claimed:
        console.print(plain(f"topic {plan.topic} is written already: the training goes on"))
    else:
        # A run that was killed has written a part of the same rows; learners count each once.
        sink = open_sink(plan.topic, append=True, settings=kafka, codec=codec)
        try:
            report = run(
                read_groups(source, codec, keys=plan.groups),
                sink,
                source=source,
                codec=codec,
                changes=Changes(without=subjects, tenants=tenants),
                settings=ClosingSettings(),
            )
        finally:
            sink.close()
        console.print(plain(_written(plan, report)))
        show_left_out(report.left_out)
    os.environ.update(run_variables(plan, config, people, _model(plan, published)))
    return plan


def show_result(plan: Retraining, kafka: KafkaSettings) -> None:
    """Print what the training has made."""
    fold = read_published(kafka).folds.get(plan.new_policy)
    console = make_console()
    if fold is None or not fold.updates:
        console.print(
            plain(f"{plan.new_policy} has no version: nothing is left to train {plan.parent} on")
        )
        return
    console.print(
        plain(
            f"{fold.version()} is {plan.parent} trained on what came later, without them. Compare "
            f"it with {plan.newest} (`fulgurite eval`), and route its alias to it: `fulgurite "
            f"routes set ALIAS {fold.version()}`"
        )
    )


def _description(plan: Retraining) -> str:
    offline = (
        f"; {', '.join(plan.offline)} learned from a recording, which is not done again"
        if plan.offline
        else ""
    )
    return (
        f"{plan.newest} was trained on {plan.actions} of their actions, first in {plan.first}. "
        f"{plan.new_policy} starts from {plan.parent} and is trained on what {len(plan.groups)} "
        f"groups have left{offline}"
    )


def _written(plan: Retraining, report: Report) -> str:
    return (
        f"{plan.topic}: {report.rows} rows and {report.tombstones} tombstones of {report.closed} "
        f"groups, {report.actions} actions"
    )


def _model(plan: Retraining, published: Published) -> Path | None:
    """The folder of the parent's weights; None: the run's base model."""
    if plan.weights is None:
        return None
    folder = LearnerSettings().data_dir / "models" / str(plan.parent)
    if not folder.is_dir():
        pull(published.update(plan.parent), folder)
    return folder


def run_variables(
    plan: Retraining, config: RunConfig, people: Sequence[str], model: Path | None
) -> dict[str, str]:
    """Variables of the run that trains again. `model`: the parent's weights; None: the run's."""
    found = {
        "policy.name": plan.new_policy,
        "policy.topic": plan.topic,
        "policy.rows_of": plan.rows_of,
        "policy.parent": str(plan.parent),
        "policy.without": json.dumps(people),
        "policy.until_end": "true",
        # All rows count as generated by the new policy's base, and no step needs more than a group.
        "batch.max_staleness": str(max(config.batch.max_staleness, len(plan.groups))),
    }
    if model is not None:
        found["policy.model"] = str(model.resolve())
    return {variable(key): value for key, value in found.items()}
