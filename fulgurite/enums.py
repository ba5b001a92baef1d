"""Defines the enumerations of the contract.

Failure kinds are in `fulgurite.failures`.
"""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """What a rollout is for."""

    live = "live"
    """Production traffic; trained by opt-in only (`TrainingUse`)."""
    train = "train"
    """Its actions are counted by the ledger and may carry loss."""
    val = "val"
    """Held-out evaluation: rewarded, never trained."""


class TrainingUse(StrEnum):
    """What training may do with the calls of a rollout, as the gateway decided it for this call."""

    unknown = "unknown"
    """Written by a newer version; the episode is not trained."""
    by_mode = "by_mode"
    """What its mode says: `train` is trained, `live` and `val` are not."""
    live = "live"
    """Live traffic of an alias that is opted in: trained like mode `train`."""
    quota = "quota"
    """The same, beyond its owner's quota: counted by the ledger, not trained."""
    excluded = "excluded"
    """Its request, its key or its person is left out: the episode is not trained, whatever its
    mode.
    """


class Identity(StrEnum):
    """How the gateway found the rollout of a call."""

    none = "none"
    """A plain key without any id: the call is a rollout of its own."""
    scoped_key = "scoped_key"
    """The API key names the rollout (signed claims)."""
    path = "path"
    """`/rollouts/{rollout}/v1/...`."""
    header = "header"
    """`x-fulgurite-rollout`."""
    inferred = "inferred"
    """Recognised by the session that the agent names of itself, or by the hash chain of the message
    prefix.
    """


class CallOutcome(StrEnum):
    """How a call ended."""

    unknown = "unknown"
    """Written by a newer version that knows more outcomes."""
    success = "success"
    """The upstream completed the answer."""
    upstream_error = "upstream_error"
    """The upstream answered with an error status or a broken stream."""
    upstream_timeout = "upstream_timeout"
    """The upstream did not answer within the time limit."""
    client_disconnected = "client_disconnected"
    """The client went away; the tokens so far are kept."""
    refused = "refused"
    """The gateway refused the call before it reached an upstream."""


class LogprobsMode(StrEnum):
    """Which distribution the recorded log-probabilities belong to."""

    none = "none"
    """No log-probabilities were reported."""
    raw = "raw"
    """Before temperature and truncation (vLLM's default)."""
    processed = "processed"
    """Of the distribution actually sampled from."""


class StatusKind(StrEnum):
    """Kind of a status event."""

    unknown = "unknown"
    """A kind from a newer version."""
    declared = "declared"
    """A group of rollouts exists: its size, deadline and expected rewards."""
    started = "started"
    """An attempt has started."""
    heartbeat = "heartbeat"
    """An attempt, or a call in flight, is alive."""
    finished = "finished"
    """An attempt ended by itself, successfully."""
    failed = "failed"
    """An attempt ended with a failure."""
    timed_out = "timed_out"
    """Reported by the aggregator: the attempt was silent or overdue."""


class EpisodeOutcome(StrEnum):
    """How an attempt ended."""

    unknown = "unknown"
    """An outcome from a newer version."""
    finished = "finished"
    """The agent said that it is done."""
    failed = "failed"
    """The agent or its runner reported a failure."""
    timed_out = "timed_out"
    """The aggregator gave up on it."""


class PrefixBreak(StrEnum):
    """Why a call's prompt did not extend the trajectory before it."""

    unknown = "unknown"
    """A kind from a newer version."""
    retokenised = "retokenised"
    """The text is the same, its tokens are not."""
    template = "template"
    """The chat template renders earlier turns differently."""
    rewritten = "rewritten"
    """The agent rewrote its context."""
    stop_string = "stop_string"
    """The stop string is in the tokens but not in the text."""
    branch = "branch"
    """Another call extends the same prefix (best-of-n, sub-agent, retry)."""


class FilterReason(StrEnum):
    """Why an action carries no loss."""

    unknown = "unknown"
    """A reason from a newer version."""
    no_reward = "no_reward"
    """No reward arrived by the group's deadline."""
    no_baseline = "no_baseline"
    """Fewer than two scored episodes in the group."""
    no_signal = "no_signal"
    """All scored episodes of the group have the same reward."""
    no_tokens = "no_tokens"
    """The upstream gave no token ids or log-probabilities."""
    untrainable_sampling = "untrainable_sampling"
    """Greedy, truncated, penalised, biased or grammar-bound sampling."""
    truncated = "truncated"
    """Cut by the length limit."""
    failure_masked = "failure_masked"
    """The action for its failure kind is `mask`."""
    failure_dropped = "failure_dropped"
    """The action for its failure kind is `drop` or `retry`."""
    superseded = "superseded"
    """A later attempt or a retried sibling replaces it."""
    reward_failed = "reward_failed"
    """The reward function failed."""
    missing = "missing"
    """The rollout was declared and left nothing to train on."""
    unknown_version = "unknown_version"
    """The engine did not say which version generated it."""
    late = "late"
    """It arrived after its group had been closed."""
    oversized = "oversized"
    """Its row exceeds the learner's token budget."""
    not_trained_mode = "not_trained_mode"
    """Its group was written for offline use only."""
    not_finite = "not_finite"
    """The loss or the gradient of its batch was not finite; no step was made."""
    frozen = "frozen"
    """Its policy is frozen: no learner trains it."""
    drifted = "drifted"
    """Engine and trainer disagreed too much on its batch; no step was made."""
    collapsed = "collapsed"
    """The policy's entropy was too low on its batch; no step was made."""
    excluded = "excluded"
    """A rule says that its call is no part of the task, or its episode is left out of training."""
    quota = "quota"
    """Its owner had more live episodes in that hour than are trained."""


class LedgerTerm(StrEnum):
    """The terms that partition the train-mode actions."""

    unknown = "unknown"
    """A term from a newer version."""
    trained = "trained"
    """Carried loss in the step that made `version`."""
    filtered = "filtered"
    """Carries no loss, for `reason`."""
    stale = "stale"
    """Older than the staleness bound."""
    amended = "amended"
    """Its group changed after it had been trained."""


class UpdateKind(StrEnum):
    """Kind of a policy update."""

    unknown = "unknown"
    """A kind from a newer version."""
    claim = "claim"
    """A learner claims an epoch; the first claim wins."""
    update = "update"
    """A new version of the weights exists."""


class PromptKind(StrEnum):
    """Kind of a prompt update."""

    unknown = "unknown"
    """A kind from a newer version."""
    set = "set"
    """A new version of the prompt, in force from now on."""
    rollback = "rollback"
    """An earlier version, or none, is in force again."""
    candidate = "candidate"
    """A version that is in force only where a rollout names it."""
    refused = "refused"
    """A text that became no version; the reason says why."""
    proposed = "proposed"
    """A candidate that did better than the version in force; a person decides."""
    promoted = "promoted"
    """A candidate is in force from now on."""


class TuningStage(StrEnum):
    """What a score of a tuning is for."""

    unknown = "unknown"
    """A stage from a newer version."""
    training = "training"
    """Of a training task: examples and reflection are from it."""
    validation = "validation"
    """Of a validation task: candidates are chosen by it."""
    comparison = "comparison"
    """Of a validation task, with new rollouts: the best candidate is compared by it."""


class SelectionKind(StrEnum):
    """Kind of a selector's decision."""

    unknown = "unknown"
    """A kind from a newer version."""
    claim = "claim"
    """A selector takes an alias over; the one that had it stops."""
    shares = "shares"
    """New shares."""
    verdict = "verdict"
    """A comparison has ended."""


class SelectionMode(StrEnum):
    """What becomes of a selector's shares."""

    unknown = "unknown"
    """A mode from a newer version."""
    shadow = "shadow"
    """They are recorded, and nothing else."""
    proposal = "proposal"
    """They wait for `fulgurite select accept`."""
    automatic = "automatic"
    """The selector writes them to `policy.routes`."""


class ArtifactFormat(StrEnum):
    """What an artifact holds."""

    full = "full"
    """All weights."""
    lora = "lora"
    """A LoRA adapter."""


class ApplyOutcome(StrEnum):
    """Outcome of an update on a backend."""

    unknown = "unknown"
    """An outcome from a newer version."""
    applied = "applied"
    """Served, and checked by the probe."""
    failed = "failed"
    """Not served; see `error`."""
    retired = "retired"
    """An adapter that is no longer served, because it is no target any more."""
