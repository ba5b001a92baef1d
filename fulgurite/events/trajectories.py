"""What closing a group writes for the learner. Topic `trajectories`."""

from __future__ import annotations

import msgspec

from fulgurite.enums import FilterReason, Mode, PrefixBreak
from fulgurite.events.base import Event, EventStruct
from fulgurite.failures import FailureKind


class Action(EventStruct, frozen=True, kw_only=True):
    """One generated choice within a trajectory."""

    call_id: str
    """The call."""
    choice: int
    """Choice within the call."""
    start: int
    """First token within `token_ids`."""
    end: int
    """One past the last token."""
    logprobs: bytes | None = None
    """Behaviour log-probabilities, little-endian float32, `end - start` of them."""
    reward: float
    """Reward of the action, never normalised."""
    credit: float
    """Return under the named rule, before any baseline."""
    loss: bool
    """Whether the action carries loss in this row; elsewhere it is context."""
    mask: FilterReason | None = None
    """Why it must not be trained, if so."""
    version: str | None = None
    """Version that generated its first token."""
    agent: str
    """Role of the agent."""
    finish_reason: str | None = None
    """As the upstream reported it."""
    temperature: float
    """Temperature it was sampled at."""
    turn: int | None = None
    """Actions before it on its path. Logs of earlier releases do not have it."""


class Trajectory(Event, frozen=True, kw_only=True):
    """One linear token stream of an episode with its actions marked. Topic `trajectories`."""

    trajectory_id: str
    """Derived from group revision, episode revision and row."""
    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str
    """One run of an agent on one task."""
    attempt: int
    """Try at the rollout, from 0."""
    mode: Mode
    """What the rollout is for."""
    policy: str | None = None
    """Trained policy."""
    episode_revision: str
    """Revision of the episode it was built from."""
    group_revision: str
    """One closing of the group: all its rows share it."""
    row_index: int
    """Row within the episode, from 0."""
    rows_in_episode: int
    """Rows of this episode."""
    group_size: int
    """Declared rollouts of the group."""
    group_members_scored: int
    """Episodes with a reward."""
    group_started_at: int
    """Oldest start in the group, Unix milliseconds."""
    token_ids: bytes
    """The stream, little-endian int32."""
    actions: tuple[Action, ...] = ()
    """In order of `start`."""
    episode_reward: float | None = None
    """Combined reward of the episode."""
    rewards: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Rewards by name."""
    credit_rule: str
    """Rule that made `credit`."""
    break_kind: PrefixBreak | None = None
    """Why this row does not extend the one before."""
    failure: FailureKind | None = None
    """Failure of the episode."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""
    alias: str | None = None
    """Alias that its group was declared for, or asked for first. Logs of earlier releases do not
    have it.
    """


class Tombstone(Event, frozen=True, kw_only=True):
    """Why a member of a closed group has no trajectory. Topic `trajectories`."""

    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str
    """One run of an agent on one task."""
    attempt: int
    """Try at the rollout, from 0."""
    mode: Mode
    """What the rollout is for."""
    policy: str | None = None
    """Trained policy."""
    group_revision: str
    """The closing it belongs to."""
    group_size: int
    """Declared rollouts of the group."""
    group_members_scored: int
    """Episodes with a reward."""
    group_started_at: int
    """Oldest start in the group, Unix milliseconds."""
    reason: FilterReason
    """Why it has no trajectory."""
    episode_reward: float | None = None
    """Its reward, if it has one: it stays in the baseline."""
    failure: FailureKind | None = None
    """Failure of the episode."""
    alias: str | None = None
    """Alias that its group was declared for, or asked for first. Logs of earlier releases do not
    have it.
    """


class GroupClosed(Event, frozen=True, kw_only=True):
    """The last record of a group's closing, with its inputs. Topic `trajectories`."""

    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    mode: Mode
    """What the rollouts are for."""
    group_revision: str
    """The closing: all its rows, tombstones and ledger entries share it."""
    supersedes: str | None = None
    """Revision of the `GroupClosed` before it; null for the group's first."""
    episode_revisions: tuple[str, ...] = ()
    """Revisions of the episodes that it was made of, sorted."""
    reward_ids: tuple[str, ...] = ()
    """Event ids of the rewards that were known, counted or not, sorted."""
    row_ids: tuple[str, ...] = ()
    """Event ids of its rows and tombstones, in the order in which they were written."""
    entry_ids: tuple[str, ...] = ()
    """Event ids of its ledger entries, in the order in which they were written."""
