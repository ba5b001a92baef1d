"""One call while it lasts, and the event it becomes. Secrets are taken out here: no event ever holds a key."""

from __future__ import annotations

import numpy as np

from fulgurite.events import LlmCall, Sampling
from fulgurite.failures import FailureKind
from fulgurite.kinds import CallOutcome, LogprobsMode
from fulgurite.tokens import pack_ids, prompt_hash
from services.gateway.capture import Capture
from services.gateway.chat_request import ChatRequest, Json
from services.gateway.identity import Identified
from services.gateway.problems import GatewayError
from services.gateway.settings import Route
from services.gateway.wire import Header

_REDACTED = "[redacted]"
_API = "chat.completions"


class Draft:
    """What is known of a request so far; it becomes a refusal or a `Call`."""

    def __init__(self, started_at: int, traceparent: str | None, sampling: Sampling) -> None:
        self.started_at = started_at
        self.traceparent = traceparent
        self.sampling = sampling
        self.secret = ""
        self.request: str | None = None
        self.chat: ChatRequest | None = None
        self.call: tuple[Identified, str] | None = None
        """Rollout and call id, once it is known whose call it is."""

    def refusal(self, who: Identified, call_id: str, problem: GatewayError, now_ms: int) -> LlmCall:
        """The event of a call that never reached an upstream."""
        return LlmCall(
            event_id=call_id,
            event_time=now_ms,
            call_id=call_id,
            group_id=who.group_id,
            rollout_id=who.rollout_id,
            attempt=who.attempt,
            mode=who.mode,
            agent=who.agent,
            identity=who.identity,
            api=_API,
            alias=self.chat.alias if self.chat else "",
            backend="",
            stream=bool(self.chat and self.chat.stream),
            outcome=problem.outcome,
            status_code=problem.status,
            failure=problem.failure,
            error=hide(problem.message, self.secret),
            request=None if self.request is None else hide(self.request, self.secret),
            sampling=self.sampling,
            logprobs_mode=LogprobsMode.none,
            started_at=self.started_at,
            finished_at=now_ms,
            traceparent=self.traceparent,
        )


class Call:
    """A call that may go to its upstream."""

    def __init__(self, draft: Draft, who: Identified, call_id: str, chat: ChatRequest, route: Route) -> None:
        self._draft = draft
        self.who = who
        self.call_id = call_id
        self.chat = chat
        self.route = route
        self.started_at = draft.started_at
        self.traceparent = draft.traceparent
        self.first_token_at: int | None = None

    def event(
        self,
        capture: Capture,
        logprobs_mode: LogprobsMode,
        now_ms: int,
        problem: GatewayError | None = None,
        outcome: CallOutcome = CallOutcome.success,
    ) -> LlmCall:
        """What the log gets. Without a problem, an outcome other than success is a client that went away."""
        choices = tuple(choice.choice() for _, choice in sorted(capture.choices.items()))
        prompt = None if capture.prompt_token_ids is None else pack_ids(np.asarray(capture.prompt_token_ids, dtype=np.int32))
        who, draft = self.who, self._draft
        failure, status = _verdict(capture, problem, outcome)
        return LlmCall(
            event_id=self.call_id,
            event_time=now_ms,
            call_id=self.call_id,
            group_id=who.group_id,
            rollout_id=who.rollout_id,
            attempt=who.attempt,
            mode=who.mode,
            agent=who.agent,
            identity=who.identity,
            api=_API,
            alias=self.chat.alias,
            policy=self.route.policy,
            backend=self.route.backend,
            version_first=capture.version_first,
            version_last=capture.version_last,
            stream=self.chat.stream,
            outcome=problem.outcome if problem else outcome,
            status_code=status,
            failure=failure,
            error=None if problem is None else hide(problem.message, draft.secret),
            request=None if draft.request is None else hide(draft.request, draft.secret),
            response=capture.response(),
            prompt_token_ids=prompt,
            prompt_hash=None if prompt is None else prompt_hash(prompt),
            choices=choices,
            sampling=draft.sampling,
            logprobs_mode=logprobs_mode if any(choice.logprobs for choice in choices) else LogprobsMode.none,
            prompt_tokens=_count(capture.usage, "prompt_tokens"),
            completion_tokens=_count(capture.usage, "completion_tokens"),
            started_at=self.started_at,
            first_token_at=self.first_token_at,
            finished_at=now_ms,
            traceparent=self.traceparent,
        )


def reply_headers(who: Identified, version: str | None = None) -> list[Header]:
    """Which rollout it was, and which version answered."""
    headers: list[Header] = [(b"x-fulgurite-rollout-id", who.rollout_id.encode())]
    if version is not None:
        headers.append((b"x-fulgurite-version", version.encode()))
    return headers


def hide(text: str, secret: str) -> str:
    """The text without the caller's key, should it have got in there."""
    return text.replace(secret, _REDACTED) if secret and secret in text else text


def _verdict(capture: Capture, problem: GatewayError | None, outcome: CallOutcome) -> tuple[FailureKind | None, int | None]:
    if problem is not None:
        return problem.failure, problem.status
    if outcome is CallOutcome.client_disconnected:
        return FailureKind.client_disconnected, None
    return capture.failure(), 200


def _count(usage: Json | None, name: str) -> int | None:
    value = (usage or {}).get(name)
    return value if isinstance(value, int) else None
