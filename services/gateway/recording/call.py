"""One call while it lasts, and the event it becomes. Secrets are removed here: no event holds its
caller's key, unless that is too short to be a secret.
"""

from __future__ import annotations

import re
from functools import lru_cache
from time import perf_counter

import msgspec

from fulgurite.enums import CallOutcome, LogprobsMode, TrainingUse
from fulgurite.events import Choice, LlmCall, Sampling
from fulgurite.failures import FailureKind
from fulgurite.tokens import prompt_hash
from services.gateway.dialects.capture import Capture
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.errors import GatewayError
from services.gateway.identity.rollout_resolver import Identified
from services.gateway.telemetry.tracing import CallTrace
from services.gateway.upstream.route import Route

SHORTEST_HIDDEN_KEY = 16
"""Fewest characters of a key that is replaced in events. A shorter one (`test`, `EMPTY`) is no
secret, and stands in ordinary text: events would no longer hold what was said.
"""
_REDACTED = "[redacted]"
_TAIL = 16
_DEEPEST_ESCAPE = 8
"""Backslashes of one escape, as in JSON inside JSON three times. Without this limit a long run of
backslashes would be searched from each of them.
"""

REFUSED_CHARACTERS = 8192
"""Characters of a refused body that are kept. Less than the smallest FULGURITE_CLAIM_CHECK_BYTES,
so that no refused call goes to the claims store.
"""


class Draft:
    """What is known of a request so far; with a route it becomes a `Call`."""

    def __init__(self, api: str, started_at: int, trace: CallTrace, sampling: Sampling) -> None:
        self.api = api
        self.started_at = started_at
        self.begun = perf_counter()
        self.trace = trace
        self.traceparent = trace.traceparent
        self.sampling = sampling
        self.secret = ""
        self.key = ""
        """Whose key it is, as the limits count them; never the key itself."""
        self.sampled: str | None = None
        """The reply's header for `sampling.train`, where that applies."""
        self.prompt_version: str | None = None
        """The prompt version that the request was edited by."""
        self.keep_alive_s = 0.0
        """Longest silence of its stream in seconds; 0 is no limit."""
        self.subject: str | None = None
        """The person whose data this is."""
        self.training_use = TrainingUse.by_mode
        """What training may do with its episode."""
        self.raw: str | None = None
        """The body as the agent sent it."""
        self.request: ApiRequest | None = None
        self.owner: tuple[Identified, str] | None = None
        """Rollout and call id, once it is known whose call it is."""
        self.event: LlmCall | None = None
        """The event that was recorded, or was meant to be."""


class Call:
    """A call that may go to its upstream."""

    def __init__(
        self,
        draft: Draft,
        who: Identified,
        call_id: str,
        request: ApiRequest,
        route: Route,
        capture: Capture,
    ) -> None:
        self.draft = draft
        self.who = who
        self.call_id = call_id
        self.request = request
        self.route = route
        self.capture = capture
        self.started_at = draft.started_at
        self.first_token_at: int | None = None
        self.continued = False
        """Whether its prompt continues from recorded tokens."""
        self._asked = self._answered = draft.begun

    def ask(self) -> str | None:
        """Note that an upstream is asked now; returns the trace context to hand on."""
        self._asked = perf_counter()
        return self.draft.trace.upstream()

    def answered(self) -> None:
        """Note that the upstream's answer is complete."""
        self._answered = perf_counter()
        self.draft.trace.answered()

    def upstream_s(self) -> float:
        """Seconds that the upstream took."""
        return self._answered - self._asked

    def added_s(self) -> float:
        """Seconds that the call has taken so far, apart from the upstream."""
        return perf_counter() - self.draft.begun - self.upstream_s()

    def event(
        self,
        logprobs_mode: LogprobsMode,
        now_ms: int,
        problem: GatewayError | None = None,
        outcome: CallOutcome = CallOutcome.success,
        *,
        with_answer: bool = True,
    ) -> LlmCall:
        """The call's event. Without a problem, an outcome other than success is a client that went
        away.

        `with_answer=False` leaves out the upstream's answer: such an event can always be made.
        """
        capture = self.capture if with_answer else None
        return _event(
            self.draft,
            self.who,
            self.call_id,
            self,
            capture,
            logprobs_mode,
            now_ms,
            problem,
            outcome,
        )


def refusal(
    draft: Draft, who: Identified, call_id: str, problem: GatewayError, now_ms: int
) -> LlmCall:
    """The event of a call that never reached an upstream; of a large body it has only the
    beginning.
    """
    event = _event(
        draft, who, call_id, None, None, LogprobsMode.none, now_ms, problem, problem.outcome
    )
    return (
        msgspec.structs.replace(event, request=shortened(event.request))
        if event.request is not None
        else event
    )


def shortened(body: str) -> str:
    """The part of a refused body that is kept, so that no agent can fill a disk with
    refused calls.
    """
    if len(body) <= REFUSED_CHARACTERS:
        return body
    return (
        f"{body[:REFUSED_CHARACTERS]}… [the first {REFUSED_CHARACTERS} of {len(body)} characters "
        "of a refused call]"
    )


def _event(
    draft: Draft,
    who: Identified,
    call_id: str,
    call: Call | None,
    capture: Capture | None,
    logprobs_mode: LogprobsMode,
    now_ms: int,
    problem: GatewayError | None,
    outcome: CallOutcome,
) -> LlmCall:
    request, route = draft.request, call and call.route
    asked = None if draft.raw is None else hide(draft.raw, draft.secret)
    choices = (
        tuple([_without_key(choice, draft.secret) for choice in capture.recorded_choices()])
        if capture
        else ()
    )
    response = capture.response() if capture else None
    # A key in the prompt could be read from the prompt's tokens, too.
    prompt = capture.prompt() if capture and asked == draft.raw else None
    failure, status = _status_of(capture, problem, outcome)
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
        api=draft.api,
        alias=request.alias if request else "",
        policy=route.policy if route else None,
        backend=route.backend if route else "",
        version_first=route.reported(capture.version_first) if route and capture else None,
        version_last=route.reported(capture.version_last) if route and capture else None,
        stream=request is not None and request.stream,
        outcome=problem.outcome if problem else outcome,
        status_code=status,
        failure=failure,
        error=None if problem is None else hide(problem.message, draft.secret),
        request=asked,
        response=None if response is None else hide(response, draft.secret),
        prompt_token_ids=prompt,
        prompt_hash=None if prompt is None else prompt_hash(prompt),
        choices=choices,
        sampling=draft.sampling,
        logprobs_mode=logprobs_mode
        if any(choice.logprobs for choice in choices)
        else LogprobsMode.none,
        prompt_tokens=capture.prompt_tokens if capture else None,
        completion_tokens=capture.completion_tokens if capture else None,
        started_at=draft.started_at,
        first_token_at=call.first_token_at if call else None,
        finished_at=now_ms,
        traceparent=draft.traceparent,
        subject=draft.subject,
        parent_agent=who.parent_agent,
        training_use=draft.training_use,
        variant=route.variant if route else None,
        propensity=route.propensity if route else None,
        cell=route.cell if route else None,
        prompt_version=draft.prompt_version if call else None,
        routed_alias=_routed_alias(request.alias, route) if request and route else None,
    )


def _routed_alias(asked: str, route: Route) -> str | None:
    """The alias whose route answers; None if it is what was asked for."""
    return route.alias if route.alias != asked else None


def hide(text: str, secret: str) -> str:
    """The text without the caller's key, wherever it occurs, also spelt with JSON escapes. A key of
    fewer than SHORTEST_HIDDEN_KEY characters stays.
    """
    if len(secret) < SHORTEST_HIDDEN_KEY:
        return text
    # Searching a long text for a complete key is slow. Its end is random, so the search for that is
    # fast.
    found = text.replace(secret, _REDACTED) if secret[-_TAIL:] in text else text
    return _spelled(secret).sub(_REDACTED, found) if "\\u00" in found else found


@lru_cache(maxsize=256)
def _spelled(secret: str) -> re.Pattern[str]:
    """A pattern of the key: each character as it is or escaped, also in JSON inside JSON."""
    hexadecimal = {character: f"(?i:{ord(character):04x})" for character in secret}
    return re.compile(
        "".join(
            rf"(?:{re.escape(character)}|\\{{1,{_DEEPEST_ESCAPE}}}u{hexadecimal[character]})"
            for character in secret
        )
    )


def _without_key(choice: Choice, secret: str) -> Choice:
    message = choice.message and hide(choice.message, secret)
    return (
        choice
        if message == choice.message
        else msgspec.structs.replace(choice, message=message, token_ids=None, logprobs=None)
    )


def _status_of(
    capture: Capture | None, problem: GatewayError | None, outcome: CallOutcome
) -> tuple[FailureKind | None, int | None]:
    if problem is not None:
        return problem.failure, problem.status
    if outcome is CallOutcome.client_disconnected:
        return FailureKind.client_disconnected, None
    return capture.failure() if capture else None, 200
