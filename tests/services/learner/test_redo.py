"""A learner that resumes between two checkpoints with tensors makes the steps between again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from fulgurite.events import PolicyUpdate, Probe
from fulgurite.tokens import FloatArray, pack_ids, pack_logprobs
from services.learner.config import RunConfig
from services.learner.errors import StepNotFinite, StepNotRepeated
from services.learner.redo import read_step, redo, write_step
from services.learner.train_row import Trained, TrainRow
from tests.services.learner import test_learner as loop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.services.learner.test_lora import adapted
    from tests.services.learner.test_trainer import batch, sampled, trainer
    from tests.services.learner.workers import worker_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

IDS = [5, 17, 99, 3]


class Remembers(loop.Trainer):
    """Its weight is the sum of all tokens that it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 0
        self.calls: list[str] = []

    def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
        self.calls.append(f"train {step}")
        self.weight = self.weight * 3 + sum(
            int(row.token_ids.sum()) + step for rows in batch for row in rows
        )
        return super().train(batch, step)

    def logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        return np.full(len(token_ids) - 1, self.weight % 1009, np.float32)

    def save(self, folder: Path) -> None:
        self.calls.append("save")
        (folder / "weight").write_text(str(self.weight))

    def load(self, folder: Path) -> None:
        self.calls.append("load")
        self.weight = int((folder / "weight").read_text())


class Killed(Exception):
    """What kill -9 is to the loop."""


def die() -> None:
    raise Killed


def trained_on(
    tmp_path: Path, groups: Sequence[int], log: loop.PolicyLogInMemory | None = None
) -> tuple[Remembers, loop.PolicyLogInMemory]:
    made = Remembers()
    events = [row for group in groups for row in loop.rows_of(group, [1.0, 0.0])]
    learner, log = loop.learner_of(tmp_path, made, events, log=log, checkpoint={"every_steps": 3})
    cast("Any", learner)._source.at_end = die
    with pytest.raises(Killed):
        learner.run()
    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    return made, log


@pytest.mark.parametrize("before", range(1, 8))
def test_a_resumed_learner_has_the_weights_of_one_that_never_stopped(
    tmp_path: Path, before: int
) -> None:
    whole, _ = trained_on(tmp_path / "whole", range(1, 9))
    first, log = trained_on(tmp_path / "cut", range(1, before + 1))
    assert first.calls.count("save") == before // 3
    published = len(log.published)
    resumed = Remembers()
    loop.learner_of(tmp_path / "cut", resumed, [], log=log, checkpoint={"every_steps": 3})
    tensors = before // 3 * 3
    assert resumed.calls == [
        *(["load"] if tensors else []),
        *(f"train {step}" for step in range(tensors + 1, before + 1)),
    ]
    assert resumed.weight == first.weight
    assert len(log.published) == published, "nothing is published again"
    last, _ = trained_on(tmp_path / "cut", range(before + 1, 9), log)
    assert last.weight == whole.weight
    assert log.versions() == {f"policy@{1 if step <= before else 3}.{step}" for step in range(1, 9)}


class SlowDisk(Remembers):
    """Writes its weight only when somebody waits for it, or while it has made so many steps."""

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        self._writes_after = steps
        self._writing: tuple[Path, int] | None = None

    def begin_to_save(self, folder: Path) -> None:
        assert self._writing is None, "one at a time"
        self._writing = folder, self.weight

    def is_saved(self, *, wait: bool = False) -> bool:
        if not (wait or len(self.steps) == self._writes_after):
            return False
        assert self._writing is not None
        folder, weight = self._writing
        self._writing = None
        (folder / "weight").write_text(str(weight))
        return True


def learn_slowly(
    tmp_path: Path, made: SlowDisk, *, killed: bool
) -> tuple[SlowDisk, loop.PolicyLogInMemory]:
    """Four steps with tensors after each; the trainer, and what was published."""
    events = [row for group in range(1, 5) for row in loop.rows_of(group, [1.0, 0.0])]
    learner, log = loop.learner_of(tmp_path, made, events)
    if killed:
        cast("Any", learner)._source.at_end = die
        with pytest.raises(Killed):
            learner.run()
    else:
        learner.run()
    log.updates = [event for event in log.published if isinstance(event, PolicyUpdate)]
    return made, log


@pytest.mark.parametrize(
    ("writes_after", "calls"),
    [
        (0, ["train 1", "train 2", "train 3", "train 4"]),
        (1, ["load", "train 2", "train 3", "train 4"]),
        # Those of step 1 are complete when step 3 is made, those of step 3 right after.
        (3, ["load", "train 4"]),
        (4, ["load"]),
    ],
)
def test_versions_are_published_while_tensors_are_written(
    tmp_path: Path, writes_after: int, calls: list[str]
) -> None:
    killed, log = learn_slowly(tmp_path, SlowDisk(writes_after), killed=True)
    assert log.versions() == {f"policy@1.{step}" for step in range(1, 5)}
    resumed = SlowDisk()
    loop.learner_of(tmp_path, resumed, [], log=log)
    assert (resumed.calls, resumed.weight) == (calls, killed.weight)


def test_a_learner_that_is_stopped_waits_for_its_tensors(tmp_path: Path) -> None:
    stopped, log = learn_slowly(tmp_path, SlowDisk(), killed=False)
    resumed = SlowDisk()
    loop.learner_of(tmp_path, resumed, [], log=log)
    assert (resumed.calls, resumed.weight) == (["load"], stopped.weight)


def test_a_step_that_comes_out_otherwise_stops_the_learner(tmp_path: Path) -> None:
    _, log = trained_on(tmp_path, [1, 2])

    class Changed(Remembers):
        def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
            self.weight += 1
            return super().train(batch, step)

    with pytest.raises(StepNotRepeated, match=r"the step to policy@1\.1, .* set back what changed"):
        loop.learner_of(tmp_path, Changed(), [], log=log, checkpoint={"every_steps": 3})


def test_a_step_that_fails_now_stops_the_learner(tmp_path: Path) -> None:
    _, log = trained_on(tmp_path, [1])

    class Fails(Remembers):
        def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
            raise StepNotFinite("the gradient's norm is nan; no weight was changed")

    with pytest.raises(StepNotRepeated, match="fails now: the gradient's norm is nan"):
        loop.learner_of(tmp_path, Fails(), [], log=log, checkpoint={"every_steps": 3})


def config(**tables: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"policy": {"model": "m"}, "engine": {"dtype": "fp32"}, **tables}
    )


def test_steps_are_not_made_again_with_other_keys(tmp_path: Path) -> None:
    _, log = trained_on(tmp_path, [1, 2])
    changed = {"checkpoint": {"every_steps": 3}, "optimizer": {"lr": 1e-6}}
    with pytest.raises(StepNotRepeated, match=r"was made with optimizer\.lr = 4e-05, now 1e-06"):
        loop.learner_of(tmp_path, Remembers(), [], log=log, **changed)
    # Once with those of before, and stopped: the next start may have others.
    stopped = Remembers()
    learner, _ = loop.learner_of(tmp_path, stopped, [], log=log, checkpoint={"every_steps": 3})
    learner.run()
    assert stopped.calls == ["train 1", "train 2", "save"]
    other = Remembers()
    loop.learner_of(tmp_path, other, [], log=log, **changed)
    assert (other.calls, other.weight) == (["load"], stopped.weight)


@pytest.mark.parametrize("aged", [False, True])
def test_a_batch_comes_back_as_it_was(tmp_path: Path, *, aged: bool) -> None:
    rows = batch()
    if aged:
        rows = [
            msgspec.structs.replace(row, ages=np.full(len(row.trained), n, np.int32))
            for n, row in enumerate(rows)
        ]
    parts = [rows[:4], rows[4:]]
    probe = Probe(token_ids=pack_ids(IDS), logprobs=pack_logprobs([-1.0, -2.0, -0.5]))
    path = tmp_path / "00000007.safetensors"
    write_step(path, "policy@1.7", parts, probe, config(), schedule_step=4)
    step = read_step(path)
    assert (step.version, step.schedule_step, step.probe_ids) == ("policy@1.7", 4, IDS)
    assert (step.keys["optimizer.lr"], step.keys["algorithm.clip.low"]) == (4e-5, None)
    assert step.probe_logprobs.tolist() == [-1.0, -2.0, -0.5]
    assert [len(part) for part in step.batch] == [4, len(rows) - 4]
    for part, again in zip(parts, step.batch, strict=True):
        for row, found in zip(part, again, strict=True):
            for field in msgspec.structs.fields(TrainRow):
                one, other = getattr(row, field.name), getattr(found, field.name)
                assert (one is None) == (other is None)
                if one is not None:
                    assert one.dtype == other.dtype
                    np.testing.assert_array_equal(one, other)


def test_a_batch_of_an_earlier_release_has_the_step_of_its_version(tmp_path: Path) -> None:
    probe = Probe(token_ids=pack_ids(IDS), logprobs=pack_logprobs([-1.0, -2.0, -0.5]))
    path = tmp_path / "00000007.safetensors"
    write_step(path, "policy@1.7", [batch()], probe, config(), schedule_step=4)
    with cast("Any", safe_open(path, framework="numpy")) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        metadata = {name: file.metadata()[name] for name in ("version", "keys")}
    save_file(tensors, path, metadata=metadata)
    assert read_step(path).schedule_step == 7


@pytest.mark.parametrize("train", ["full", "lora"])
def test_steps_are_made_again_to_the_last_bit(tmp_path: Path, train: str) -> None:
    """Even from the base model, whose adapter begins with random numbers."""

    def make(**tables: Any) -> Any:
        tables = {"optimizer": {"lr": 1e-2}, "drift": {"stop": {"k3": 1e9, "ess": 0.0}}} | tables
        return adapted(**tables) if train == "lora" else trainer(**tables)

    first, again = make(), make()
    for step in (1, 2):
        rows = sampled(first, batch(step))
        first.train([rows[:4], rows[4:]], step)
        probe = Probe(token_ids=pack_ids(IDS), logprobs=pack_logprobs(first.logprobs(IDS)))
        path = tmp_path / f"{step:08d}.safetensors"
        parts = [rows[:4], rows[4:]]
        write_step(path, f"policy@1.{step}", parts, probe, config(), schedule_step=step)
    paths = sorted(tmp_path.iterdir())
    redo(again, paths, config())
    for one, other in zip(
        worker_of(first).module.state_dict().values(),
        worker_of(again).module.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one.full_tensor(), other.full_tensor())
    with pytest.raises(StepNotRepeated, match=r"policy@1\.1, .* is rounding"):
        redo(make(optimizer={"lr": 3e-2}), paths, config())
