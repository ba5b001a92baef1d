"""The runner's error tree.

RunnerError
├── BadTasks              the tasks file cannot be read as JSON lines
├── BadCommand            the agent's command cannot be started as asked
├── LauncherFailed        the process that starts agents refused or died
├── GatewayRefused        the gateway answered with an error that a repetition would not mend
└── GatewayUnreachable    the gateway did not answer, or not in time
"""

from __future__ import annotations


class RunnerError(Exception):
    """Base of the tree; its text says what to do."""


class BadTasks(RunnerError):
    """The tasks file cannot be read as JSON lines."""


class BadCommand(RunnerError):
    """The agent's command cannot be started as asked."""


class LauncherFailed(RunnerError):
    """The process that starts agents refused or died."""


class GatewayRefused(RunnerError):
    """The gateway answered with an error that a repetition would not mend."""


class GatewayUnreachable(RunnerError):
    """The gateway did not answer, or not in time."""
