"""Writes `policy.applied` in a task of its own, so that Kafka being away does not delay the engine.

Events are written in order, and retried without end.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Iterable

from fulgurite.enums import ApplyOutcome
from fulgurite.events import PolicyApplied
from fulgurite.ids import derive_id
from fulgurite.topics import POLICY_APPLIED
from fulgurite.versions import Version
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.producer import EventProducer
from services.common.runtime import logs, metrics
from services.common.runtime.clock import now_ms

logger = logs.get(__name__)

_RETRY_S = 2.0
_APPLIED = "fulgurite_applied_total"
_OUTCOMES = (ApplyOutcome.applied, ApplyOutcome.failed, ApplyOutcome.retired)


class Announcer:
    """Writes the reports of one applier; `run` until cancelled."""

    def __init__(self, backend: str, producer: EventProducer, policies: Iterable[str]) -> None:
        """`policies`: those of which it will report versions."""
        for policy, outcome in itertools.product(policies, _OUTCOMES):
            metrics.start_counter(_APPLIED, policy, outcome)
        self._backend = backend
        self._producer = producer
        self._outbox: asyncio.Queue[PolicyApplied] = asyncio.Queue()

    def report(
        self,
        engine_id: str,
        version: Version,
        outcome: ApplyOutcome,
        seconds: float,
        *,
        previous: str | None = None,
        error: str | None = None,
        difference: float | None = None,
    ) -> None:
        """Queue a report of what happened to a version; returns at once."""
        metrics.count(_APPLIED, version.policy, outcome)
        self._outbox.put_nowait(
            PolicyApplied(
                event_id=derive_id("applied", engine_id, str(version), outcome, uuid.uuid4().hex),
                event_time=now_ms(),
                policy=version.policy,
                backend=self._backend,
                engine_id=engine_id,
                version=str(version),
                previous=previous,
                outcome=outcome,
                error=error,
                probe_error=difference,
                seconds=seconds,
            )
        )

    async def run(self) -> None:
        """Publish queued reports."""
        while True:
            event = await self._outbox.get()
            for attempt in itertools.count():
                try:
                    await self._producer.publish(
                        POLICY_APPLIED, event.policy, event, timeout_s=30.0
                    )
                    break
                except LogUnavailable as error:
                    logger.warning(
                        "policy.applied cannot be written; trying again",
                        error=str(error),
                        attempt=attempt,
                    )
                    await asyncio.sleep(_RETRY_S)
