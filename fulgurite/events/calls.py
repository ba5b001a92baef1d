"""One call of a model. Topic `llm.calls`."""

from __future__ import annotations

from fulgurite.enums import CallOutcome, Identity, LogprobsMode, Mode, TrainingUse
from fulgurite.events.base import Event, EventStruct
from fulgurite.failures import FailureKind


class Sampling(EventStruct, frozen=True, kw_only=True):
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


class Choice(EventStruct, frozen=True, kw_only=True):
    """One generated choice: an action."""

    index: int
    """Index within the call."""
    message: str | None = None
    """JSON of the message, as the client got it."""
    token_ids: bytes | None = None
    """Generated ids, little-endian int32, the engine's own; null if the upstream gives none."""
    logprobs: bytes | None = None
    """Log-probability of each generated token, little-endian float32."""
    finish_reason: str | None = None
    """As the upstream reported it; null if the stream broke off."""
    stop_reason: str | None = None
    """The stop string or token that ended it, if one did."""


class ParentRef(EventStruct, frozen=True, kw_only=True):
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
    """No longer used: 0, for readers of earlier releases."""


class ClaimCheck(EventStruct, frozen=True, kw_only=True):
    """Where a payload beyond the message limit is stored."""

    uri: str
    """Content-addressed location."""
    sha256: str
    """Hex digest of the stored bytes."""
    size: int
    """Size in bytes."""


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
    """The error text of the upstream or the gateway."""
    request: str | None = None
    """JSON body as the agent sent it, earlier messages included; with `parent`, only the part that
    the parent's body does not have (fulgurite/calls/deltas.py).
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
    """Set when the payload is stored elsewhere."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""
    pieces: tuple[ClaimCheck, ...] = ()
    """Long texts of request, response and messages that are stored elsewhere, each once;
    `fulgurite:claim:SHA256:BYTES` replaces them (fulgurite/calls/claim_checks.py).
    """
    parent_agent: str | None = None
    """The agent that started this one, as the agent names it; null where none is named."""
    training_use: TrainingUse = TrainingUse.by_mode
    """What training may do with its episode."""
    variant: str | None = None
    """What answered, as a route names it: `policy@1.3`, `policy` (its newest version),
    `upstream:alias`; with a prompt `policy@1.3,prompt@2`, with parameters
    `policy@1.3,temperature=0.7`. Null in older records and in refused calls.
    """
    propensity: float | None = None
    """Share with which the rollout was given this variant, in (0, 1]; null where it was not given
    by share: in older records, or where another version answered in place of the given one.
    """
    prompt_version: str | None = None
    """Prompt version it was served with, `prompt@N` of the alias; null: served as it was sent.
    `request` is what was sent (fulgurite/prompts/editing.py makes what was served).
    """
    cell: str | None = None
    """Context cell by whose shares the rollout was given its variant
    (fulgurite/selection/context.py); null where the route has no shares by context.
    """
    routed_alias: str | None = None
    """Alias whose route answered, where that is another one: the alias of the agent's role
    (`FULGURITE_ROLES`), or what the rollout's `served_by` names. Null: `alias`.
    """
