"""The learner's error tree.

LearnerError
├── ConfigInvalid             a key of the run is unknown, wrong, or does not go with another one
├── ModelUnusable             FULGURITE_MODEL is not the folder of a model
├── TopicMissing              the topic to train on is not on the broker
├── EpochLost                 another learner acquired this epoch or a later one
├── CheckpointMissing         the log knows versions of this policy, the data folder has no checkpoint of it
├── CheckpointDamaged         the newest checkpoint is incomplete: a restore or a copy of its folder broke off
├── CheckpointLocked          another learner of this policy writes into the same folder
├── CheckpointOld             the log knows later versions than the checkpoint: it was restored from a backup
├── CheckpointForeign         the checkpoint belongs to another topic or policy
├── StepNotRepeated           a step that the checkpoint has no tensors of came out otherwise when it was made again
├── WorkersLost               one of several workers has failed; the learner resumes with new ones
├── OffsetOutOfRange          the records to read next were deleted from the topic
└── TrainingError
    ├── IncompatibleModel     a layer of the model cannot be computed as a forest of rows
    ├── IncompatibleObjective loss, correction and batch do not fit together
    ├── NoBaseline            a group with fewer than two scored episodes has no group-relative advantage
    ├── StepRefused           no step was made of a batch, whose actions are filtered; the learner stops
    │   ├── PolicyDrift       engine and trainer disagree beyond the stop bound
    │   └── EntropyCollapse   the policy's entropy is below the stop bound
    └── StepNotFinite         a loss or a gradient is infinite or NaN; no weight was changed, and the learner continues
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from fulgurite.enums import FilterReason


class LearnerError(Exception):
    """The learner cannot continue; the text says why and what to do."""


class ConfigInvalid(LearnerError):
    """A key of the run is unknown, has a wrong value, or does not go with another one."""


class ModelUnusable(LearnerError):
    """FULGURITE_MODEL is not the folder of a model."""


class TopicMissing(LearnerError):
    """The topic to train on does not exist."""


class EpochLost(LearnerError):
    """Another learner acquired the epoch first, or a later one."""


class CheckpointMissing(LearnerError):
    """The log has versions of this policy, but the data folder has no checkpoint of it."""


class CheckpointDamaged(LearnerError):
    """The newest checkpoint is incomplete."""


class CheckpointLocked(LearnerError):
    """Another learner of this policy writes into the same folder."""


class CheckpointOld(LearnerError):
    """The log knows later versions than the checkpoint."""


class CheckpointForeign(LearnerError):
    """The checkpoint belongs to another topic or policy."""


class StepNotRepeated(LearnerError):
    """A step that the checkpoint has no tensors of came out otherwise when it was made again."""


class OffsetOutOfRange(LearnerError):
    """The records to read next are no longer in the topic."""


class WorkersLost(LearnerError):
    """One of several workers has failed, and the others with it."""


class TrainingError(LearnerError):
    """Base of the errors within a step."""


class IncompatibleModel(TrainingError):
    """A layer of the model cannot be computed as a forest of rows."""


class IncompatibleObjective(TrainingError):
    """Loss, correction and batch do not fit together. Raised before anything is computed."""


class NoBaseline(TrainingError):
    """A group-relative advantage needs two scored episodes; the raw reward is not used."""


class StepRefused(TrainingError):
    """A bound that the run sets is crossed. The optimizer made no step."""

    reason: ClassVar[FilterReason]
    """Of the ledger's entry for the batch's actions."""


class EntropyCollapse(StepRefused):
    """The policy's entropy is below the stop bound."""

    reason = FilterReason.collapsed


class PolicyDrift(StepRefused):
    """The engine's log-probabilities and the trainer's differ beyond the stop bound."""

    reason = FilterReason.drifted

    def __init__(self, message: str, *, k3: float, ess: float) -> None:
        super().__init__(message)
        self.k3 = k3
        self.ess = ess

    def __reduce__(self) -> tuple[Callable[..., PolicyDrift], tuple[Any, ...]]:
        """Errors cross from worker to learner; one with keywords does not by itself."""
        return partial(PolicyDrift, k3=self.k3, ess=self.ess), self.args


class StepNotFinite(TrainingError):
    """The loss, the gradient or a log-probability of a batch is infinite or NaN. The optimizer made
    no step.
    """
