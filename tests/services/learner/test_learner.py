"""The learner's loop with a log in memory: what it publishes of a batch, whatever the batch holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import structlog

from fulgurite.avro.codec import Codec
from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.episodes.stitching import stitch
from fulgurite.events import (
    Event,
    LedgerEntry,
    PolicyRoute,
    PolicyUpdate,
    Position,
    Tombstone,
    Trajectory,
)
from fulgurite.groups.closing import close_group
from fulgurite.tokens import FloatArray
from services.common.kafka.consumer import Record
from services.learner.config import RunConfig
from services.learner.errors import CheckpointLocked, CheckpointOld, EpochLost, StepNotFinite
from services.learner.files import only_learner
from services.learner.learner import Learner
from services.learner.policy_log import LedgerMemory
from services.learner.settings import LearnerSettings
from services.learner.train_row import Trained, TrainRow
from tests.synthetic import make_call, make_declared, make_reward, make_status


class Source:
    """A topic in memory; its end stops the learner."""

    topic_name = "trajectories"

    def __init__(self, events: Sequence[Trajectory | Tombstone]) -> None:
        self._log = [
            Record(
                partition=0,
                offset=offset,
                timestamp=0,
                key=event.group_id.encode(),
                value=Codec().encode(event),
                event=event,
                error=None,
            )
            for offset, event in enumerate(events)
        ]
        self._records = list(self._log)
        self.at_end = lambda: None

    def topic_id(self) -> str:
        return "topic"

    def start(self, positions: Iterable[Position]) -> None:
        pass

    def show(self, positions: Iterable[Position]) -> None:
        pass

    def read_again(self, partition: int, first: int, last: int) -> Iterator[Record]:
        assert partition == 0
        yield from self._log[first : last + 1]

    def is_at_end(self) -> bool:
        return not self._records

    def read(self, timeout_s: float) -> Iterator[Record]:
        if self._records:
            yield self._records.pop(0)
        else:
            self.at_end()


class PolicyLogInMemory:
    """What was published."""

    def __init__(self) -> None:
        self.epoch = 0
        self.updates: list[PolicyUpdate] = []
        self.routes: dict[str, PolicyRoute] = {}
        self.newest: PolicyUpdate | None = None
        self.lost_after: int | None = None
        """Checks of the epoch after which another learner has it."""
        self.published: list[Event] = []

    def acquire_epoch(self, step: int, config: str, offline_method: str | None = None) -> int:
        self.epoch += 1
        return self.epoch

    def catch_up(self, up_to: int | None) -> None:
        pass

    def check_epoch(self) -> None:
        if self.lost_after is not None:
            self.lost_after -= 1
            if self.lost_after < 0:
                raise EpochLost("another learner has acquired a later epoch")

    def ledger(self) -> LedgerMemory:
        return LedgerMemory(set(), {})

    def republish(self, events: Sequence[Event], ledger: LedgerMemory) -> int:
        return 0

    def publish(self, events: Sequence[Event]) -> None:
        self.published += events

    def versions(self) -> set[str]:
        return {event.version or "" for event in self.published if isinstance(event, PolicyUpdate)}

    def outcomes(self) -> dict[str, tuple[LedgerTerm, FilterReason | None]]:
        entries = [event for event in self.published if isinstance(event, LedgerEntry)]
        named = [
            (action, (entry.term, entry.reason)) for entry in entries for action in entry.actions
        ]
        assert len(named) == len(dict(named))
        return dict(named)


class Trainer:
    """Makes a step of everything but what it is told to choke on."""

    vocabulary = 1_000

    def __init__(self, *, fails: Sequence[int] = (), skips: Sequence[int] = ()) -> None:
        self._fails = fails
        self._skips = skips
        self.steps: list[Sequence[Sequence[TrainRow]]] = []

    def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
        self.steps.append(batch)
        if len(self.steps) - 1 in self._fails:
            raise StepNotFinite("the gradient's norm is nan; no weight was changed")
        skipped = self._skips if len(batch) > 1 else ()
        return Trained(
            {"grad_norm": 1.0},
            tuple(n not in skipped for n in range(len(batch))),
            {n: StepNotFinite("the loss is not finite") for n in skipped},
        )

    def logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        return np.zeros(len(token_ids) - 1, np.float32)

    def export(self, path: Path) -> None:
        path.write_bytes(b"weights")

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def begin_to_save(self, folder: Path) -> None:
        self.save(folder)

    def is_saved(self, *, wait: bool = False) -> bool:
        return True

    def load(self, folder: Path) -> None:
        pass


def rows_of(group: int, rewards: Sequence[float]) -> list[Trajectory | Tombstone]:
    declared = make_declared(group=group, size=len(rewards))
    episodes = [
        stitch([declared, make_call(group, index), make_status(group, index)])
        for index in range(len(rewards))
    ]
    paid = [make_reward(group, index, value=value) for index, value in enumerate(rewards)]
    outputs = close_group(
        declared.group_id, declared.declaration, [episode for episode in episodes if episode], paid
    )
    return [output for output in outputs if not isinstance(output, LedgerEntry)]


def learner_of(
    tmp_path: Path,
    trainer: Trainer,
    events: Sequence[Trajectory | Tombstone],
    *,
    log: PolicyLogInMemory | None = None,
    **tables: Any,
) -> tuple[Learner, PolicyLogInMemory]:
    settings = LearnerSettings(data_dir=tmp_path, durable_files=False)
    config = RunConfig.model_validate(
        {"policy": {"model": tmp_path}, "batch": {"groups": 1}, **tables}
    )
    source, log = Source(events), log or PolicyLogInMemory()
    learner = Learner(
        settings, config, trainer, cast("Any", source), cast("Any", log), cast("Any", None), Codec()
    )
    source.at_end = learner.stop
    learner.resume()
    return learner, log


def test_a_step_that_is_not_finite_publishes_nothing_and_the_next_batch_is_trained(
    tmp_path: Path,
) -> None:
    # In the batch, and alone.
    trainer = Trainer(fails=[0, 1])
    learner, log = learner_of(tmp_path, trainer, [*rows_of(1, [1.0, 0.0]), *rows_of(2, [1.0, 0.0])])
    learner.run()
    assert len(trainer.steps) == 3
    assert log.versions() == {"policy@1.1"}
    outcomes = log.outcomes()
    assert [outcomes[f"{make_call(1, index).call_id}#0"] for index in (0, 1)] == [
        (LedgerTerm.filtered, FilterReason.not_finite)
    ] * 2
    assert [outcomes[f"{make_call(2, index).call_id}#0"] for index in (0, 1)] == [
        (LedgerTerm.trained, None)
    ] * 2


def test_a_mini_batch_whose_step_failed_is_tried_once_more(tmp_path: Path) -> None:
    trainer = Trainer(skips=[0])
    learner, log = learner_of(
        tmp_path,
        trainer,
        [*rows_of(1, [1.0, 0.0]), *rows_of(2, [1.0, 0.0])],
        batch={"groups": 2},
        algorithm={"correction": "decoupled", "mini_batches": 2},
    )
    learner.run()
    assert [len(batch) for batch in trainer.steps] == [2, 1]
    assert log.versions() == {"policy@1.1"}
    assert set(log.outcomes().values()) == {(LedgerTerm.trained, None)}
    assert len(log.outcomes()) == 4


def test_groups_without_a_signal_are_settled_soon_and_make_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.learner.learner._SETTLE_AFTER_S", -1.0)
    trainer = Trainer()
    learner, log = learner_of(tmp_path, trainer, rows_of(1, [1.0, 1.0]))
    learner.run()
    assert trainer.steps == []
    assert log.versions() == set()
    assert set(log.outcomes().values()) == {(LedgerTerm.filtered, FilterReason.no_signal)}


class RemembersLedger(PolicyLogInMemory):
    """Knows the settled groups of what was published, as a log does."""

    def ledger(self) -> LedgerMemory:
        entries = [event for event in self.published if isinstance(event, LedgerEntry)]
        return LedgerMemory(
            {entry.event_id for entry in entries},
            {entry.group_id: entry.group_revision for entry in entries},
        )


def test_a_learner_with_an_empty_folder_trains_nothing_that_an_earlier_one_filtered(
    tmp_path: Path,
) -> None:
    log = RemembersLedger()
    (tmp_path / "lost").mkdir()
    first, _ = learner_of(
        tmp_path / "lost",
        Trainer(),
        rows_of(1, [1.0, 0.0]),
        log=log,
        batch={"groups": 1, "max_row_tokens": 2},
    )
    first.run()
    first._settle(())  # pyright: ignore[reportPrivateUsage]
    assert set(log.outcomes().values()) == {(LedgerTerm.filtered, FilterReason.oversized)}
    trainer = Trainer()
    events = [*rows_of(1, [1.0, 0.0]), *rows_of(2, [1.0, 0.0])]
    second, _ = learner_of(tmp_path, trainer, events, log=log)
    second.run()
    assert len(trainer.steps) == 1
    assert len(log.outcomes()) == 4, "each action has one term"


def advantages_in(trainer: Trainer) -> list[float]:
    """Of the rows of the last batch."""
    return [float(row.advantages[row.trained][0]) for rows in trainer.steps[-1] for row in rows]


def test_groups_of_one_are_compared_with_their_batch(tmp_path: Path) -> None:
    trainer = Trainer()
    learner, log = learner_of(
        tmp_path,
        trainer,
        [*rows_of(1, [1.0]), *rows_of(2, [0.0])],
        batch={"groups": 2, "baseline": "batch"},
        algorithm={"name": "dr_grpo"},
    )
    learner.run()
    assert advantages_in(trainer) == [0.5, -0.5]
    assert set(log.outcomes().values()) == {(LedgerTerm.trained, None)}


def test_a_credit_rule_that_does_not_go_with_the_comparison_is_told_once(tmp_path: Path) -> None:
    events = [
        msgspec.structs.replace(event, credit_rule="last_step")
        if isinstance(event, Trajectory)
        else event
        for group in (1, 2, 3)
        for event in rows_of(group, [1.0, 0.0])
    ]
    learner, _ = learner_of(tmp_path, Trainer(), events, algorithm={"name": "reinforce++"})
    with structlog.testing.capture_logs() as lines:
        learner.run()
    told = [line["event"] for line in lines if "baseline of its own" in line["event"]]
    assert len(told) == 1


def test_a_moving_average_goes_on_after_a_restart(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "batch": {"groups": 1, "baseline": "moving_average", "baseline_decay": 0.5},
        "algorithm": {"name": "dr_grpo"},
    }
    trainer = Trainer()
    first, log = learner_of(tmp_path, trainer, [*rows_of(1, [4.0]), *rows_of(2, [0.0])], **tables)
    first.run()
    assert advantages_in(trainer) == [-4.0]
    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    trainer = Trainer()
    second, _ = learner_of(tmp_path, trainer, rows_of(3, [3.0]), log=log, **tables)
    second.run()
    assert advantages_in(trainer) == [1.0]


def test_a_batch_may_be_whole_by_its_tokens(tmp_path: Path) -> None:
    trainer = Trainer()
    events = [event for group in range(1, 5) for event in rows_of(group, [1.0, 0.0])]
    (row,) = events[:1]
    assert isinstance(row, Trajectory)
    tokens = sum(action.end - action.start for action in row.actions if action.loss)
    learner, _ = learner_of(
        tmp_path, trainer, events, batch={"wait": "tokens", "tokens": 3 * tokens}
    )
    learner.run()
    assert [len(rows) for batch in trainer.steps for rows in batch] == [4, 4]


def _ignore(learner: Learner) -> None:
    """Stands for a `stop` that nobody calls."""


def test_a_replayed_topic_has_an_end_at_which_everything_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also groups that teach nothing, and what fills no batch; nobody stops the learner."""
    monkeypatch.setattr("services.learner.learner._SETTLE_AFTER_S", 0.0)
    monkeypatch.setattr(Learner, "stop", _ignore)
    trainer = Trainer()
    rewards = ([1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0])
    learner, log = learner_of(
        tmp_path,
        trainer,
        [event for group, paid in enumerate(rewards, 1) for event in rows_of(group, paid)],
        policy={"model": tmp_path, "topic": "trajectories.v2", "until_end": True},
        batch={"groups": 2},
    )
    learner.run()
    assert [len(batch[0]) for batch in trainer.steps] == [4, 2]
    assert len(log.outcomes()) == 8


def test_what_can_be_compared_with_nothing_does_not_hold_the_end_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "stop", _ignore)
    trainer = Trainer()
    learner, _ = learner_of(
        tmp_path,
        trainer,
        rows_of(1, [1.0]),
        policy={"model": tmp_path, "topic": "trajectories.v2", "until_end": True},
        batch={"groups": 2, "baseline": "batch"},
    )
    learner.run()
    assert trainer.steps == []


def test_an_older_checkpoint_than_the_log_knows_is_refused_unless_it_is_named(
    tmp_path: Path,
) -> None:
    first, log = learner_of(tmp_path, Trainer(), rows_of(1, [1.0, 0.0]))
    first.run()
    (made,) = [event for event in log.published if isinstance(event, PolicyUpdate)]
    later = msgspec.structs.replace(
        made, version="policy@1.2", parent_version="policy@1.1", step=2, event_id="later"
    )
    known = PolicyLogInMemory()
    known.updates, known.newest, known.epoch = [made, later], later, 1
    with pytest.raises(CheckpointOld, match=r"is of policy@1\.1, and .* policy@1\.2") as error:
        learner_of(tmp_path, Trainer(), [], log=known)
    assert 'checkpoint.resume_from = "policy@1.1"' in str(error.value)
    resumed, _ = learner_of(
        tmp_path, Trainer(), [], log=known, checkpoint={"resume_from": "policy@1.1"}
    )
    assert str(resumed.version) == "policy@1.1"
    assert resumed.batcher.lineage == {0: 0, 1: 1}


def test_a_learner_that_lost_its_epoch_during_a_step_writes_nothing(tmp_path: Path) -> None:
    log = PolicyLogInMemory()
    log.lost_after = 1
    trainer = Trainer()
    learner, _ = learner_of(tmp_path, trainer, rows_of(1, [1.0, 0.0]), log=log)
    with pytest.raises(EpochLost):
        learner.run()
    assert len(trainer.steps) == 1
    assert log.published == []
    assert list((tmp_path / "artifacts" / "policy").iterdir()) == []
    assert list((tmp_path / "checkpoints" / "policy").glob("[0-9]*")) == []


def test_two_learners_of_a_policy_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with (
        only_learner(tmp_path, "policy"),
        only_learner(tmp_path, "another"),
        pytest.raises(CheckpointLocked, match="another learner of the policy policy"),
        only_learner(tmp_path, "policy"),
    ):
        pass
    with only_learner(tmp_path, "policy"):
        pass


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39, 1.7e308])
def test_numbers_of_an_old_log_stop_no_learner(tmp_path: Path, value: float) -> None:
    poisoned: list[Trajectory | Tombstone] = []
    for event in rows_of(1, [1.0, 0.5, 0.0]):
        if isinstance(event, Trajectory) and event.episode_reward == 1.0:
            actions = tuple(
                msgspec.structs.replace(action, credit=value, reward=value)
                for action in event.actions
            )
            event = msgspec.structs.replace(
                event, episode_reward=value, rewards={"reward": value}, actions=actions
            )
        poisoned.append(event)
    learner, log = learner_of(tmp_path, Trainer(), poisoned)
    learner.run()
    outcomes = log.outcomes()
    assert outcomes[f"{make_call(1, 0).call_id}#0"] == (
        LedgerTerm.filtered,
        FilterReason.reward_failed,
    )
    assert outcomes[f"{make_call(1, 1).call_id}#0"] == (LedgerTerm.trained, None)
    (update,) = (event for event in log.published if isinstance(event, PolicyUpdate))
    assert all(map(math.isfinite, update.metrics.values()))
