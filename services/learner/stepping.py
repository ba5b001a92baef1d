"""Makes the steps of a batch, and finds the group that a step fails on.

A part of a batch whose step fails is tried once more. If that fails as well, it is halved, and the
halves are tried, until a single group is left: the culprit. The others are trained. Where no group
can be trained, the data is not to blame: the model or the machine is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

import msgspec

from fulgurite.enums import FilterReason
from fulgurite.learning.baselines import MovingAverages
from fulgurite.learning.batching import BatchGroup, untrained
from services.common.kafka.dead_letters import words_of
from services.common.runtime import logs
from services.learner.config import RunConfig
from services.learner.errors import StepNotFinite, StepRefused
from services.learner.metrics import Stopwatch
from services.learner.rows import advantages, mini_batches
from services.learner.train_row import STEP_FAILURES, Trained, TrainRow, without_frames

_ADDED = ("optimizer_steps", "tokens/computed", "train_seconds")
"""Metrics that are added up over the parts of a batch; of the others the mean is taken."""

logger = logs.get()


class MakesSteps(Protocol):
    """The part of `services.learner.trainer.Trainer` that makes steps."""

    def train(self, batch: Sequence[Sequence[TrainRow]], step: int) -> Trained:
        """Make an optimizer step on each mini-batch; `step` counts batches from 1.

        If no step was made, and no weight was changed, raises StepRefused or one of STEP_FAILURES.
        """
        ...


class Culprit(NamedTuple):
    """A group that cannot be trained, where others of its batch can."""

    group: BatchGroup
    error: Exception


class Stepped(NamedTuple):
    """What became of a batch."""

    groups: tuple[BatchGroup, ...]
    """As they are settled: those without a step have no trained actions."""
    culprits: tuple[Culprit, ...]
    metrics: dict[str, float]
    batches: tuple[list[list[TrainRow]], ...]
    """The mini-batches of each time that steps were made, in order; without any, no weight
    changed.
    """
    refusal: StepRefused | None
    """Why the learner must stop."""

    @property
    def probe_row(self) -> TrainRow:
        """A row that was trained."""
        return self.batches[0][0][0]


class Stepping:
    """The steps of one batch."""

    def __init__(
        self,
        trainer: MakesSteps,
        config: RunConfig,
        stopwatch: Stopwatch,
        step: int,
        averages: MovingAverages | None = None,
    ) -> None:
        """`averages`: what groups without a baseline of their own are compared with."""
        self._trainer = trainer
        self._config = config
        self._stopwatch = stopwatch
        self._step = step
        self._averages = averages
        self._advantage_of: Mapping[str, float] = {}
        self._settled: list[BatchGroup] = []
        self._culprits: list[Culprit] = []
        self._refusal: StepRefused | None = None
        self._metrics: list[dict[str, float]] = []
        self._batches: list[list[list[TrainRow]]] = []

    def make(self, groups: Sequence[BatchGroup]) -> Stepped:
        """Make the steps. If the step of each of several groups fails, raises what with."""
        with self._stopwatch.phase("prepare"):
            self._advantage_of = advantages(groups, self._config, self._averages)
        for part, _ in self._try(groups, self._config.algorithm.mini_batches):
            self._train_or_halve(part)
        if not self._batches:
            self._acquit_groups()
        for culprit in self._culprits:
            self._settled.append(dead_lettered(culprit.group))
        return Stepped(
            tuple(self._settled),
            tuple(self._culprits),
            _combined(self._metrics),
            tuple(self._batches),
            self._refusal,
        )

    def _train_or_halve(self, groups: Sequence[BatchGroup]) -> None:
        """Train groups whose step has failed, without those that it fails on."""
        for failed, error in self._try(groups, 1):
            if len(failed) == 1:
                self._culprits.append(Culprit(failed[0], error))
            else:
                half = len(failed) // 2
                self._train_or_halve(failed[:half])
                self._train_or_halve(failed[half:])

    def _try(self, groups: Sequence[BatchGroup], count: int) -> list[_Failed]:
        """Train groups in so many mini-batches; returns those whose step failed, and why."""
        if self._refusal is not None:
            self._refuse(groups, self._refusal)
            return []
        try:
            with self._stopwatch.phase("prepare"):
                parts = mini_batches(groups, self._advantage_of, self._config, count)
            with self._stopwatch.phase("train"):
                trained = self._trainer.train([rows for _, rows in parts], self._step)
        except StepRefused as error:
            self._refusal = error
            self._refuse(groups, error)
            return []
        except STEP_FAILURES as error:
            return [_failed(groups, error)]
        return self._note(parts, trained)

    def _note(
        self, parts: Sequence[tuple[Sequence[BatchGroup], list[TrainRow]]], trained: Trained
    ) -> list[_Failed]:
        """Note what steps were made; returns the mini-batches whose step failed, and why."""
        self._metrics.append(trained.metrics)
        self._batches.append(
            [rows for (_, rows), done in zip(parts, trained.mini_batches, strict=True) if done]
        )
        self._refusal = trained.refusal
        failed: list[_Failed] = []
        for index, (groups, _) in enumerate(parts):
            if trained.mini_batches[index]:
                self._settled += groups
            elif trained.refusal is not None:
                self._refuse(groups, trained.refusal)
            else:
                failed.append(_failed(groups, trained.failures[index]))
        return failed

    def _refuse(self, groups: Sequence[BatchGroup], refusal: StepRefused) -> None:
        self._settled += [untrained(group, refusal.reason) for group in groups]

    def _acquit_groups(self) -> None:
        """Blame no group where none could be trained, but the only one of a batch."""
        culprits = self._culprits
        if self._refusal is not None:
            self._refuse([culprit.group for culprit in culprits], self._refusal)
        elif all(isinstance(culprit.error, StepNotFinite) for culprit in culprits):
            self._settled += [
                untrained(culprit.group, FilterReason.not_finite) for culprit in culprits
            ]
        elif len(culprits) == 1:
            return
        else:
            raise culprits[0].error
        self._culprits = []


def dead_lettered(group: BatchGroup) -> BatchGroup:
    """The group as settled when its rows are in `dead.letters`, which account for its actions."""
    return msgspec.structs.replace(group, episodes=(), outcomes={})


_Failed = tuple[Sequence[BatchGroup], Exception]


def _failed(groups: Sequence[BatchGroup], error: Exception) -> _Failed:
    logger.warning(
        "a step failed; no weight was changed",
        groups=[group.group_id for group in groups],
        error=words_of(error),
        exc_info=None if isinstance(error, StepNotFinite) else error,
    )
    # What is tried next needs the memory.
    return groups, without_frames(error)


def _combined(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of the parts of a batch as one."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, value in part.items():
            values[name].append(value)
    return {name: sum(of) if name in _ADDED else fmean(of) for name, of in values.items()}
