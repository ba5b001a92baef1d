"""SFT and DPO on a recording: steps are those of plain torch on the same tokens, and versions are
published whole, or not at all.
"""

# verl and transformers are annotated in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

from fulgurite.avro.codec import Codec
from fulgurite.enums import LedgerTerm, Mode
from fulgurite.events import Event, LedgerEntry, PolicyUpdate, Trajectory
from fulgurite.learning.offline import OFFLINE, LeftOut, RecordedEpisode, RecordedRow, Span
from fulgurite.tokens import FloatArray, pack_ids, unpack_ids
from services.common.kafka.errors import LogUnavailable
from services.learner.config import DpoConfig, RunConfig, SftConfig
from services.learner.errors import CheckpointMissing, EpochLost, StepNotFinite
from services.learner.metrics import meaning_of
from services.learner.offline import (
    Dpo,
    Fits,
    Method,
    OfflineRun,
    Sft,
    Step,
    Unit,
    choose,
    method_of,
    train_rows,
)
from services.learner.policy_log import LedgerMemory
from services.learner.settings import LearnerSettings
from services.learner.train_row import Trained, TrainRow
from services.learner.versions import PolicyVersions
from services.local_stack.model import tiny_model
from tests.services.learner.test_learner import (
    PolicyLogInMemory,
    advantages_in,
    learner_of,
    rows_of,
)
from tests.services.learner.test_learner import Trainer as OnlineTrainer
from tests.services.learner.test_redo import Killed, Remembers, die
from tests.services.learner.test_trainer import trainer, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def episode(member: int, reward: float, *, rows: int = 1) -> RecordedEpisode:
    """Two turns in each row, behind a beginning that all episodes have."""
    chance = np.random.default_rng(member)
    made: list[RecordedRow] = []
    for number in range(rows):
        tokens = [1, 2, 3, *chance.integers(10, 200, 8 + member).tolist()]
        spans = (
            Span(action=f"call-{member}-{number}-0#0", start=3, end=6),
            Span(action=f"call-{member}-{number}-1#0", start=8, end=len(tokens)),
        )
        made.append(RecordedRow(token_ids=pack_ids(tokens), spans=spans))
    return RecordedEpisode(
        group_id="group",
        group_revision="revision",
        rollout_id=f"rollout-{member}",
        reward=reward,
        context=pack_ids([1, 2, 3]),
        rows=tuple(made),
    )


CHOSEN, REJECTED = episode(0, 1.0, rows=2), episode(1, 0.0)
PAIRS: list[Unit] = [(CHOSEN, REJECTED), (episode(2, 1.0), episode(3, 0.0, rows=2))]
EPISODES: list[Unit] = [(one,) for pair in PAIRS for one in pair]


class Plain:
    """The same model in transformers, row by row."""

    def __init__(self) -> None:
        self.model = cast(
            "Any", AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
        )

    def tokens(self, of: RecordedEpisode) -> list[torch.Tensor]:
        """Log-probabilities of the trained tokens of each row."""
        found: list[torch.Tensor] = []
        for row in of.rows:
            token_ids = torch.tensor(unpack_ids(row.token_ids).astype(np.int64))
            logprobs = log_softmax(self.model(token_ids[None]).logits[0, :-1], dim=-1)
            taken = logprobs.gather(1, token_ids[1:, None])[:, 0]
            found.append(torch.cat([taken[span.start - 1 : span.end - 1] for span in row.spans]))
        return found

    def logprob(self, of: RecordedEpisode) -> torch.Tensor:
        return torch.cat(self.tokens(of)).sum()

    def gradient_norm(self, loss: torch.Tensor) -> float:
        loss.backward()
        return math.sqrt(
            sum(
                float((one.grad**2).sum())
                for one in self.model.parameters()
                if one.grad is not None
            )
        )


@pytest.mark.parametrize("layout", ["forest", "rows"])
def test_a_step_of_sft_is_that_of_the_mean_likelihood_of_each_episode(layout: str) -> None:
    plain, ours = Plain(), trainer(engine={"layout": layout})
    loss = torch.stack(
        [-torch.cat(plain.tokens(one)).mean() for unit in EPISODES for one in unit]
    ).mean()
    metrics = Sft(SftConfig()).step(ours, EPISODES, 1)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(plain.gradient_norm(loss), rel=1e-3)


@pytest.mark.parametrize("layout", ["forest", "rows"])
def test_a_step_of_dpo_is_that_of_the_paper_s_loss(layout: str) -> None:
    beta = 0.3
    plain, ours = Plain(), trainer(engine={"layout": layout})
    method = Dpo(DpoConfig(beta=beta))
    # A reference that is not the policy, so that the pairs weigh differently.
    method.refer(ours, PAIRS)
    with torch.no_grad():
        reference = [[float(plain.logprob(one)) for one in pair] for pair in PAIRS]
    first = (CHOSEN.group_id, CHOSEN.rollout_id)
    method._reference[first] += 2.0  # pyright: ignore[reportPrivateUsage]
    reference[0][0] += 2.0
    margins = [
        beta * ((plain.logprob(chosen) - ref[0]) - (plain.logprob(rejected) - ref[1]))
        for (chosen, rejected), ref in zip(PAIRS, reference, strict=True)
    ]
    loss = torch.stack([-torch.log(1 / (1 + torch.exp(-margin))) for margin in margins]).mean()
    metrics = method.step(ours, PAIRS, 1)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert metrics["grad_norm"] == pytest.approx(plain.gradient_norm(loss), rel=1e-3)
    assert metrics["preference/margin"] == pytest.approx(
        float(torch.stack(margins).detach().mean()), abs=1e-3
    )
    assert metrics["preference/accuracy"] in (0.0, 0.5)


def logprobs(of: Fits, units: Sequence[Unit]) -> list[float]:
    return [
        sum(float(row.sum()) for row in of.row_logprobs(train_rows(one, 0.0)))
        for unit in units
        for one in unit
    ]


def test_sft_makes_the_best_episodes_likelier() -> None:
    ours = trainer(optimizer={"lr": 1e-3})
    before = logprobs(ours, EPISODES)
    losses = [Sft(SftConfig()).step(ours, EPISODES, step)["loss"] for step in range(1, 6)]
    assert losses == sorted(losses, reverse=True)
    assert [name for name in ours.fit(train_rows(CHOSEN, 0.1), 6) if meaning_of(name) is None] == []
    assert all(now > then for now, then in zip(logprobs(ours, EPISODES), before, strict=True))


def test_dpo_makes_the_chosen_likelier_than_the_rejected() -> None:
    ours = trainer(optimizer={"lr": 1e-3})
    method = Dpo(DpoConfig())
    method.refer(ours, PAIRS)
    steps = [method.step(ours, PAIRS, step) for step in range(1, 6)]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    margins = [step["preference/margin"] for step in steps]
    assert margins == sorted(margins)
    assert steps[-1]["preference/accuracy"] == 1.0
    assert [name for name in steps[-1] if meaning_of(name) is None] == []


def test_an_adapter_is_trained_against_its_base_model() -> None:
    weights_trained = {"train": "lora", "rank": 4, "alpha": 8}
    ours = trainer(
        policy={"model": tiny_model(), "weights": weights_trained}, optimizer={"lr": 1e-2}
    )
    plain = Plain()
    method = Dpo(DpoConfig())
    # A new adapter changes nothing: the reference is the base model.
    method.refer(ours, PAIRS)
    with torch.no_grad():
        assert logprobs(ours, EPISODES) == pytest.approx(
            [float(plain.logprob(one)) for unit in EPISODES for one in unit], rel=1e-3
        )
    margins = [method.step(ours, PAIRS, step)["preference/margin"] for step in range(1, 5)]
    assert margins == sorted(margins)
    assert margins[-1] > 0


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    ours = trainer()
    before = weights(ours)
    with pytest.raises(StepNotFinite):
        ours.fit(train_rows(CHOSEN, math.inf), 1)
    after = weights(ours)
    assert all(torch.equal(before[name], after[name]) for name in before)


class Recorder:
    """A trainer that notes what it was asked, and fails at some steps."""

    vocabulary = 1_000

    def __init__(self, *, fails: Sequence[int] = ()) -> None:
        self._fails = fails
        self.fitted: list[tuple[int, tuple[int, ...]]] = []
        """Learning-rate step and lengths of the rows of each step."""
        self.did: list[str] = []
        self._calls = 0

    def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
        self.did.append(f"redo {step}")
        return Trained({}, (True,) * len(batch))

    def fit(self, rows: Sequence[TrainRow], step: int, lr: float | None = None) -> dict[str, float]:
        self._calls += 1
        if self._calls in self._fails:
            raise StepNotFinite("the gradient's norm is nan; no weight was changed")
        self.fitted.append((step, tuple(len(row.token_ids) for row in rows)))
        return {"loss": float(step)}

    def row_logprobs(self, rows: Sequence[TrainRow]) -> list[NDArray[np.float32]]:
        self.did.append("infer")
        return [np.zeros(len(row.token_ids), np.float32) for row in rows]

    def logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        return np.zeros(len(token_ids) - 1, np.float32)

    def export(self, path: Path) -> None:
        path.write_bytes(b"weights")

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "tensors").write_bytes(b"tensors")

    def begin_to_save(self, folder: Path) -> None:
        self.save(folder)

    def is_saved(self, *, wait: bool = False) -> bool:
        return True

    def load(self, folder: Path) -> None:
        self.did.append("load")


def run_of(
    folder: Path,
    of: Recorder,
    method: Method,
    units: Sequence[Unit],
    log: PolicyLogInMemory,
    on_step: Callable[[Step], None] = lambda step: None,
) -> OfflineRun:
    settings = LearnerSettings(data_dir=folder, durable_files=False)
    config = RunConfig.model_validate({"policy": {"model": folder}})
    versions = PolicyVersions(settings, config, of, cast("Any", log), Codec())
    run = OfflineRun(config, method, units, of, versions, topic="trajectories", on_step=on_step)
    run.resume()
    return run


def published(log: PolicyLogInMemory) -> list[tuple[str | None, str | None, str | None]]:
    return [
        (one.version, one.parent_version, one.offline_method)
        for one in log.published
        if isinstance(one, PolicyUpdate)
    ]


def test_each_pass_ends_with_a_version_that_is_accounted_for(tmp_path: Path) -> None:
    log, of, seen = PolicyLogInMemory(), Recorder(), list[Step]()
    method = Sft(SftConfig(epochs=2, batch_size=3))
    run = run_of(tmp_path, of, method, EPISODES, log, seen.append)
    run.run()
    assert published(log) == [
        ("policy@1.2", "policy@0.0", "sft"),
        ("policy@1.4", "policy@1.2", "sft"),
    ]
    assert [update.version for update in run.published] == ["policy@1.2", "policy@1.4"]
    assert [step for step, _ in of.fitted] == [1, 2, 3, 4]
    assert [(one.what, one.done, one.total) for one in seen] == [
        ("epoch 1 of 2", 1, 2),
        ("epoch 1 of 2", 2, 2),
        ("epoch 2 of 2", 1, 2),
        ("epoch 2 of 2", 2, 2),
    ]
    entries = [event for event in log.published if isinstance(event, LedgerEntry)]
    actions = {action for unit in EPISODES for one in unit for action in one.actions}
    assert [(entry.version, set(entry.actions)) for entry in entries] == [
        ("policy@1.2", actions),
        ("policy@1.4", actions),
    ]
    assert {(entry.source, entry.term) for entry in entries} == {(OFFLINE, LedgerTerm.trained)}
    first = run.published[0]
    assert first.trained_actions == len(actions)
    assert first.metrics["episodes"] == 4
    assert first.metrics["loss"] == 1.5
    assert first.probe is not None
    assert [name for name in first.metrics if meaning_of(name) is None] == []
    assert (tmp_path / "artifacts" / "policy" / "1.4" / "model.safetensors").exists()


def test_a_stopped_run_publishes_nothing_of_the_pass_it_was_in(tmp_path: Path) -> None:
    log, of = PolicyLogInMemory(), Recorder()
    method = Sft(SftConfig(epochs=3, batch_size=1))

    def stop_in_the_second_pass(step: Step) -> None:
        if (step.what, step.done) == ("epoch 2 of 3", 2):
            run.stop()

    run = run_of(tmp_path, of, method, EPISODES, log, stop_in_the_second_pass)
    run.run()
    assert run.is_stopped
    assert published(log) == [("policy@1.4", "policy@0.0", "sft")]
    assert len(of.fitted) == 6

    again = Recorder()
    run = run_of(tmp_path, again, Sft(SftConfig()), EPISODES, log)
    run.run()
    assert again.did == ["load"]
    assert published(log)[1:] == [("policy@2.5", "policy@1.4", "sft")]


def test_a_run_that_lost_its_epoch_publishes_nothing(tmp_path: Path) -> None:
    log = PolicyLogInMemory()
    log.lost_after = 0
    run = run_of(tmp_path, Recorder(), Sft(SftConfig()), EPISODES, log)
    with pytest.raises(EpochLost):
        run.run()
    assert log.published == []
    assert list((tmp_path / "checkpoints" / "policy").glob("[0-9]*")) == []


def test_a_version_that_was_not_published_any_more_is_published_by_the_next_run(
    tmp_path: Path,
) -> None:
    class Dies(PolicyLogInMemory):
        def publish(self, events: Sequence[Event]) -> None:
            raise LogUnavailable("the broker went away")

    with pytest.raises(LogUnavailable):
        run_of(tmp_path, Recorder(), Sft(SftConfig()), EPISODES, Dies()).run()

    class Republishes(PolicyLogInMemory):
        def republish(self, events: Sequence[Event], ledger: LedgerMemory) -> int:
            self.publish(events)
            return len(events)

    log = Republishes()
    run = run_of(tmp_path, Recorder(), Sft(SftConfig()), EPISODES, log)
    assert published(log) == [("policy@1.1", "policy@0.0", "sft")]
    assert [entry.source for entry in log.published if isinstance(entry, LedgerEntry)] == [OFFLINE]
    run.run()
    assert published(log)[1:] == [("policy@1.2", "policy@1.1", "sft")]


def test_a_batch_that_is_not_finite_is_left_out_of_the_version_and_the_ledger(
    tmp_path: Path,
) -> None:
    log, of = PolicyLogInMemory(), Recorder(fails=[2])
    run_of(tmp_path, of, Sft(SftConfig(batch_size=1)), EPISODES, log).run()
    assert published(log) == [("policy@1.3", "policy@0.0", "sft")]
    (entry,) = [event for event in log.published if isinstance(event, LedgerEntry)]
    named = Counter(action.rpartition("-")[0].split("-")[1] for action in entry.actions)
    assert len(named) == 3
    with pytest.raises(StepNotFinite):
        run_of(
            tmp_path / "other", Recorder(fails=[1]), Sft(SftConfig()), EPISODES, PolicyLogInMemory()
        ).run()


@pytest.mark.parametrize(
    ("reference", "order"), [("base", ["infer", "load"]), ("parent", ["load", "infer"])]
)
def test_the_reference_is_what_the_run_starts_from_or_the_base_model(
    tmp_path: Path, reference: Any, order: list[str]
) -> None:
    log = PolicyLogInMemory()
    run_of(tmp_path, Recorder(), Sft(SftConfig()), EPISODES, log).run()
    of = Recorder()
    run = run_of(tmp_path, of, Dpo(DpoConfig(reference=reference)), PAIRS, log)
    assert of.did == order
    run.run()
    assert published(log)[1:] == [("policy@2.2", "policy@1.1", "dpo")]


def test_an_online_learner_goes_on_from_an_offline_version_and_back(tmp_path: Path) -> None:
    online = OnlineTrainer()
    learner, log = learner_of(tmp_path, online, rows_of(1, [1.0, 0.0]))
    learner.run()
    (first,) = [event for event in log.published if isinstance(event, PolicyUpdate)]
    assert first.positions != ()

    run = run_of(tmp_path, Recorder(), Sft(SftConfig()), EPISODES, log)
    run.run()
    assert [update.positions for update in run.published] == [first.positions]

    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    log.newest = log.updates[-1]
    learner, _ = learner_of(tmp_path, OnlineTrainer(), [], log=log)
    assert str(learner.version) == "policy@2.2"
    assert learner.batcher.positions() == first.positions
    # What is pending in the checkpoint of an offline version settles no group of the learner.
    assert {*learner.batcher.settled(), *learner.batcher._done} == set()  # pyright: ignore[reportPrivateUsage]


def test_moving_averages_outlive_an_offline_run(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "batch": {"groups": 1, "baseline": "moving_average", "baseline_decay": 0.5},
        "algorithm": {"name": "dr_grpo"},
    }
    learner, log = learner_of(tmp_path, OnlineTrainer(), rows_of(1, [4.0]), **tables)
    learner.run()
    run_of(tmp_path, Recorder(), Sft(SftConfig()), EPISODES, log).run()
    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    log.newest = log.updates[-1]
    online = OnlineTrainer()
    learner, _ = learner_of(tmp_path, online, rows_of(2, [1.0]), log=log, **tables)
    learner.run()
    assert advantages_in(online) == [-3.0]


def replayed(log: PolicyLogInMemory) -> PolicyLogInMemory:
    """The log as who starts now reads it."""
    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    log.newest = log.updates[-1]
    return log


def offline_steps(folder: Path, count: int) -> PolicyLogInMemory:
    """So many steps of a policy that nothing was trained of before; its log."""
    log = PolicyLogInMemory()
    run_of(folder, Recorder(), Sft(SftConfig(batch_size=1)), EPISODES[:count], log).run()
    return replayed(log)


class Follows(Remembers):
    """Goes on from an offline version, whose weight is 0."""

    def load(self, folder: Path) -> None:
        self.calls.append("load")


def test_the_schedule_of_an_online_learner_does_not_count_offline_steps(tmp_path: Path) -> None:
    log = offline_steps(tmp_path, 4)
    first, every = Follows(), {"every_steps": 10}
    learner, _ = learner_of(
        tmp_path,
        first,
        [*rows_of(1, [1.0, 0.0]), *rows_of(2, [1.0, 0.0])],
        log=log,
        checkpoint=every,
    )
    cast("Any", learner)._source.at_end = die
    with pytest.raises(Killed):
        learner.run()
    assert str(learner.version) == "policy@2.6"
    # What is made again has the learning rate that it had.
    again = Follows()
    resumed, _ = learner_of(
        tmp_path, again, rows_of(3, [1.0, 0.0]), log=replayed(log), checkpoint=every
    )
    resumed.run()
    assert (first.calls[-2:], again.calls) == (
        ["train 1", "train 2"],
        ["load", "train 1", "train 2", "train 3", "save"],
    )


def test_a_checkpoint_of_an_earlier_release_counts_all_steps(tmp_path: Path) -> None:
    log = offline_steps(tmp_path, 3)
    (file,) = (tmp_path / "checkpoints" / "policy").glob("*/state.json")
    state = json.loads(file.read_bytes())
    assert state.pop("trained_batches") == 0
    file.write_text(json.dumps(state))
    online = Follows()
    learner, _ = learner_of(tmp_path, online, rows_of(1, [1.0, 0.0]), log=log)
    learner.run()
    assert online.calls[:2] == ["load", "train 4"]


def test_steps_of_an_online_learner_without_tensors_are_made_again_first(tmp_path: Path) -> None:
    learner, log = learner_of(
        tmp_path, OnlineTrainer(), rows_of(1, [1.0, 0.0]), checkpoint={"every_steps": 10}
    )
    # A learner that is stopped would leave tensors.
    cast("Any", learner)._source.at_end = die
    with pytest.raises(Killed):
        learner.run()
    of = Recorder()
    run_of(tmp_path, of, Dpo(DpoConfig()), PAIRS, log).run()
    assert of.did[:2] == ["redo 1", "infer"]
    again = Recorder()
    run_of(tmp_path, again, Sft(SftConfig()), EPISODES, log)
    assert again.did == ["load"]


def test_a_learning_rate_of_its_own_follows_the_schedule() -> None:
    ours = trainer(optimizer={"lr": 1e-3, "warmup_steps": 2})
    rates = [
        ours.fit(train_rows(CHOSEN, 0.1), step, lr)["lr"]
        for step, lr in ((1, None), (1, 1e-5), (2, 1e-5))
    ]
    assert rates == pytest.approx([5e-4, 5e-6, 1e-5])


def test_an_online_learner_begins_where_only_offline_training_was(tmp_path: Path) -> None:
    log = PolicyLogInMemory()
    # The rows are those that the learner has still to read.
    units: list[Unit] = [
        (msgspec.structs.replace(CHOSEN, group_id=rows_of(1, [1.0, 0.0])[0].group_id),)
    ]
    run = run_of(tmp_path, Recorder(), Sft(SftConfig()), units, log)
    run.run()
    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    log.newest = log.updates[-1]
    learner, _ = learner_of(tmp_path, OnlineTrainer(), rows_of(1, [1.0, 0.0]), log=log)
    learner.run()
    assert str(learner.version) == "policy@2.2"
    assert Counter(entry.source for entry in log.published if isinstance(entry, LedgerEntry)) == {
        OFFLINE: 1,
        "learner": 1,
    }


def test_a_policy_whose_checkpoint_is_elsewhere_is_refused(tmp_path: Path) -> None:
    log = PolicyLogInMemory()
    run_of(tmp_path / "here", Recorder(), Sft(SftConfig()), EPISODES, log).run()
    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    with pytest.raises(CheckpointMissing):
        run_of(tmp_path / "there", Recorder(), Sft(SftConfig()), EPISODES, log)


def test_what_is_chosen_is_counted_and_rows_of_another_model_are_left_out() -> None:
    config = RunConfig.model_validate(
        {"policy": {"model": tiny_model()}, "sft": {"min_reward": 0.5}, "dpo": {"margin": 0.5}}
    )
    strange = [
        msgspec.structs.replace(row, token_ids=pack_ids([1, 2, 3, 99_999, 9]))
        if isinstance(row, Trajectory)
        else row
        for row in rows_of(2, [1.0, 0.0])
    ]
    live = [msgspec.structs.replace(row, mode=Mode.live) for row in rows_of(3, [1.0, 0.0])]
    events = [*rows_of(1, [1.0, 0.7, 0.0]), *strange, *live, None]
    chosen = choose(method_of("sft", config), config, events)
    assert [one.reward for one in chosen.episodes] == [1.0]
    assert chosen.left_out == {LeftOut.not_best: 2, LeftOut.no_tokens: 2}
    assert chosen.groups == 1
    assert [len(unit) for unit in chosen.units] == [1]


def test_the_rows_of_another_policy_can_be_trained_on() -> None:
    config = RunConfig.model_validate(
        {"policy": {"model": tiny_model(), "name": "tuned"}, "sft": {"rows_of": "policy"}}
    )
    events = rows_of(1, [1.0, 0.0])
    assert len(choose(method_of("sft", config), config, events).units) == 1
    assert choose(method_of("dpo", config), config, events).units == ()
