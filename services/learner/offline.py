"""Trains a policy on a recording: SFT on the best episodes, DPO on pairs. `fulgurite sft` and
`fulgurite dpo` call it.

Each pass over what was chosen ends with a version, which is published as those of online training
are: checkpoint, update, ledger. A run that is interrupted leaves nothing of the pass that it was
in; versions of earlier passes stay. Importable without torch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fulgurite.enums import Mode
from fulgurite.events import Event, GroupClosed, PolicyUpdate, Tombstone, Trajectory
from fulgurite.learning.offline import (
    LeftOut,
    RecordedEpisode,
    RecordedGroup,
    Recording,
    Window,
    best_episodes,
    offline_entries,
    preference_pairs,
)
from fulgurite.tokens import unpack_ids
from fulgurite.versions import Version
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.learner.config import DpoConfig, OfflineConfig, RunConfig, SftConfig
from services.learner.errors import StepNotFinite
from services.learner.redo import MakesSteps
from services.learner.rows import oddity, without_actions
from services.learner.train_row import TrainRow
from services.learner.versions import (
    NOTHING_READ,
    HasWeights,
    PolicyVersions,
    Progress,
    progress_of,
)

logger = logs.get()

Unit = tuple[RecordedEpisode, ...]
"""What is trained together: an episode (SFT), or a chosen and a rejected one (DPO)."""


class Fits(HasWeights, MakesSteps, Protocol):
    """The interface of `services.learner.trainer.Trainer` that offline training uses."""

    def row_logprobs(self, rows: Sequence[TrainRow]) -> list[NDArray[np.float32]]:
        """Log-probabilities (T,) of each row's trained tokens; else 0."""
        ...

    def fit(self, rows: Sequence[TrainRow], step: int, lr: float | None = None) -> dict[str, float]:
        """Make an optimizer step that makes trained tokens likelier, by their weights.

        `lr`: in the place of the run's. Raises StepNotFinite; then no weight was changed.
        """
        ...


class Method(Protocol):
    """A way to train on a recording."""

    name: str

    @property
    def config(self) -> OfflineConfig:
        """Its section of the run."""
        ...

    @property
    def reference(self) -> Literal["parent", "base"] | None:
        """What the policy is compared with, if it is."""
        ...

    def choose(self, groups: Sequence[RecordedGroup]) -> tuple[tuple[Unit, ...], Counter[LeftOut]]:
        """Choose what is trained; returns it, and the episodes that are not, by reason."""
        ...

    def refer(self, trainer: Fits, units: Sequence[Unit]) -> None:
        """Note what the reference, whose weights the trainer has now, says of these."""
        ...

    def step(self, trainer: Fits, units: Sequence[Unit], step: int) -> dict[str, float]:
        """Make an optimizer step; returns its metrics. Raises StepNotFinite."""
        ...


class Sft:
    """Rejection-sampled SFT: the best episodes of each group become likelier.

    Every episode weighs the same, whatever its length.
    """

    name = "sft"
    reference = None

    def __init__(self, config: SftConfig) -> None:
        self.config = config

    def choose(self, groups: Sequence[RecordedGroup]) -> tuple[tuple[Unit, ...], Counter[LeftOut]]:
        """See `Method`."""
        best, left_out = best_episodes(
            groups, top_k=self.config.top_k, min_reward=self.config.min_reward
        )
        return tuple((episode,) for episode in best), Counter({LeftOut.not_best: left_out})

    def refer(self, trainer: Fits, units: Sequence[Unit]) -> None:
        """See `Method`."""

    def step(self, trainer: Fits, units: Sequence[Unit], step: int) -> dict[str, float]:
        """See `Method`."""
        episodes = [episode for unit in units for episode in unit]
        rows = [
            row
            for episode in episodes
            for row in train_rows(episode, 1 / (trained_tokens(episode) * len(episodes)))
        ]
        return trainer.fit(rows, step, self.config.lr)


class Dpo:
    """DPO: the chosen episode of each pair becomes likelier than the rejected one, compared with a
    reference (`services.learner.likelihood`).
    """

    name = "dpo"

    def __init__(self, config: DpoConfig) -> None:
        self.config = config
        self._reference: dict[tuple[str, str], float] = {}

    @property
    def reference(self) -> Literal["parent", "base"]:
        """See `Method`."""
        return self.config.reference

    def choose(self, groups: Sequence[RecordedGroup]) -> tuple[tuple[Unit, ...], Counter[LeftOut]]:
        """See `Method`."""
        pairs, left_out = preference_pairs(
            groups,
            margin=self.config.margin,
            pairs_per_group=self.config.pairs_per_group,
            first_action=self.config.compare == "first_action",
        )
        units = tuple((pair.chosen, pair.rejected) for pair in pairs)
        return units, Counter({LeftOut.no_pair: left_out})

    def refer(self, trainer: Fits, units: Sequence[Unit]) -> None:
        """See `Method`."""
        episodes = [episode for unit in units for episode in unit]
        for episode, logprob in zip(episodes, _logprobs(trainer, episodes), strict=True):
            self._reference[_name(episode)] = logprob

    def step(self, trainer: Fits, units: Sequence[Unit], step: int) -> dict[str, float]:
        """See `Method`."""
        from services.learner.likelihood import preferences

        episodes = [episode for unit in units for episode in unit]
        compared = preferences(
            _in_pairs(_logprobs(trainer, episodes)),
            _in_pairs([self._reference[_name(episode)] for episode in episodes]),
            self.config.beta,
        )
        slopes = [slope for pair in compared.slopes for slope in pair]
        rows = [
            row
            for episode, slope in zip(episodes, slopes, strict=True)
            for row in train_rows(episode, -slope)
        ]
        return trainer.fit(rows, step, self.config.lr) | {
            "loss": compared.loss,
            "preference/margin": compared.margin,
            "preference/accuracy": compared.accuracy,
        }


def method_of(name: str, config: RunConfig) -> Method:
    """The method of a name, as the run has it: `sft` or `dpo`."""
    return Sft(config.sft) if name == Sft.name else Dpo(config.dpo)


class Chosen(NamedTuple):
    """What is trained of a recording, and what is not."""

    units: tuple[Unit, ...]
    groups: int
    """Groups that have an episode that could be trained."""
    left_out: Counter[LeftOut]
    """Episodes that are not trained, by reason."""

    @property
    def episodes(self) -> tuple[RecordedEpisode, ...]:
        """All episodes that are trained."""
        return tuple(episode for unit in self.units for episode in unit)


def choose(
    method: Method,
    config: RunConfig,
    events: Iterable[Event | None],
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    closed_only: bool = True,
) -> Chosen:
    """Read a recording, and choose what is trained.

    `closed_only`: leave out groups that are not completely there. Rows that are not of the model's
    tokens are left out.
    """
    policy = method.config.rows_of or config.policy.rows_of or config.policy.name
    recording = Recording(
        Window(
            policy=policy,
            modes=frozenset(map(Mode, method.config.modes)),
            since_ms=since_ms,
            until_ms=until_ms,
            closed_only=closed_only,
            max_row_tokens=config.batch.max_row_tokens,
        )
    )
    vocabulary = _vocabulary(config.policy.model)
    for event in events:
        if isinstance(event, Trajectory) and event.policy == policy:
            recording.add(_checked(event, vocabulary))
        elif isinstance(event, Trajectory | Tombstone | GroupClosed):
            recording.add(event)
    groups = recording.groups()
    units, left_out = method.choose(groups)
    return Chosen(units, len(groups), +(recording.left_out + left_out))


class Step(NamedTuple):
    """Where a run is."""

    what: str
    """`reference`, or `epoch 2 of 3`."""
    done: int
    total: int
    """Steps of this part of the run."""
    metrics: dict[str, float]


class OfflineRun:
    """Trains on what was chosen. Not thread-safe; `run` returns soon after `stop`."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        units: Sequence[Unit],
        trainer: Fits,
        versions: PolicyVersions,
        *,
        topic: str | None,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> None:
        """`topic`: where the recording was read; None for an export."""
        self._config = config
        self._method = method
        self._units = tuple(units)
        self._trainer = trainer
        self._versions = versions
        self._topic = topic
        self._on_step = on_step
        self._progress: Progress = NOTHING_READ
        self._steps = 0
        self._stopping = False
        self.published: list[PolicyUpdate] = []
        """The updates of this run."""

    @property
    def version(self) -> Version:
        """The newest version."""
        return self._versions.version

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped before its end."""
        return self._stopping and len(self.published) < self._method.config.epochs

    def stop(self) -> None:
        """Make `run` return after the current optimizer step."""
        self._stopping = True

    def resume(self) -> None:
        """Go on from the newest checkpoint, and acquire the next epoch. Raises LearnerError."""
        found = self._versions.newest_checkpoint()
        # The trainer has the base model's weights until the checkpoint is loaded.
        if self._method.reference == "base":
            self._refer()
        if found is not None:
            state, tensors = found
            self._versions.resume(state, tensors)
            self._versions.redo(self._trainer)
            # What an online learner has read and counted stays as it is.
            self._progress = progress_of(state)
        self._versions.acquire_epoch(self._method.name)
        if self._method.reference == "parent":
            self._refer()

    def run(self) -> None:
        """Train and publish until the end, or until stopped. Raises LearnerError."""
        for epoch in range(1, self._method.config.epochs + 1):
            if not self._stopping:
                self._train_epoch(epoch)

    def _refer(self) -> None:
        batches = _batches(self._units, self._method.config.batch_size)
        for done, batch in enumerate(batches, 1):
            if self._stopping:
                return
            self._method.refer(self._trainer, batch)
            self._on_step(Step("reference", done, len(batches), {}))

    def _train_epoch(self, epoch: int) -> None:
        units = list(self._units)
        random.Random(f"{self._config.engine.seed} {epoch}").shuffle(units)
        batches = _batches(units, self._method.config.batch_size)
        trained: list[Unit] = []
        steps: list[dict[str, float]] = []
        failure: StepNotFinite | None = None
        for done, batch in enumerate(batches, 1):
            if self._stopping:
                return
            try:
                with self._versions.stopwatch.phase("train"):
                    metrics = self._method.step(self._trainer, batch, self._steps + 1)
            except StepNotFinite as error:
                logger.error("no step was made of a batch; it is left out", error=str(error))
                failure = error
                continue
            self._steps += 1
            steps.append(metrics)
            trained += batch
            self._on_step(
                Step(f"epoch {epoch} of {self._method.config.epochs}", done, len(batches), metrics)
            )
        if failure is not None and not steps:
            raise failure
        self._publish(trained, steps)

    def _publish(self, trained: Sequence[Unit], steps: Sequence[dict[str, float]]) -> None:
        episodes = [episode for unit in trained for episode in unit]
        parent, artifact = self._versions.advance(len(steps))
        update = self._versions.update(
            parent,
            artifact,
            train_rows(episodes[0], 0.0)[0],
            topic=self._topic,
            positions=self._progress.positions,
            trained_actions=len({action for one in episodes for action in one.actions}),
            metrics=_means(steps)
            | {
                "optimizer_steps": float(len(steps)),
                "groups": float(len({episode.group_id for episode in episodes})),
                "episodes": float(len(episodes)),
                "reward_mean": fmean(episode.reward for episode in episodes),
                "tokens/trained": float(sum(map(trained_tokens, episodes))),
            },
            offline_method=self._method.name,
        )
        entries = offline_entries(episodes, self._versions.version, now_ms())
        self._versions.publish([update, *entries], self._progress, trained=True)
        self.published.append(update)


def train_rows(episode: RecordedEpisode, weight: float) -> list[TrainRow]:
    """Rows of an episode, each trained token with this weight, at temperature 1."""
    rows: list[TrainRow] = []
    for row in episode.rows:
        token_ids = unpack_ids(row.token_ids)
        zeros = np.zeros(len(token_ids), np.float32)
        trained = np.zeros(len(token_ids), np.bool_)
        for span in row.spans:
            trained[span.start : span.end] = True
        rows.append(
            TrainRow(
                token_ids=token_ids,
                trained=trained,
                behaviour_logprobs=zeros,
                advantages=zeros,
                weights=np.where(trained, np.float32(weight), np.float32(0)),
                temperature=zeros + 1,
            )
        )
    return rows


def trained_tokens(episode: RecordedEpisode) -> int:
    """Tokens of the actions that are trained."""
    return sum(span.end - span.start for row in episode.rows for span in row.spans)


def _logprobs(trainer: Fits, episodes: Sequence[RecordedEpisode]) -> list[float]:
    """The log-probability of all trained tokens of each episode, over all of its rows."""
    rows = [train_rows(episode, 0.0) for episode in episodes]
    found = iter(trainer.row_logprobs([row for of_episode in rows for row in of_episode]))
    return [sum(float(next(found).sum()) for _ in of_episode) for of_episode in rows]


def _in_pairs(values: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _name(episode: RecordedEpisode) -> tuple[str, str]:
    return episode.group_id, episode.rollout_id


def _batches(units: Sequence[Unit], size: int) -> list[Sequence[Unit]]:
    return [units[start : start + size] for start in range(0, len(units), size)]


def _means(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(step[name] for step in steps) for name in steps[0]}


def _checked(row: Trajectory, vocabulary: int) -> Trajectory | Tombstone:
    odd = oddity(row, vocabulary)
    if odd is None:
        return row
    logger.warning("a row cannot be trained and is left out", group_id=row.group_id, error=odd)
    return without_actions(row)


def _vocabulary(model: Path) -> int:
    """How many tokens a model has, without loading it."""
    from transformers import AutoConfig

    return int(cast("Any", AutoConfig).from_pretrained(model).get_text_config().vocab_size)
