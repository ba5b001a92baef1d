"""Errors of child processes, as a tree.

ProcessError
├── ProcessExited     a process ended before it was ready
├── ProcessNotReady   a process did not become ready in time
└── ForkServerFailed  the process that starts other processes refused or died
"""

from __future__ import annotations


class ProcessError(Exception):
    """A child process does not do what it was started for; the message says why."""


class ProcessExited(ProcessError):
    """A process ended by itself before it was ready."""


class ProcessNotReady(ProcessError):
    """A process runs, but its readiness check did not pass in time."""


class ForkServerFailed(ProcessError):
    """The process that starts other processes refused or died."""
