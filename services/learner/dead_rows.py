"""Makes dead letters of rows that cannot be trained. They account for the rows' actions."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fulgurite.events import DeadLetter, Trajectory
from fulgurite.ids import action_id
from services.common.kafka.consumer import Record
from services.common.kafka.dead_letters import unusable, words_of
from services.common.runtime import logs
from services.learner.source import TrajectorySource
from services.learner.stepping import Culprit

logger = logs.get()


def odd_row(record: Record, row: Trajectory, oddity: str, topic: str) -> DeadLetter:
    """The dead letter of a row that is malformed, or not of the model."""
    return _letter(
        msgspec.structs.replace(record, error=f"OddRow: {oddity}"), topic, "learner.read", row
    )


def unreadable(record: Record, topic: str) -> DeadLetter:
    """The dead letter of a record whose bytes cannot be decoded."""
    return _letter(record, topic, "learner.read", None)


def rows_of_culprits(
    culprits: Iterable[Culprit], policy: str, source: TrajectorySource
) -> list[DeadLetter]:
    """The dead letters of all rows that a policy has in groups that cannot be trained."""
    letters: list[DeadLetter] = []
    for group, error in culprits:
        logger.error(
            "a group cannot be trained; its rows go to dead.letters (see `fulgurite dlq list`)",
            group_id=group.group_id,
            error=words_of(error),
        )
        for record in source.read_again(group.partition, *group.offsets):
            row = record.event
            if (
                isinstance(row, Trajectory)
                and row.policy == policy
                and (row.group_id, row.group_revision) == (group.group_id, group.group_revision)
            ):
                failed = msgspec.structs.replace(record, error=words_of(error))
                letters.append(_letter(failed, source.topic_name, "learner.step", row))
    return letters


def _letter(record: Record, topic: str, stage: str, row: Trajectory | None) -> DeadLetter:
    actions = row.actions if row is not None else ()
    lost = tuple(action_id(action.call_id, action.choice) for action in actions if action.loss)
    return unusable(record, topic, "learner", stage=stage, actions=lost)
