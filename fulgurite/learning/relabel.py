"""Relabels rows of one policy so that another policy can train on them.

So a new policy can be trained on recordings of an older one, after a replay. The version that
generated a row counts as the new policy's base model: its actions are as stale as the number of
steps that the new policy has made. Their behaviour log-probabilities stay, so the trainer corrects
for the difference as always.

Entries of such a learner are not part of the live ledger, which counts an action for the policy
that generated it. Those of offline training (`fulgurite.learning.offline`) have a source of their
own, whatever topic it reads.
"""

from __future__ import annotations

import contextlib

import msgspec

from fulgurite.events import Action, Event, PolicyUpdate, Tombstone, Trajectory
from fulgurite.topics import TRAJECTORIES
from fulgurite.versions import MalformedVersion, base_version, parse_version


def relabel(event: Event | None, rows_of: str | None, policy: str) -> Event | None:
    """Make rows and tombstones of policy `rows_of` those of `policy`; others stay the same."""
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
    """Whether a claim or an update is from a learner on a replayed topic."""
    if update.offline_method is not None:
        return False
    topic = update.topic
    if topic is None and update.config is not None:
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            claim = msgspec.json.decode(update.config, type=_Claim)
            topic = claim.policy.topic or claim.topic
    return topic is not None and topic != TRAJECTORIES.name


class _Policy(msgspec.Struct):
    topic: str | None = None


class _Claim(msgspec.Struct):
    """What a claim tells of the topic; earlier releases wrote it beside the other settings."""

    policy: _Policy = msgspec.field(default_factory=_Policy)
    topic: str | None = None


def _relabel_action(action: Action, rows_of: str, policy: str) -> Action:
    """Relabel an action. Other policies' versions stay; such actions cannot be trained."""
    try:
        generated = parse_version(action.version or "")
    except MalformedVersion:
        return action
    return (
        msgspec.structs.replace(action, version=str(base_version(policy)))
        if generated.policy == rows_of
        else action
    )
