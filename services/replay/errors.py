"""The error tree of commands that read the log.

    ReplayError
    ├── BadArgument     an argument is invalid; the text says what is valid
    ├── TargetInUse     the target is a topic of the deployment, or not empty
    ├── NotFound        the log has nothing with that id
    └── BadArchive      a file of an archive is not what `fulgurite archive` writes

`services.common.kafka.errors.LogUnavailable` and the errors of reward functions pass through.
"""

from __future__ import annotations


class ReplayError(Exception):
    """Base of the tree."""


class BadArgument(ReplayError):
    """An argument is invalid."""


class TargetInUse(ReplayError):
    """The target is a topic of the deployment, or not empty."""


class NotFound(ReplayError):
    """The log has nothing with that id."""


class BadArchive(ReplayError):
    """A file of an archive is not what `fulgurite archive` writes."""
