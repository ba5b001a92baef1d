"""What is declared, reported and paid for a rollout. Topics `agent.status` and `agent.rewards`."""

from __future__ import annotations

import msgspec

from fulgurite.enums import Mode, StatusKind
from fulgurite.events.base import Event, EventStruct
from fulgurite.failures import FailureKind


class Declaration(EventStruct, frozen=True, kw_only=True):
    """What is known of a group before it starts."""

    rollout_ids: tuple[str, ...] = ()
    """Its rollouts, by index."""
    deadline: int
    """Time after which the group is closed with what it has, Unix milliseconds."""
    expected_rewards: tuple[str, ...] = ()
    """Names of rewards that each rollout waits for."""
    reward_weights: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Weight of each named reward in the combination; a missing name weighs 1."""
    credit_rule: str
    """Rule of `fulgurite.groups.credit` that spreads rewards over actions."""
    alias: str
    """Model name that the agents will ask for."""
    policy: str | None = None
    """Trained policy behind the alias."""
    task: str
    """JSON of the task; reward functions see it."""
    run_id: str | None = None
    """The run this group belongs to."""
    max_attempts: int
    """Tries per rollout, at least 1."""
    prompt_version: str | None = None
    """Version of the alias's prompt that its rollouts are served with, `none` for what the agent
    sends; null: the one in force.
    """


class AgentStatus(Event, frozen=True, kw_only=True):
    """A rollout's status, by agent, runner, gateway or aggregator. Topic `agent.status`."""

    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str | None = None
    """Null for events of the whole group."""
    attempt: int
    """Try at the rollout, from 0."""
    mode: Mode
    """What the rollout is for."""
    kind: StatusKind
    """Kind of the status."""
    source: str
    """`gateway`, `runner`, `agent` or `aggregator`."""
    failure: FailureKind | None = None
    """Set with `failed` and `timed_out`."""
    message: str | None = None
    """Free text for people."""
    exit_code: int | None = None
    """Exit code of the agent's process, if there was one."""
    will_retry: bool
    """Whether another attempt follows."""
    call_id: str | None = None
    """With `heartbeat`: the call in flight."""
    declaration: Declaration | None = None
    """Set with `declared`."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""


class AgentReward(Event, frozen=True, kw_only=True):
    """A reward of a rollout or of one action. Topic `agent.rewards`."""

    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str
    """The rollout that is rewarded."""
    attempt: int | None = None
    """The attempt that is rewarded; null: the final one."""
    call_id: str | None = None
    """Set when one action is rewarded: its call."""
    choice: int | None = None
    """Choice within the call."""
    name: str
    """Name of the reward."""
    value: float | None = None
    """Finite; null when it could not be computed (see `error`)."""
    final: bool
    """Whether no later value of this name is expected."""
    source: str
    """`rest`, or the reward function with its content hash."""
    error: str | None = None
    """Why a reward function gave no value."""
    idempotency_key: str | None = None
    """Idempotency key that the caller gave."""
    metadata: str | None = None
    """JSON with any content."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""
    fallback: bool = False
    """Whether it counts only for an episode for which no other reward counts: of a judge, where
    nobody votes.
    """
