"""What can go wrong between log and engine.

ApplierError
├── EngineUnreachable   nobody answers, or not in time: tried again, for ever
└── ApplyFailed         this version cannot be served: told in `policy.applied`, and the version is passed over
    ├── BadArtifact     the file is missing, or not the announced one; the engine was not touched
    ├── EngineRefused   the engine answered a step with an error; its weights are what they were
    ├── LoadBroken      it answered the last step with an error: nobody knows what it holds
    └── ProbeFailed     it loaded, and its log-probabilities are not those of the new weights
"""  # noqa: E501 - a table

from __future__ import annotations


class ApplierError(Exception):
    """Base of the tree."""


class EngineUnreachable(ApplierError):
    """Connection refused, broken or timed out."""


class ApplyFailed(ApplierError):
    """The version cannot be served."""


class BadArtifact(ApplyFailed):
    """Not the file that the update announces."""


class EngineRefused(ApplyFailed):
    """An HTTP error of the engine, with its own words."""


class LoadBroken(ApplyFailed):
    """The engine failed while it replaced its weights."""


class ProbeFailed(ApplyFailed):
    """Log-probabilities differ from the update's."""

    def __init__(self, message: str, largest: float | None = None) -> None:
        super().__init__(message)
        self.largest = largest
