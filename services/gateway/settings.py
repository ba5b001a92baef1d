"""The gateway's settings, all from the environment (docs/reference/settings.md)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fulgurite.enums import LogprobsMode, Mode
from fulgurite.events import Sampling
from fulgurite.topics import MAX_MESSAGE_BYTES
from services.common.blobs.settings import ClaimSettings
from services.common.runtime.backends import parse_backends
from services.gateway.request_body import BodyLimits
from services.gateway.upstream.route import Route, UpstreamKind

OutageMode = Literal["refuse", "spool", "serve"]
"""What becomes of a call while the log is away: see docs/explanation/log-outages.md."""


class UpstreamSpec(BaseModel):
    """An upstream behind an alias of its own: any OpenAI-compatible server."""

    base_url: str
    """Up to but without `/v1`."""
    kind: UpstreamKind = "openai"
    """`vllm` is asked for token ids and log-probabilities; others are sent nothing extra."""
    model: str | None = None
    """Model name to ask it for; the alias if not given."""
    api_key: SecretStr | None = None
    """Sent as its bearer token."""
    policy: str | None = None
    """Trained policy behind it, if any."""
    backend: str | None = None
    """Name in events; the alias if not given."""


class SamplingDefaults(BaseModel):
    """What the engine uses where a request says nothing (vLLM: `--generation-config vllm` gives
    these).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0

    def sampling(self) -> Sampling:
        """As an event's value."""
        return Sampling(**self.model_dump(), logit_bias=False, grammar=False)


class TrainSampling(BaseModel):
    """`sampling.train` of an alias: how its answers are sampled while they are being learned from,
    whatever the agent asked.
    """

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)


def _regular_expression(pattern: str | None) -> str | None:
    """The pattern, if it is one. Raises ValueError."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


class RoleSpec(BaseModel):
    """One role of the agents that ask for an alias."""

    pattern: str | None = None
    """Regular expression that is found in the role's system prompt. Without it, the role has to be
    named by header or path."""
    alias: str | None = None
    """Alias that answers the role's calls, so that it can have a policy of its own."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _regular_expression(pattern)


class HarnessSpec(BaseModel):
    """Where a coding agent names its session, itself and the agent that started it, in requests
    that it sends anyway.
    """

    model_config = ConfigDict(extra="forbid")

    session: tuple[str, ...] = ()
    """Headers; the first that a request has names the session."""
    agent: str = ""
    """Header of the agent that calls. The main agent has none, or the session's own name."""
    parent_agent: str = ""
    """Header of the agent that started it."""
    cache_key: str | None = None
    """Regular expression. A `prompt_cache_key` in the body that is all of this form names the
    session, where no header does."""

    @field_validator("cache_key")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _regular_expression(pattern)


HARNESSES = {
    "claude-code": HarnessSpec(
        session=("x-claude-code-session-id",),
        agent="x-claude-code-agent-id",
        parent_agent="x-claude-code-parent-agent-id",
    ),
    "codex": HarnessSpec(
        session=("session-id", "session_id"),
        agent="thread-id",
        parent_agent="x-codex-parent-thread-id",
        cache_key="[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    ),
    # Each of its agents has a session of its own, and a sub-agent's names its parent's.
    "opencode": HarnessSpec(
        session=("x-parent-session-id", "x-session-affinity"),
        agent="x-session-affinity",
        parent_agent="x-parent-session-id",
        cache_key="ses_[0-9A-Za-z]+",
    ),
}
"""The coding agents that are known (docs/reference/harnesses.md)."""

ANY_NAME = "*"
"""In FULGURITE_REWARD_NAMES: rewards may have any name."""


class GatewaySettings(ClaimSettings, BaseSettings):
    """Every setting of the gateway."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_",
        populate_by_name=True,
        extra="ignore",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    gateway_host: str = "127.0.0.1"
    """Address to listen on."""
    gateway_port: int = 8080
    """Port to listen on."""
    public_url: str | None = None
    """How agents reach the gateway, for `base_url` in replies; the request's Host header if
    unset."""

    vllm_base_url: str = Field("http://127.0.0.1:8000", validation_alias="VLLM_BASE_URL")
    """vLLM's address, without `/v1`. Several are comma-separated, and may be named:
    `east=http://a:8000,west=http://b:8000`."""
    redis_url: SecretStr | None = Field(None, validation_alias="REDIS_URL")
    """Redis or Valkey for idempotency keys, declared groups and conversations. In memory if
    unset, which one gateway alone may do. With password and TLS:
    `rediss://:password@host:6380/0?ssl_ca_certs=/etc/ca.pem`."""

    signing_keys: SecretStr = SecretStr("")
    """`kid:secret,kid2:secret`. The first signs scoped keys, all verify. Leave a `kid` out to
    revoke its keys. Required."""
    admin_key: SecretStr | None = None
    """Bearer key of `POST /v1/rollouts`, for the runner and operators. Give it 16 characters or
    more."""
    api_keys: SecretStr = SecretStr("")
    """Plain agent keys, comma-separated. Give them 16 characters or more: shorter ones are not
    removed from recorded calls."""
    allow_any_key: bool = False
    """Accept any plain key. Only for a machine of your own."""
    operations_key: SecretStr | None = None
    """Bearer key for `/metrics`, `/docs`, `/openapi.json` and the details of `/readyz`. Open to
    all if unset. The admin key works too."""

    policy: str = "policy"
    """Name of the trained policy."""
    aliases: str = "policy=policy"
    """Pairs `alias=policy`, comma-separated. An agent passes the alias as its model."""
    backend: str = "vllm"
    """Name of the vLLM backend in events, where VLLM_BASE_URL is one address without a name."""
    lora_policies: str = ""
    """Policies, comma-separated, that are served as LoRA adapters of the model that vLLM calls
    FULGURITE_POLICY, which may be one of them. The applier needs the same value."""
    train_sampling: dict[str, TrainSampling] = {}
    """JSON, alias → `{temperature, top_p, top_k, min_p}`: how its calls of mode `train` are
    sampled, whatever the agent asks for. `{}` is temperature 1 without truncation
    (docs/explanation/on-policy.md)."""
    train_live: str = ""
    """Aliases, comma-separated, whose live traffic is trained: calls with a plain key, by opt-in
    (docs/how-to/train-on-live-traffic.md)."""
    train_live_quota: int = Field(100, ge=0)
    """Live episodes that are trained per hour of one plain key and end user. Others are
    `filtered(quota)`. 0 is no limit."""
    no_train_keys: SecretStr = SecretStr("")
    """Plain keys, comma-separated, whose episodes are never trained: tenants that did not consent.
    They must be in FULGURITE_API_KEYS, too."""
    no_train_subjects: str = ""
    """Subjects (`su_...`), comma-separated, whose episodes are never trained
    (docs/explanation/identity.md#the-person)."""
    max_tokens: dict[str, Annotated[int, Field(ge=1)]] = {}
    """JSON, alias → most tokens that an answer may be asked for. An agent that asks for more gets
    this many (docs/explanation/on-policy.md)."""
    continue_tokens: str = ""
    """Aliases, comma-separated, whose chats continue from the generated tokens instead of from
    text that is tokenised again (docs/explanation/on-policy.md)."""
    roles: dict[str, dict[str, RoleSpec]] = {}
    """JSON, alias → role → `{pattern, alias}`: the roles of agents that ask for one model in all of
    them. The first role whose pattern is found in the system prompt is the call's; `alias` answers
    it (docs/how-to/several-policies.md)."""
    upstreams: dict[str, UpstreamSpec] = {}
    """JSON, alias → `{base_url, kind, model, api_key, policy, backend}`: other OpenAI-compatible
    servers. `kind` is `vllm` or `openai`."""
    default_sampling: SamplingDefaults = SamplingDefaults()
    """JSON: the sampling that the engine uses where a request says nothing."""
    logprobs_mode: LogprobsMode = LogprobsMode.processed
    """`processed` or `raw`, as vLLM was started (`--logprobs-mode`)."""

    reward_names: str = Field("reward", min_length=1)
    """Reward names, comma-separated, that are accepted where no declaration names any, as for
    live traffic. `*` accepts any."""
    harnesses: dict[str, HarnessSpec] = HARNESSES
    """JSON, name → `{session, agent, parent_agent, cache_key}`: where coding agents name their
    session. `{}` reads none of it (docs/reference/harnesses.md)."""
    infer_conversations: bool = True
    """Recognise the conversation that a call with a plain key and no name continues. If off,
    each such call is a rollout of its own."""
    conversation_ttl_s: int = Field(3600, ge=1)
    """Seconds that an answer is remembered. A conversation left alone for longer continues as
    another rollout."""

    max_body_bytes: int = Field(32 * 1024 * 1024, ge=1024)
    """Largest body of a call in bytes, both as sent and once inflated. 32 MiB is what
    Anthropic's own API takes."""
    max_body_values: int = Field(250_000, ge=1000)
    """Most arrays, objects and commas in a body, outside of texts. Each takes some hundred bytes
    of memory. Raise it for very long prompts of token ids."""
    max_rest_body_bytes: int = Field(1024 * 1024, ge=1024)
    """Largest body of the REST routes (`/v1/rollouts`, `/v1/rewards`) in bytes."""
    request_timeout_s: float = Field(60.0, gt=0)
    """Seconds that a request's head may take to arrive, and its body again. A new connection
    must begin one within this time."""
    max_answer_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """Largest answer of an upstream in bytes. 64 MiB hold 32,000 tokens with 20
    log-probabilities each."""
    backend_concurrency: int = Field(256, ge=1)
    """Calls in flight to one backend from this gateway. More of them wait, and keys take turns."""
    key_share: float = Field(0.9, gt=0, le=1)
    """Share of a backend's places that one key may hold, rounded down, but at least one. 1 is no
    limit."""
    queue_limit: int = Field(1024, ge=0)
    """Calls that may wait for one backend. Beyond it, the key with most waiting calls is
    refused."""
    queue_timeout_s: float = Field(60.0, gt=0)
    """Seconds that a call may wait for its turn before the client gets a 503 with Retry-After."""
    key_concurrency: int = Field(0, ge=0)
    """Calls that one key may have in flight or waiting; 0 is no limit."""
    key_calls_per_minute: int = Field(0, ge=0)
    """Calls that one key may begin in a minute; 0 is no limit."""
    key_statuses_per_minute: int = Field(120, ge=0)
    """Statuses that one key may send in a minute; 0 is no limit. The admin key has no limit."""
    key_large_bytes_per_hour: int = Field(0, ge=0)
    """Bytes that one key may send in an hour in requests larger than
    FULGURITE_CLAIM_CHECK_BYTES; 0 is no limit."""
    connect_timeout_s: float = 5.0
    """Seconds to connect to an upstream."""
    keep_alive_s: float = Field(0.0, ge=0)
    """Longest silence of a stream in seconds, after which the gateway sends a comment; 0 is off.
    The request header `x-fulgurite-keep-alive` overrides it (docs/reference/model-apis.md)."""
    client_write_timeout_s: float = Field(60.0, gt=0)
    """Seconds in which a client must read some of its answer, if any waits; else its connection
    is closed. A call under way ends as `client_disconnected`."""
    upstream_timeout_s: float = 600.0
    """Longest silence of an upstream in seconds: until a complete answer, or between two pieces
    of a stream."""
    ack_timeout_s: float = 120.0
    """Seconds that an answer is held for Kafka's acknowledgement before the client gets a 503
    instead."""
    log_stall_s: float = 15.0
    """Seconds after which a waiting event shows that Kafka is unavailable. More than a fail-over
    takes (9 s)."""
    log_unavailable_train: OutageMode = "refuse"
    """What happens to calls of mode `train` while Kafka is away: `refuse`, `spool` or `serve`
    (docs/explanation/log-outages.md)."""
    log_unavailable_val: OutageMode = "refuse"
    """The same for calls of mode `val`."""
    log_unavailable_live: OutageMode | None = None
    """The same for live traffic; `spool` where FULGURITE_SPOOL_DIR is set, else `refuse`."""
    log_patience_s: float = Field(5.0, gt=0)
    """Seconds that an answer in mode `spool` or `serve` waits for Kafka first."""
    spool_dir: Path | None = None
    """Folder of this replica alone, on a disk that outlives it. Events wait there while Kafka is
    away."""
    spool_max_bytes: int = Field(1024**3, ge=1024**2)
    """Largest size of the spool in bytes. Beyond it calls are refused, as without a spool."""
    delta_logging: bool = True
    """Record of a call only what its parent in the log does not hold already
    (docs/explanation/storage.md)."""
    delta_memory_bytes: int = Field(64 * 1024**2, ge=0)
    """Bytes of recent calls kept in memory as parents of the next ones."""
    claim_check_bytes: int = Field(1024**2, ge=16 * 1024, le=MAX_MESSAGE_BYTES // 2)
    """Calls larger than this leave their texts outside Kafka (docs/explanation/storage.md). 1
    MiB is the message size that Kafka is made for."""
    heartbeat_s: float = 10.0
    """Seconds after which a call in flight sends a heartbeat, and again each time."""
    key_grace_s: float = 300.0
    """Seconds that keys work beyond their group's deadline, so that late calls are recorded as
    such."""
    drain_s: int = 120
    """Seconds that a stopping gateway waits for streams to end."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""

    @field_validator("spool_dir", "log_unavailable_live", "operations_key", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        """A compose file sets what is not set to nothing, and no path would be the current
        folder.
        """
        return value if value != "" else None

    def outage_modes(self) -> dict[Mode, OutageMode]:
        """What to do while the log is away, by mode. Raises ValueError."""
        live = self.log_unavailable_live or ("spool" if self.spool_dir is not None else "refuse")
        modes: dict[Mode, OutageMode] = {
            Mode.train: self.log_unavailable_train,
            Mode.val: self.log_unavailable_val,
            Mode.live: live,
        }
        if self.spool_dir is None and "spool" in modes.values():
            raise ValueError(
                "FULGURITE_LOG_UNAVAILABLE_*: `spool` needs a folder of this gateway's own, "
                "FULGURITE_SPOOL_DIR"
            )
        return modes

    def call_body_limits(self) -> BodyLimits:
        """What an agent's call may be."""
        return BodyLimits(
            self.max_body_bytes,
            "FULGURITE_MAX_BODY_BYTES",
            self.max_body_values,
            self.request_timeout_s,
        )

    def rest_body_limits(self) -> BodyLimits:
        """What the body of a REST route may be."""
        return BodyLimits(
            self.max_rest_body_bytes,
            "FULGURITE_MAX_REST_BODY_BYTES",
            self.max_body_values,
            self.request_timeout_s,
        )

    def plain_keys(self) -> tuple[str, ...]:
        """The plain agent keys."""
        return tuple(
            filter(None, (key.strip() for key in self.api_keys.get_secret_value().split(",")))
        )

    def keys_left_out(self) -> frozenset[str]:
        """The plain keys whose episodes are never trained."""
        return _names(self.no_train_keys.get_secret_value())

    def subjects_left_out(self) -> frozenset[str]:
        """The subjects whose episodes are never trained."""
        return _names(self.no_train_subjects)

    def live_trained(self) -> frozenset[str]:
        """The aliases whose live traffic is trained. Raises ValueError for one without a policy."""
        aliases, routes = _names(self.train_live), self.routes()
        for alias in sorted(aliases):
            if alias not in routes or routes[alias].policy is None:
                raise ValueError(
                    f"FULGURITE_TRAIN_LIVE: no policy is behind {alias!r}. Name an alias of "
                    "FULGURITE_ALIASES, or an upstream with a `policy`"
                )
        return aliases

    def adapters(self) -> frozenset[str]:
        """The policies that are LoRA adapters."""
        return _names(self.lora_policies)

    def rewards(self) -> tuple[str, ...]:
        """The names of rewards that no declaration names."""
        return tuple(sorted(_names(self.reward_names)))

    def continued(self) -> frozenset[str]:
        """The aliases whose chats go on from tokens."""
        return _names(self.continue_tokens)

    def backends(self) -> dict[str, str]:
        """Our vLLM backends: name → base URL. Raises ValueError."""
        return parse_backends(self.vllm_base_url, self.backend)

    def routes(self) -> dict[str, Route]:
        """Alias → upstream: FULGURITE_ALIASES on the first of our backends, FULGURITE_UPSTREAMS
        each on its own. Raises ValueError.
        """
        routes: dict[str, Route] = {}
        backend, base_url = next(iter(self.backends().items()))
        for pair in filter(None, (part.strip() for part in self.aliases.split(","))):
            alias, equals, policy = pair.partition("=")
            if not equals or not alias or not policy:
                raise ValueError(f"FULGURITE_ALIASES: {pair!r} is not alias=policy")
            routes[alias] = Route(alias, backend, base_url, "vllm", policy, policy, None)
        for alias, spec in self.upstreams.items():
            routes[alias] = Route(
                alias,
                spec.backend or alias,
                spec.base_url.rstrip("/").removesuffix("/v1"),
                spec.kind,
                spec.model or alias,
                spec.policy,
                spec.api_key.get_secret_value() if spec.api_key else None,
            )
        for alias, roles in self.roles.items():
            for role, spec in roles.items():
                unknown = {alias, spec.alias or alias} - routes.keys()
                if unknown:
                    raise ValueError(
                        f"FULGURITE_ROLES: role {role!r} of {alias!r} names {sorted(unknown)}, "
                        "which FULGURITE_ALIASES and FULGURITE_UPSTREAMS do not have"
                    )
        return routes


def _names(listed: str) -> frozenset[str]:
    return frozenset(filter(None, (name.strip() for name in listed.split(","))))
