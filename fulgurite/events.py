"""Frozen events: the Python face of `schemas/avro/`, which is the source; a test holds the two
together.

Token arrays are packed bytes (see `fulgurite.tokens`), times are Unix milliseconds, ids are those
of `fulgurite.ids`. A JSON payload is kept as the string that was sent, so that nothing is lost by
parsing it.
"""

from __future__ import annotations

import msgspec

from fulgurite.enums import (
    ApplyOutcome,
    ArtifactFormat,
    CallOutcome,
    EpisodeOutcome,
    FilterReason,
    Identity,
    LedgerTerm,
    LogprobsMode,
    Mode,
    PrefixBreak,
    StatusKind,
    UpdateKind,
)
from fulgurite.episodes.failures import FailureKind


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of every value of the contract. Frozen values cannot refer to themselves: the collector
    of cycles need not look at them.
    """


class Event(Record, frozen=True, kw_only=True):
    """Base of every value that is a message of a topic."""

    event_id: str
    """Unique id of this event; a duplicate has the same one."""
    event_time: int
    """When it happened, Unix milliseconds."""


class Sampling(Record, frozen=True, kw_only=True):
    """Effective sampling parameters of a call, after `sampling.train` and engine defaults."""

    temperature: float
    """0 is greedy."""
    top_p: float
    """1 is no truncation."""
    top_k: int
    """0 or less is no truncation."""
    min_p: float
    """0 is no truncation."""
    presence_penalty: float
    """0 is none."""
    frequency_penalty: float
    """0 is none."""
    repetition_penalty: float
    """1 is none."""
    logit_bias: bool
    """Whether any token was biased or banned."""
    grammar: bool
    """Whether the answer was constrained (response_format, guided decoding, forced tool)."""
    seed: int | None = None
    """Seed, if one was given."""
    max_tokens: int | None = None
    """Limit of generated tokens, if one was given."""


class Choice(Record, frozen=True, kw_only=True):
    """One generated choice: an action."""

    index: int
    """Index within the call."""
    message: str | None = None
    """JSON of the message, as the client got it."""
    token_ids: bytes | None = None
    """Generated ids, little-endian int32, the engine's own; null where the upstream gives none."""
    logprobs: bytes | None = None
    """Log-probability of each generated token, little-endian float32."""
    finish_reason: str | None = None
    """As the upstream said; null when the stream broke off."""
    stop_reason: str | None = None
    """The stop string or token that ended it, if one did."""


class ParentRef(Record, frozen=True, kw_only=True):
    """The call whose prompt and answer this prompt extends (delta encoding)."""

    call_id: str
    """The parent call."""
    partition: int
    """Its partition of `llm.calls`."""
    offset: int
    """Its offset there."""
    shared_tokens: int
    """Leading tokens of the full prompt that the parent holds."""
    shared_messages: int
    """No longer counted: 0, for readers of earlier releases."""


class ClaimCheck(Record, frozen=True, kw_only=True):
    """Where a payload beyond the message limit lies."""

    uri: str
    """Content-addressed location."""
    sha256: str
    """Hex digest of the stored bytes."""
    size: int
    """Bytes."""


class LlmCall(Event, frozen=True, kw_only=True):
    """One call of a model, however it ended. Topic `llm.calls`."""

    call_id: str
    """Completion id, as in the reply; names rollout and group."""
    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str
    """One run of an agent on one task."""
    attempt: int
    """Try at the rollout, from 0."""
    mode: Mode
    """What the rollout is for."""
    agent: str
    """Role of the agent within the rollout; empty if it has none."""
    identity: Identity
    """How the rollout was found."""
    api: str
    """`chat.completions`, `completions`, ..."""
    alias: str
    """Model name that the agent asked for."""
    policy: str | None = None
    """Trained policy behind the alias; null for upstreams that are not trained."""
    backend: str
    """Name of the upstream that answered."""
    version_first: str | None = None
    """Version the engine reported at the first token, `policy@epoch.step`."""
    version_last: str | None = None
    """Version at the last token."""
    stream: bool
    """Whether the client asked for a stream."""
    outcome: CallOutcome
    """How it ended."""
    status_code: int | None = None
    """HTTP status towards the client; null if no one was left to answer."""
    failure: FailureKind | None = None
    """What went wrong, if anything did."""
    error: str | None = None
    """The upstream's or gateway's own words on it."""
    request: str | None = None
    """JSON body as the agent sent it, with all it builds on; with `parent`, what the parent's body
    does not hold (fulgurite/calls/deltas.py).
    """
    response: str | None = None
    """JSON of the reply without choices and token data (id, model, usage, ...)."""
    prompt_token_ids: bytes | None = None
    """Prompt as the engine rendered it, little-endian int32."""
    prompt_hash: str | None = None
    """SHA-256 of the full prompt's packed ids, hex."""
    choices: tuple[Choice, ...] = ()
    """What was generated."""
    sampling: Sampling
    """Effective sampling parameters."""
    logprobs_mode: LogprobsMode
    """Which log-probabilities the choices hold."""
    prompt_tokens: int | None = None
    """Usage as reported."""
    completion_tokens: int | None = None
    """Usage as reported."""
    started_at: int
    """Request received, Unix milliseconds."""
    first_token_at: int | None = None
    """First byte of the answer, Unix milliseconds."""
    finished_at: int
    """Answer complete or given up, Unix milliseconds."""
    traceparent: str | None = None
    """W3C trace context of the request."""
    parent: ParentRef | None = None
    """Set when the prompt is stored as a delta."""
    claim_check: ClaimCheck | None = None
    """Set when the payload lies elsewhere."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""
    pieces: tuple[ClaimCheck, ...] = ()
    """Long texts of request, response and messages that lie elsewhere, each once: where one was
    stands `fulgurite:claim:SHA256:BYTES` (fulgurite/calls/claim_checks.py).
    """


class Declaration(Record, frozen=True, kw_only=True):
    """What is known of a group before it starts."""

    rollout_ids: tuple[str, ...] = ()
    """Its rollouts, by index."""
    deadline: int
    """After which the group is partial, Unix milliseconds."""
    expected_rewards: tuple[str, ...] = ()
    """Names of rewards that each rollout waits for."""
    reward_weights: dict[str, float] = {}
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


class AgentStatus(Event, frozen=True, kw_only=True):
    """What an agent, its runner, the gateway or the aggregator says of a rollout. Topic
    `agent.status`.
    """

    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str | None = None
    """Null for events of the whole group."""
    attempt: int
    """Try at the rollout, from 0."""
    mode: Mode
    """What the rollout is for."""
    kind: StatusKind
    """What it tells."""
    source: str
    """`gateway`, `runner`, `agent` or `aggregator`."""
    failure: FailureKind | None = None
    """With `failed` and `timed_out`."""
    message: str | None = None
    """Free text for people."""
    exit_code: int | None = None
    """Of the agent's process, if there was one."""
    will_retry: bool
    """Whether another attempt follows."""
    call_id: str | None = None
    """With `heartbeat`: the call in flight."""
    declaration: Declaration | None = None
    """With `declared`."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""


class AgentReward(Event, frozen=True, kw_only=True):
    """A reward of a rollout or of one action. Topic `agent.rewards`."""

    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str
    """The rollout that is paid."""
    attempt: int | None = None
    """The attempt that is paid; null: the final one."""
    call_id: str | None = None
    """Set when one action is paid."""
    choice: int | None = None
    """Choice within the call."""
    name: str
    """Which reward this is."""
    value: float | None = None
    """Finite; null when it could not be computed (see `error`)."""
    final: bool
    """Whether the reward of this name is complete with it."""
    source: str
    """`rest`, or the reward function with its content hash."""
    error: str | None = None
    """Why a reward function gave no value."""
    idempotency_key: str | None = None
    """As the caller gave it."""
    metadata: str | None = None
    """JSON, free."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""


class Episode(Event, frozen=True, kw_only=True):
    """The record of one attempt: a function of the set of its input events. Topic `episodes`."""

    episode_id: str
    """`rollout/attempt`."""
    revision: str
    """Hash of the sorted inputs and of the rule."""
    supersedes: str | None = None
    """Revision this one replaces."""
    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str
    """One run of an agent on one task."""
    attempt: int
    """Try at the rollout, from 0."""
    mode: Mode
    """What the rollout is for."""
    rule: str
    """Version of the stitching rule."""
    inputs: tuple[str, ...] = ()
    """Sorted ids of all input events."""
    outcome: EpisodeOutcome
    """How it ended."""
    failure: FailureKind | None = None
    """Why it failed."""
    message: str | None = None
    """Free text of the closing status."""
    will_retry: bool
    """Whether another attempt follows."""
    started_at: int
    """First input, Unix milliseconds."""
    ended_at: int
    """Closing input, Unix milliseconds."""
    declaration: Declaration | None = None
    """Of its group; null for undeclared traffic."""
    calls: tuple[LlmCall, ...] = ()
    """All calls, by start and id."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""


class Action(Record, frozen=True, kw_only=True):
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
    """What was paid there, never normalised."""
    credit: float
    """Return under the named rule, before any baseline."""
    loss: bool
    """Whether the action carries loss in this row; elsewhere it is context."""
    mask: FilterReason | None = None
    """Why it must not be trained, if so."""
    version: str | None = None
    """Version that generated its first token."""
    agent: str
    """Role."""
    finish_reason: str | None = None
    """As the upstream said."""
    temperature: float
    """Temperature it was sampled at."""


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
    """Revision of the episode it was cut from."""
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
    rewards: dict[str, float] = {}
    """Rewards by name."""
    credit_rule: str
    """Rule that made `credit`."""
    break_kind: PrefixBreak | None = None
    """Why this row is not part of the one before."""
    failure: FailureKind | None = None
    """Of the episode."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""


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
    """Why."""
    episode_reward: float | None = None
    """Its reward, if it has one: it stays in the baseline."""
    failure: FailureKind | None = None
    """Of the episode."""


class GroupClosed(Event, frozen=True, kw_only=True):
    """One closing of a group and what it was made of, written after all of it. Topic
    `trajectories`.
    """

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


class Artifact(Record, frozen=True, kw_only=True):
    """Where the weights of a version lie."""

    uri: str
    """`file://` or object-store location of the safetensors file."""
    sha256: str
    """Hex digest of the file."""
    size: int
    """Bytes."""
    format: ArtifactFormat
    """What it holds."""


class Probe(Record, frozen=True, kw_only=True):
    """A prompt and the log-probabilities the new weights give it."""

    token_ids: bytes
    """Little-endian int32."""
    logprobs: bytes
    """Of each token but the first, given those before it; little-endian float32, temperature 1."""


class Position(Record, frozen=True, kw_only=True):
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
    """Claimed by the learner that writes."""
    step: int
    """Optimizer steps of the epoch; a claim has the step it continues from."""
    version: str | None = None
    """`policy@epoch.step`, with updates."""
    parent_version: str | None = None
    """The version it was trained from."""
    learner_id: str
    """Who writes."""
    artifact: Artifact | None = None
    """With updates."""
    probe: Probe | None = None
    """With updates."""
    topic: str | None = None
    """Topic it was trained on."""
    positions: tuple[Position, ...] = ()
    """Low-water offsets after this update."""
    trained_actions: int
    """Actions that carried loss."""
    metrics: dict[str, float] = {}
    """Of the step."""
    config: str | None = None
    """JSON of the learner's settings, with claims."""


class RouteTarget(Record, frozen=True, kw_only=True):
    """A version of a policy and its share of the traffic."""

    policy: str
    """The policy."""
    version: str | None = None
    """Null: the newest update."""
    weight: float
    """Relative share, not negative."""


class PolicyRoute(Event, frozen=True, kw_only=True):
    """Which versions serve an alias. Topic `policy.routes`."""

    alias: str
    """The model name agents ask for; the Kafka key."""
    targets: tuple[RouteTarget, ...] = ()
    """Replaces what was there."""
    reason: str
    """For people: promotion, canary, rollback ..."""
    author: str
    """Who wrote it."""


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
    """What became of it."""
    error: str | None = None
    """Why it failed."""
    probe_error: float | None = None
    """Largest absolute difference of the probe's log-probabilities."""
    seconds: float
    """Time it took."""


class LedgerEntry(Event, frozen=True, kw_only=True):
    """What became of actions. Topic `training.ledger`."""

    policy: str
    """The policy."""
    group_id: str
    """Group of the actions; the Kafka key."""
    group_revision: str | None = None
    """The closing they belong to."""
    term: LedgerTerm
    """Where they went."""
    reason: FilterReason | None = None
    """With `filtered`."""
    actions: tuple[str, ...] = ()
    """`call_id#choice`."""
    version: str | None = None
    """Version they were trained into; for groups that taught nothing, the version after which they
    were settled.
    """
    source: str
    """`aggregator`, `rewarder` or `learner`."""


class DeadLetter(Event, frozen=True, kw_only=True):
    """An event that could not be processed. Topic `dead.letters`."""

    stage: str
    """Service and step that gave up."""
    error_type: str
    """Name of the error."""
    error: str
    """What was wrong."""
    topic: str
    """Where the event lies."""
    partition: int
    """Its partition."""
    offset: int
    """Its offset."""
    key: bytes | None = None
    """Its key."""
    value: bytes | None = None
    """Its bytes."""
    actions: tuple[str, ...] = ()
    """Actions lost with it, as far as they are known: `call_id#choice`."""


EVENT_TYPES: tuple[type[Event], ...] = (
    LlmCall,
    AgentStatus,
    AgentReward,
    Episode,
    Trajectory,
    Tombstone,
    GroupClosed,
    PolicyUpdate,
    PolicyRoute,
    PolicyApplied,
    LedgerEntry,
    DeadLetter,
)
"""Every event type; the schema of `LlmCall` is `schemas/avro/llm_call.avsc`, and so on."""
