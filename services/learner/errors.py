"""What stops a learner, drawn once.

LearnerError
├── ModelUnusable             FULGURITE_MODEL is no folder of a model
├── TopicMissing              the topic to train on is not on the broker
├── EpochLost                 another learner acquired this epoch or a later one
├── CheckpointMissing         the log knows versions of this policy, the data folder has no checkpoint of it
├── CheckpointDamaged         the newest checkpoint is not whole: a restore or a copy of its folder broke off
├── CheckpointForeign         the checkpoint belongs to another topic or policy
├── OffsetOutOfRange          what comes next has been deleted from the topic
└── TrainingError
    ├── IncompatibleObjective a loss, a correction and episodes that do not go together
    ├── NoBaseline            a group with fewer than two scored episodes, asked for a group-relative advantage
    ├── PolicyDrift           engine and trainer disagree beyond the stop bound; no weight was changed
    └── StepNotFinite         a loss or a gradient is infinite or no number; no weight was changed, and the learner goes on
"""  # noqa: E501 - a table

from __future__ import annotations


class LearnerError(Exception):
    """The learner cannot go on; the message says why and what to do."""


class ModelUnusable(LearnerError):
    """There is nothing to start from."""


class TopicMissing(LearnerError):
    """There is nothing to learn from, and there never would be."""


class EpochLost(LearnerError):
    """Another learner acquired the epoch first, or a later one."""


class CheckpointMissing(LearnerError):
    """The log knows versions of this policy, and there is no checkpoint to go on from."""


class CheckpointDamaged(LearnerError):
    """The newest checkpoint is not whole."""


class CheckpointForeign(LearnerError):
    """The checkpoint belongs to another topic or policy."""


class OffsetOutOfRange(LearnerError):
    """The records to read next are no longer in the topic."""


class TrainingError(LearnerError):
    """Base of what goes wrong within a step."""


class IncompatibleObjective(TrainingError):
    """The configured loss, correction and batch do not go together; raised before anything is
    computed.
    """


class NoBaseline(TrainingError):
    """A group-relative advantage needs two scored episodes; the raw reward is never taken in its
    place.
    """


class PolicyDrift(TrainingError):
    """The probabilities the engine recorded and those of the trainer differ beyond the stop bound.
    The optimizer made no step.
    """

    def __init__(self, message: str, *, k3: float, ess: float) -> None:
        super().__init__(message)
        self.k3 = k3
        self.ess = ess


class StepNotFinite(TrainingError):
    """The loss or the gradient of a batch is infinite or no number. The optimizer made no step."""
