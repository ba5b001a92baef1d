"""The runner's error tree.

RunnerError
├── BadTasks              the tasks file cannot be read as JSON lines
├── BadCommand            the agent's command cannot be started as asked
├── BadReward             a reward function or an expert cannot be loaded, or a judge's rubric
│                         cannot be read
├── ExpertFailed          an expert raised, or returned no answer
├── GaveUp                too many groups in a row were useless, or awaited versions cannot come
├── GatewayRefused        the gateway answered with an error that trying again does not help
└── GatewayUnreachable    the gateway did not answer, or not in time
"""

from __future__ import annotations


class RunnerError(Exception):
    """Base of the tree. The text says what to do."""


class BadTasks(RunnerError):
    """The tasks file cannot be read as JSON lines."""


class BadCommand(RunnerError):
    """The agent's command cannot be started as asked."""


class BadReward(RunnerError):
    """A reward function or an expert cannot be loaded, or a judge's rubric cannot be read."""


class ExpertFailed(RunnerError):
    """An expert raised, or returned no answer."""


class GaveUp(RunnerError):
    """Too many groups in a row were useless, or the awaited versions cannot come."""


class GatewayRefused(RunnerError):
    """The gateway answered with an error that trying again does not help."""


class GatewayUnreachable(RunnerError):
    """The gateway did not answer, or not in time."""


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that stopped the others of a task group."""
    error = errors.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error  # pyright: ignore[reportUnknownArgumentType]
