"""Knows whether what a reward is for was recorded: the latest calls from memory, others by a
look-up in the log.

A call is remembered before its answer is complete, so a reward that follows at once needs no
look-up. A look-up reads each topic for LOOK_UP_S at most (`rollout_search`). Where it cannot tell
(the log is away or slow, or too many look-ups wait), the reward is accepted and counted as
unchecked: rewards stay available.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fulgurite.events import LlmCall
from fulgurite.ids import CompletionRef, RolloutRef
from services.common.kafka.errors import LogUnavailable
from services.common.runtime import logs
from services.gateway.errors import NotFound, Unavailable
from services.gateway.recording.log_search import SearchTooLong
from services.gateway.recording.rollout_search import RolloutSearch
from services.gateway.recording.rollout_view import RolloutEvents
from services.gateway.telemetry.metrics import Metrics

log = logs.get(__name__)

_REMEMBERED = 50_000
"""Ids in memory: some 10 MB."""
_LOOK_UPS, _READS = 4, 2
"""Threads, so that those who read rollouts hold up no reward."""
_LOOK_UP_TIMEOUT_S = 5.0
"""The wait for a thread and for the broker included."""
_READ_TIMEOUT_S = 30.0

_A = TypeVar("_A")
_T = TypeVar("_T")


class RecordedCalls:
    """What the log holds of calls and rollouts."""

    def __init__(
        self, search: RolloutSearch, log_problem: Callable[[], str | None], metrics: Metrics
    ) -> None:
        """`log_problem` returns why the log cannot be read, or None."""
        self._search = search
        self._log_problem = log_problem
        self._unchecked = metrics.unchecked_rewards
        self._choices: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        """By call id; rollouts are here too, without choices."""
        self._look_ups = ThreadPoolExecutor(_LOOK_UPS, "reward-look-up")
        self._reads = ThreadPoolExecutor(_READS, "rollout-read")

    def remember(self, call: LlmCall) -> None:
        """Remember a recorded call. Call it before the agent has the complete answer."""
        self._choices[call.call_id] = tuple(choice.index for choice in call.choices)
        self._choices[call.rollout_id] = ()
        while len(self._choices) > _REMEMBERED:
            self._choices.popitem(last=False)

    async def require_call(self, ref: CompletionRef, choice: int | None) -> None:
        """Raise NotFound for a completion that was never recorded, or a choice it does not have."""
        choices = self._choices.get(ref.completion_id)
        if choices is None:
            try:
                choices = await self._look_up(self._search.choices, ref)
            except (LogUnavailable, SearchTooLong, TimeoutError) as error:
                return self._accept(ref.completion_id, error)
        if choices is None:
            raise NotFound(
                f"Unknown completion {ref.completion_id}: no such call is in the log (any more). "
                "To reward a call before its answer is complete, send `allow_unknown: true`.",
                param="completion_id",
                code="unknown_completion",
            )
        if choice is not None and choice not in choices:
            raise NotFound(
                f"Completion {ref.completion_id} has no choice {choice}. Its choices are: "
                f"{', '.join(map(str, choices)) or 'none'}.",
                param="choice",
                code="unknown_choice",
            )
        return None

    async def require_rollout(self, ref: RolloutRef) -> None:
        """Raise NotFound for a rollout that was neither declared nor has a call."""
        if ref.rollout_id in self._choices:
            return
        try:
            found = await self._look_up(self._search.has_rollout, ref)
        except (LogUnavailable, SearchTooLong, TimeoutError) as error:
            self._accept(ref.rollout_id, error)
            return
        if not found:
            raise NotFound(
                f"Unknown rollout {ref.rollout_id}: the log holds nothing of it (any more). To "
                "reward a rollout before its first answer is complete, send `allow_unknown: true`.",
                param="rollout_id",
                code="unknown_rollout",
            )

    async def read(self, ref: RolloutRef) -> RolloutEvents:
        """What the log holds of a rollout. Raises NotFound, Unavailable."""
        try:
            async with asyncio.timeout(_READ_TIMEOUT_S):
                found = await self._run(self._reads, self._search.read, ref)
        except (LogUnavailable, TimeoutError) as error:
            raise _unreadable(str(error) or "it does not answer") from error
        if found.is_empty and found.unread:
            raise _unreadable(f"nothing was found in time in {', '.join(found.unread)}")
        if found.is_empty:
            raise NotFound(
                f"Unknown rollout {ref.rollout_id}: the log holds nothing of it (any more).",
                code="unknown_rollout",
            )
        return found

    def close(self) -> None:
        """Stop: begin no more searches."""
        for threads in (self._look_ups, self._reads):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, ask: Callable[[_A], _T], ref: _A) -> _T:
        async with asyncio.timeout(_LOOK_UP_TIMEOUT_S):
            return await self._run(self._look_ups, ask, ref)

    async def _run(self, threads: ThreadPoolExecutor, ask: Callable[[_A], _T], ref: _A) -> _T:
        if (problem := self._log_problem()) is not None:
            raise LogUnavailable(problem)
        return await asyncio.get_running_loop().run_in_executor(threads, ask, ref)

    def _accept(self, named: str, error: Exception) -> None:
        self._unchecked.inc()
        log.warning(
            "a reward is accepted without a look-up: the log did not answer in time",
            id=named,
            error=str(error),
        )


def _unreadable(why: str) -> Unavailable:
    return Unavailable(
        f"The rollout cannot be read: the event log (Kafka) is unavailable ({why}). Try again "
        "shortly."
    )
