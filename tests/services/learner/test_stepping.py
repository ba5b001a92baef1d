"""What a step fails on is found and left out; the rest of its batch is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fulgurite.avro.codec import Codec
from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.events import DeadLetter, LedgerEntry, PolicyUpdate, Tombstone, Trajectory
from fulgurite.ids import action_id
from fulgurite.tokens import pack_ids, unpack_ids
from services.learner.errors import EntropyCollapse, PolicyDrift, StepNotFinite, StepRefused
from services.learner.train_row import Trained, TrainRow
from tests.services.learner.test_learner import PolicyLogInMemory, Trainer, learner_of, rows_of

POISON = 999
"""A token that the trainer below fails on."""

NOT_FINITE = StepNotFinite("the gradient's norm is nan; no weight was changed")
BAD_INDEX = IndexError("index out of range in self")


class Choosy(Trainer):
    """Fails on every mini-batch with a poisoned row."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error
        self.made: list[int] = []
        """Rows of each mini-batch whose step was made."""

    def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
        self.steps.append(batch)
        bad = [any(POISON in row.token_ids for row in rows) for rows in batch]
        if all(bad):
            raise self._error
        self.made += [len(rows) for rows, failed in zip(batch, bad, strict=True) if not failed]
        metrics = {"grad_norm": float(len(self.made)), "optimizer_steps": 1.0}
        failures = {index: self._error for index, failed in enumerate(bad) if failed}
        return Trained(metrics, tuple(not failed for failed in bad), failures)


def poisoned(events: Sequence[Trajectory | Tombstone]) -> list[Trajectory | Tombstone]:
    """Their rows begin with the poisoned token, which is not trained."""
    found: list[Trajectory | Tombstone] = []
    for event in events:
        if isinstance(event, Trajectory):
            tokens = unpack_ids(event.token_ids).copy()
            tokens[0] = POISON
            event = msgspec.structs.replace(event, token_ids=pack_ids(tokens))
        found.append(event)
    return found


def groups(count: int, *bad: int) -> list[Trajectory | Tombstone]:
    events: list[Trajectory | Tombstone] = []
    for number in range(count):
        rows = rows_of(number, [1.0, 0.0])
        events += poisoned(rows) if number in bad else rows
    return events


def letters_of(log: PolicyLogInMemory) -> list[DeadLetter]:
    return [event for event in log.published if isinstance(event, DeadLetter)]


def actions_of(events: Sequence[Trajectory | Tombstone]) -> set[str]:
    return {
        action_id(action.call_id, action.choice)
        for event in events
        if isinstance(event, Trajectory)
        for action in event.actions
        if action.loss
    }


@pytest.mark.parametrize("error", [NOT_FINITE, BAD_INDEX])
@pytest.mark.parametrize("mini_batches", [1, 2])
@pytest.mark.parametrize("culprit", [0, 3, 7])
def test_the_culprit_goes_to_the_dead_letters_and_the_rest_is_trained(
    tmp_path: Path, error: Exception, mini_batches: int, culprit: int
) -> None:
    events = groups(8, culprit)
    trainer = Choosy(error)
    algorithm: dict[str, Any] = {"mini_batches": mini_batches}
    algorithm |= {"correction": "decoupled"} if mini_batches > 1 else {}
    learner, log = learner_of(tmp_path, trainer, events, batch={"groups": 8}, algorithm=algorithm)
    learner.run()
    assert log.versions() == {"policy@1.1"}
    lost = actions_of(rows_of(culprit, [1.0, 0.0]))
    assert log.outcomes() == dict.fromkeys(actions_of(events) - lost, (LedgerTerm.trained, None))
    letters = letters_of(log)
    assert {action for letter in letters for action in letter.actions} == lost
    assert {(letter.stage, letter.error_type) for letter in letters} == {
        ("learner.step", type(error).__name__)
    }
    assert [Codec().decode(letter.value or b"") for letter in letters] == [
        event for event in events if actions_of([event]) & lost
    ]
    # Every row is trained once, and the runner of the lost group learns that it is settled.
    assert sum(trainer.made) == len(actions_of(events) - lost)
    entries = [event for event in log.published if isinstance(event, LedgerEntry)]
    assert {entry.group_id for entry in entries} == {event.group_id for event in events}


def test_letters_come_before_the_ledger_and_after_the_version(tmp_path: Path) -> None:
    learner, log = learner_of(tmp_path, Choosy(BAD_INDEX), groups(2, 0), batch={"groups": 2})
    learner.run()
    kinds = [type(event) for event in log.published]
    assert kinds == [PolicyUpdate, *[DeadLetter] * 2, *[LedgerEntry] * 2]
    (update,) = [event for event in log.published if isinstance(event, PolicyUpdate)]
    assert update.metrics["actions/dead_lettered"] == 2
    assert update.metrics["actions/trained"] == update.trained_actions == 2


def test_metrics_of_the_parts_of_a_batch_are_put_together(tmp_path: Path) -> None:
    learner, log = learner_of(tmp_path, Choosy(BAD_INDEX), groups(4, 3), batch={"groups": 4})
    learner.run()
    (update,) = [event for event in log.published if isinstance(event, PolicyUpdate)]
    # Two steps: groups 0 and 1, then 2.
    assert update.metrics["optimizer_steps"] == 2
    assert update.metrics["grad_norm"] == 1.5


def test_a_batch_of_one_group_that_the_trainer_fails_on_stops_nobody(tmp_path: Path) -> None:
    events = [*groups(1, 0), *rows_of(1, [1.0, 0.0])]
    learner, log = learner_of(tmp_path, Choosy(BAD_INDEX), events)
    learner.run()
    assert log.versions() == {"policy@1.1"}
    assert log.outcomes().keys() == actions_of(rows_of(1, [1.0, 0.0]))
    assert len(letters_of(log)) == 2


def test_where_no_group_can_be_trained_the_data_is_not_blamed(tmp_path: Path) -> None:
    learner, log = learner_of(tmp_path, Choosy(BAD_INDEX), groups(2, 0, 1), batch={"groups": 2})
    with pytest.raises(IndexError, match="out of range"):
        learner.run()
    assert log.published == []


def test_where_no_step_is_finite_no_row_is_a_dead_letter(tmp_path: Path) -> None:
    events = groups(2, 0, 1)
    learner, log = learner_of(tmp_path, Choosy(NOT_FINITE), events, batch={"groups": 2})
    learner.run()
    assert log.versions() == set()
    assert letters_of(log) == []
    assert log.outcomes() == dict.fromkeys(
        actions_of(events), (LedgerTerm.filtered, FilterReason.not_finite)
    )


class Refusing(Trainer):
    """Refuses a call, before or after the first of its mini-batches."""

    def __init__(self, refusal: StepRefused, *, at: int, after_a_step: bool = False) -> None:
        super().__init__()
        self._refusal = refusal
        self._at = at
        self._after_a_step = after_a_step

    def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
        self.steps.append(batch)
        if len(self.steps) - 1 == self._at:
            if not self._after_a_step:
                raise self._refusal
            done = tuple(index == 0 for index in range(len(batch)))
            return Trained({"grad_norm": 1.0}, done, {}, self._refusal)
        return Trained({"grad_norm": 1.0}, (True,) * len(batch))


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (PolicyDrift("k3 is 3", k3=3.0, ess=0.1), FilterReason.drifted),
        (EntropyCollapse("the entropy is 0"), FilterReason.collapsed),
    ],
)
def test_a_refused_step_is_in_the_ledger_and_stops_the_learner(
    tmp_path: Path, refusal: StepRefused, reason: FilterReason
) -> None:
    trainer = Refusing(refusal, at=1)
    learner, log = learner_of(tmp_path, trainer, groups(3))
    with pytest.raises(StepRefused):
        learner.run()
    assert log.versions() == {"policy@1.1"}
    first, second = (actions_of(rows_of(number, [1.0, 0.0])) for number in (0, 1))
    assert log.outcomes() == {
        **dict.fromkeys(first, (LedgerTerm.trained, None)),
        **dict.fromkeys(second, (LedgerTerm.filtered, reason)),
    }
    # Started again, it goes on with the batch after.
    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    again, _ = learner_of(tmp_path, Trainer(), rows_of(2, [1.0, 0.0]), log=log)
    again.run()
    assert log.versions() == {"policy@1.1", "policy@2.2"}
    assert len(log.outcomes()) == 6


def test_what_was_trained_before_a_refusal_becomes_a_version(tmp_path: Path) -> None:
    trainer = Refusing(EntropyCollapse("the entropy is 0"), at=0, after_a_step=True)
    algorithm = {"correction": "decoupled", "mini_batches": 2}
    learner, log = learner_of(
        tmp_path, trainer, groups(2), batch={"groups": 2}, algorithm=algorithm
    )
    with pytest.raises(EntropyCollapse):
        learner.run()
    assert log.versions() == {"policy@1.1"}
    assert sorted(log.outcomes().values(), key=str) == [
        *[(LedgerTerm.filtered, FilterReason.collapsed)] * 2,
        *[(LedgerTerm.trained, None)] * 2,
    ]


def test_nothing_more_is_tried_after_a_refusal(tmp_path: Path) -> None:
    class FailsThenRefuses(Choosy):
        def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
            if len(self.steps) == 2:
                self.steps.append(batch)
                raise PolicyDrift("k3 is 3", k3=3.0, ess=0.1)
            return super().train(batch, step)

    trainer = FailsThenRefuses(BAD_INDEX)
    learner, log = learner_of(tmp_path, trainer, groups(4, 0), batch={"groups": 4})
    with pytest.raises(PolicyDrift):
        learner.run()
    assert len(trainer.steps) == 3
    assert letters_of(log) == []
    assert set(log.outcomes().values()) == {(LedgerTerm.filtered, FilterReason.drifted)}
    assert np.size(list(log.outcomes())) == 8
