"""Relabels rows of one policy so that another policy can train on them.

A new policy learns so from what was recorded of an older one, after a replay.

What generated a row is to the new policy its base model: its actions are as stale as the new policy
has taken steps. Their behaviour log-probabilities are the engine's and stay, so the correction that
the trainer makes of them is the one it always makes.

What such a learner settles is no part of the live books: an action was trained, filtered or dropped
there for the policy that took it.
"""

from __future__ import annotations

import contextlib

import msgspec

from fulgurite.events import Action, Event, PolicyUpdate, Tombstone, Trajectory
from fulgurite.topics import TRAJECTORIES
from fulgurite.versions import MalformedVersion, base_version, parse_version


def relabel(event: Event | None, rows_of: str | None, policy: str) -> Event | None:
    """Rows and tombstones of policy `rows_of` as rows of `policy`; anything else as it is."""
    if rows_of is None or not isinstance(event, Trajectory | Tombstone) or event.policy != rows_of:
        return event
    if isinstance(event, Tombstone):
        return msgspec.structs.replace(event, policy=policy)
    return msgspec.structs.replace(
        event,
        policy=policy,
        actions=tuple(_relabel_action(action, rows_of, policy) for action in event.actions),
    )


def learns_elsewhere(update: PolicyUpdate) -> bool:
    """Whether a claim or an update is of a learner on another topic than the live one: a replayed
    one.
    """
    topic = update.topic
    if topic is None and update.config is not None:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            topic = msgspec.json.decode(update.config, type=_Config).topic
    return topic is not None and topic != TRAJECTORIES.name


class _Config(msgspec.Struct):
    """The one setting that matters of those in a claim."""

    topic: str | None = None


def _relabel_action(action: Action, rows_of: str, policy: str) -> Action:
    """Versions of other policies, and what is no version, stay: they cannot be trained."""
    try:
        generated = parse_version(action.version or "")
    except MalformedVersion:
        return action
    return (
        msgspec.structs.replace(action, version=str(base_version(policy)))
        if generated.policy == rows_of
        else action
    )
