"""Lists what can go wrong in an episode, and what training can do about it."""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """What went wrong in an attempt."""

    unknown = "unknown"
    """None of the other kinds, or a kind from a newer version."""
    upstream_error = "upstream_error"
    """The model server answered with an error."""
    upstream_timeout = "upstream_timeout"
    """The model server did not answer in time."""
    rate_limited = "rate_limited"
    """The model server or the gateway asked to slow down."""
    context_overflow = "context_overflow"
    """The prompt did not fit the context window."""
    truncated = "truncated"
    """The answer was cut by its length limit."""
    tool_parse_error = "tool_parse_error"
    """The answer tried to call a tool and could not be parsed."""
    tool_error = "tool_error"
    """A tool reported an error."""
    invalid_output = "invalid_output"
    """The answer did not have the requested format."""
    agent_exception = "agent_exception"
    """The agent ended with an exception or a non-zero exit code."""
    agent_timeout = "agent_timeout"
    """The agent ran past its deadline."""
    agent_silent = "agent_silent"
    """The rollout was declared, but nothing came from its agent."""
    loop_detected = "loop_detected"
    """The agent repeated itself without progress."""
    client_disconnected = "client_disconnected"
    """The client closed the connection before the answer was complete."""
    cancelled = "cancelled"
    """Somebody cancelled the rollout."""
    infrastructure = "infrastructure"
    """A part of the system other than agent and model failed."""


class FailureAction(StrEnum):
    """What training does with a failed episode."""

    train = "train"
    """It is trained like any other."""
    mask = "mask"
    """Its reward stays in the baseline, its actions carry no loss."""
    penalise = "penalise"
    """Its reward is replaced by a configured value."""
    drop = "drop"
    """It does not count: no loss, no part in the baseline."""
    retry = "retry"
    """The runner tries again; without a runner, as `drop`."""


EXOGENOUS = frozenset(
    {
        FailureKind.upstream_error,
        FailureKind.upstream_timeout,
        FailureKind.rate_limited,
        FailureKind.infrastructure,
        FailureKind.client_disconnected,
        FailureKind.cancelled,
    }
)
"""Kinds that the policy does not cause. Only these may be retried or dropped: doing so with the
policy's own failures would be survivor bias.
"""
