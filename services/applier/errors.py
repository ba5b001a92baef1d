"""The applier's error tree.

ApplierError
├── EngineUnreachable   the engine does not answer, or not in time; retried without end
└── ApplyFailed         this version cannot be served; reported in `policy.applied`, and the version is skipped
    ├── BadArtifact     the file is missing, or not the announced one; nothing was loaded
    ├── EngineRefused   the engine answered with an error; its weights have not changed
    ├── LoadBroken      the engine failed in the last step; its weights are unknown
    └── ProbeFailed     it loaded, but its log-probabilities are not those of the new weights
"""  # noqa: E501 - a table

from __future__ import annotations


class ApplierError(Exception):
    """Base of the tree."""


class EngineUnreachable(ApplierError):
    """The connection to the engine was refused, broken or timed out."""


class ApplyFailed(ApplierError):
    """The version cannot be served."""


class BadArtifact(ApplyFailed):
    """The file is missing, or is not the one that the update announces."""


class EngineRefused(ApplyFailed):
    """The engine answered with an HTTP error; the text is the engine's."""


class LoadBroken(ApplyFailed):
    """The engine failed while it replaced its weights."""


class ProbeFailed(ApplyFailed):
    """The probe's log-probabilities differ from those in the update."""

    def __init__(self, message: str, largest: float | None = None) -> None:
        super().__init__(message)
        self.largest = largest
