"""What can go wrong when the log is read again.

    ReplayError
    ├── BadArgument     what was asked for makes no sense; the message says what would
    ├── TargetInUse     the place to write to is a topic of the deployment, or not empty
    ├── NotFound        the log holds nothing of that name
    └── BadArchive      a file of an archive is not what `fulgurite archive` writes

`services.common.kafka.errors.LogUnavailable` and the errors of reward functions pass through.
"""

from __future__ import annotations


class ReplayError(Exception):
    """Base of the tree."""


class BadArgument(ReplayError):
    """What was asked for makes no sense."""


class TargetInUse(ReplayError):
    """The place to write to is a topic of the deployment, or not empty."""


class NotFound(ReplayError):
    """The log holds nothing of that name."""


class BadArchive(ReplayError):
    """A file of an archive is not what `fulgurite archive` writes."""
