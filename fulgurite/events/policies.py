"""Versions of policies, their routes, and what backends serve.

Topics `policy.updates`, `policy.routes` and `policy.applied`.
"""

from __future__ import annotations

import msgspec

from fulgurite.enums import ApplyOutcome, ArtifactFormat, UpdateKind
from fulgurite.events.base import Event, EventStruct


class Artifact(EventStruct, frozen=True, kw_only=True):
    """Where the weights of a version are stored."""

    uri: str
    """`file://` or object-store location of the safetensors file."""
    sha256: str
    """Hex digest of the file."""
    size: int
    """Size in bytes."""
    format: ArtifactFormat
    """Format of the weights."""


class Probe(EventStruct, frozen=True, kw_only=True):
    """A prompt and the log-probabilities the new weights give it."""

    token_ids: bytes
    """Little-endian int32."""
    logprobs: bytes
    """Of each token but the first, given those before it; little-endian float32, temperature 1."""


class Position(EventStruct, frozen=True, kw_only=True):
    """How far a learner has read."""

    partition: int
    """Partition of `trajectories`."""
    offset: int
    """Every record below it is accounted for."""


class PolicyUpdate(Event, frozen=True, kw_only=True):
    """A claimed epoch or a new version. Topic `policy.updates`."""

    policy: str
    """The policy; the Kafka key."""
    kind: UpdateKind
    """Claim or update."""
    epoch: int
    """Epoch of the learner that writes."""
    step: int
    """Optimizer steps of the epoch; a claim has the step it continues from."""
    version: str | None = None
    """`policy@epoch.step`, with updates."""
    parent_version: str | None = None
    """The version it was trained from."""
    learner_id: str
    """Name of the learner."""
    artifact: Artifact | None = None
    """Set for updates."""
    probe: Probe | None = None
    """Set for updates."""
    topic: str | None = None
    """Topic it was trained on."""
    positions: tuple[Position, ...] = ()
    """Low-water offsets after this update."""
    trained_actions: int
    """Actions that carried loss."""
    metrics: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Metrics of the step."""
    config: str | None = None
    """JSON of the learner's settings, with claims."""
    offline_method: str | None = None
    """`sft` or `dpo`, where a recording is trained on; null: online, each action at most once."""


class RouteTarget(EventStruct, frozen=True, kw_only=True):
    """A version of a policy, or another upstream's model, and its share of the traffic."""

    policy: str
    """The policy; empty for an upstream."""
    version: str | None = None
    """Null: the newest update."""
    weight: float
    """Relative share, not negative."""
    upstream: str | None = None
    """Alias of FULGURITE_UPSTREAMS that answers; null: the policy does."""
    parameters: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Sampling parameters where a request sets none, by their names in requests."""
    cell_weights: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Relative share of rollouts that begin in a context cell (fulgurite/selection/context.py);
    `weight` in cells that are not named. A target whose `weight` is 0 gets none.
    """
    prompt: str | None = None
    """Version of the alias's prompt that its rollouts are served with; `none`: as agents send
    them; null: the one in force.
    """


class PolicyRoute(Event, frozen=True, kw_only=True):
    """Which variants serve an alias. Topic `policy.routes`."""

    alias: str
    """Model name that agents ask for; the Kafka key."""
    targets: tuple[RouteTarget, ...] = ()
    """Targets; they replace the earlier route."""
    reason: str
    """For people: promotion, canary, rollback ..."""
    author: str
    """Who wrote it."""
    previous: tuple[RouteTarget, ...] = ()
    """Targets of the route that it replaces, which a rollback returns to; empty: there was none."""
    selection: str | None = None
    """Event id of the selector's decision that it applies; null: a person, a gate or a tuner wrote
    it.
    """


class PolicyApplied(Event, frozen=True, kw_only=True):
    """What a backend serves. Topic `policy.applied`."""

    policy: str
    """The policy; the Kafka key."""
    backend: str
    """Name of the backend."""
    engine_id: str
    """Changes when the engine restarts."""
    version: str
    """The version this is about."""
    previous: str | None = None
    """What was served before."""
    outcome: ApplyOutcome
    """The outcome."""
    error: str | None = None
    """Why it failed."""
    probe_error: float | None = None
    """Largest absolute difference of the probe's log-probabilities."""
    seconds: float
    """Seconds that it took."""
