"""Records how each call ended: one event of `llm.calls` for each, whatever became of it."""

from __future__ import annotations

import asyncio

from fulgurite.enums import CallOutcome, LogprobsMode
from fulgurite.events import LlmCall
from services.common.kafka.delivery import Delivery
from services.common.runtime import logs
from services.common.runtime.clock import now_ms
from services.gateway.errors import GatewayError, Unavailable, Unrecordable, UpstreamBroken
from services.gateway.identity.rollout_resolver import RolloutResolver
from services.gateway.recording.call import Call, Draft, refusal
from services.gateway.recording.recorded_calls import RecordedCalls
from services.gateway.recording.recorded_responses import RecordedResponses
from services.gateway.recording.recorder import Recorder
from services.gateway.telemetry.metrics import Metrics
from services.gateway.upstream.continuation import Continuation

log = logs.get(__name__)

_NOT_RECORDABLE = "an answer cannot be recorded; its call is recorded without it"


class CallRecorder:
    """Writes a call's event, and remembers its answer for the calls that build on it."""

    def __init__(
        self,
        recorder: Recorder,
        recorded_calls: RecordedCalls,
        responses: RecordedResponses,
        resolver: RolloutResolver,
        continuation: Continuation,
        metrics: Metrics,
        logprobs_mode: LogprobsMode,
    ) -> None:
        self._recorder = recorder
        self._recorded_calls = recorded_calls
        self._responses = responses
        self._resolver = resolver
        self._continuation = continuation
        self._metrics = metrics
        self._logprobs_mode = logprobs_mode

    async def record_answer(self, call: Call) -> GatewayError | None:
        """Return once Kafka has acknowledged the answer. Returns the error that the client gets
        instead where the answer must be withheld.
        """
        metrics, first = self._metrics, call.first_token_at or call.started_at
        metrics.upstream_seconds.observe(call.upstream_s())
        metrics.first_token_seconds.observe((first - call.started_at) / 1000)
        remembering = self._start_remembering(call)
        call.draft.trace.publish()
        try:
            event, delivery = await self._record(call)
        except Unrecordable:
            metrics.withheld.inc()
            return await self._record_unrecordable(call)
        except Unavailable as problem:
            metrics.withheld.inc()
            return problem
        finally:
            call.draft.trace.published()
            if remembering is not None:
                await remembering
        self._recorded_calls.remember(event)
        try:
            await self._responses.remember(event, delivery, call.draft.key)
        except Exception as error:
            log.error(
                "a response is not remembered: no later request can build on it",
                call_id=call.call_id,
                exc_info=error,
            )
        return None

    async def record_failure(
        self,
        call: Call,
        problem: GatewayError | None = None,
        outcome: CallOutcome = CallOutcome.success,
    ) -> None:
        """Record a call without a complete answer, with what the upstream has sent of it."""
        try:
            await self._record(call, problem, outcome)
        except Unrecordable:
            await self._record_if_possible(self._event(call, problem, outcome, with_answer=False))
        except Unavailable:
            _log_not_recorded(call.call_id, outcome)

    async def record_refusal(self, draft: Draft, problem: GatewayError) -> None:
        """Record a call that never reached an upstream. A request whose key is unknown has no
        owner, and leaves no event.
        """
        if draft.owner is None:
            return
        event = draft.event = refusal(draft, *draft.owner, problem, now_ms())
        if self._recorder.problem() is None:
            await self._record_if_possible(event)
        else:
            self._recorder.record_call_soon(event)

    def record_interrupted(self, call: Call) -> None:
        """Record a call that is cut off because the gateway stops now. Waits for nothing."""
        outcome = CallOutcome.client_disconnected
        try:
            event = self._event(call, outcome=outcome)
        except Exception as error:
            log.error(_NOT_RECORDABLE, call_id=call.call_id, exc_info=error)
            event = self._event(call, outcome=outcome, with_answer=False)
        self._recorder.record_call_soon(event)

    async def _record(
        self,
        call: Call,
        problem: GatewayError | None = None,
        outcome: CallOutcome = CallOutcome.success,
    ) -> tuple[LlmCall, Delivery | None]:
        """The call's event, once it is recorded. Raises Unavailable while Kafka does not take it,
        Unrecordable for an answer that no event can hold.
        """
        try:
            event = self._event(call, problem, outcome)
            return event, await self._recorder.record_call(event)
        except Unavailable:
            raise
        except Exception as error:
            # There is an event of the call whatever an upstream answers.
            log.error(
                _NOT_RECORDABLE,
                call_id=call.call_id,
                backend=call.route.backend,
                exc_info=error,
            )
            raise Unrecordable("No event can hold this answer.") from error

    async def _record_unrecordable(self, call: Call) -> UpstreamBroken:
        """Record an answer that no event can hold as broken, without its text. Returns the error
        that the client gets.
        """
        problem = UpstreamBroken(
            f"The answer of the model server {call.route.backend!r} cannot be recorded, so it is "
            "withheld. The gateway's log says why."
        )
        await self._record_if_possible(self._event(call, problem, with_answer=False))
        return problem

    async def _record_if_possible(self, event: LlmCall) -> None:
        """Record a call without an answer. If Kafka is away, the client's reply stays the same."""
        try:
            await self._recorder.record_call(event)
        except Unavailable:
            _log_not_recorded(event.call_id, event.outcome)

    def _event(
        self,
        call: Call,
        problem: GatewayError | None = None,
        outcome: CallOutcome = CallOutcome.success,
        *,
        with_answer: bool = True,
    ) -> LlmCall:
        event = call.draft.event = call.event(
            self._logprobs_mode, now_ms(), problem, outcome, with_answer=with_answer
        )
        if call.capture.unread and with_answer:
            self._metrics.unread_chunks.inc(call.capture.unread)
            log.warning(
                "parts of an answer were not understood; its tokens are not recorded",
                call_id=call.call_id,
                backend=event.backend,
                parts=call.capture.unread,
            )
        return event

    def _start_remembering(self, call: Call) -> asyncio.Task[None] | None:
        """While Kafka takes the answer, note whose conversation it is, and its tokens: the agent's
        next call must find them.
        """
        if call.who.conversation is None and call.request.alias not in self._continuation.aliases:
            return None
        return asyncio.create_task(self._remember(call))

    async def _remember(self, call: Call) -> None:
        try:
            if call.who.conversation is not None:
                await self._resolver.remember(call.who, call.capture.answers())
            await self._continuation.remember(call)
        except Exception as error:
            # The client gets its answer all the same.
            log.error(
                "an answer is not remembered: the next turn opens a rollout of its own",
                call_id=call.call_id,
                exc_info=error,
            )


def _log_not_recorded(call_id: str, outcome: CallOutcome) -> None:
    log.warning(
        "a call without an answer is not recorded: Kafka is unavailable",
        call_id=call_id,
        outcome=outcome.value,
    )
