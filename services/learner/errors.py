"""What stops a learner.

LearnerError
├── EpochLost            another learner claimed this epoch or a later one
├── CheckpointMissing    the log knows versions of this policy, the data folder has no checkpoint of it
├── CheckpointForeign    the checkpoint belongs to another topic or policy
├── OffsetOutOfRange     what comes next has been deleted from the topic
├── IncompatibleSettings settings that do not go together
└── PolicyDrift          engine and trainer disagree beyond the bound
"""

from __future__ import annotations


class LearnerError(Exception):
    """The learner cannot go on; the message says why and what to do."""


class EpochLost(LearnerError):
    """Another learner claimed the epoch first, or a later one."""


class CheckpointMissing(LearnerError):
    """The log knows versions of this policy, and there is no checkpoint to go on from."""


class CheckpointForeign(LearnerError):
    """The checkpoint belongs to another topic or policy."""


class OffsetOutOfRange(LearnerError):
    """The records to read next are no longer in the topic."""


class IncompatibleSettings(LearnerError):
    """A loss, a correction and rows that do not go together."""


class PolicyDrift(LearnerError):
    """Engine and trainer disagree on the behaviour's log-probabilities."""
