"""Follows the log for several aliases and writes what their selectors decide.

Reads `policy.routes` and `selection.decisions` from their beginning, and `episodes` and
`agent.rewards` from the oldest route that a comparison starts from. Nothing is written before all
that was in the log at the start is applied. No offset is committed: a start rebuilds everything.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from fulgurite.enums import SelectionKind
from fulgurite.events import PolicyRoute, SelectionDecision
from fulgurite.selection.history import SelectionHistory
from fulgurite.topics import AGENT_REWARDS, EPISODES, POLICY_ROUTES, SELECTION_DECISIONS, Topic
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.dead_letters import words_of
from services.common.kafka.log_follower import BATCH, LogFollower
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import liveness, logs, metrics
from services.common.runtime.clock import now_ms
from services.selector.alias_selector import AliasSelector

logger = logs.get()

_POLL_S = 0.2
"""How soon a stop is noticed; a record wakes the poll at once."""
_DAY_MS = 24 * 3600 * 1000
_SKEW_MS = 60_000
"""How far the clocks that stamp routes and episodes may differ."""
_DECISIONS = (POLICY_ROUTES, SELECTION_DECISIONS)
_OUTCOMES = (EPISODES, AGENT_REWARDS)
_EVENTS = "fulgurite_selector_events_total"
_ROUTE = "route"
_KINDS = (SelectionKind.claim, SelectionKind.shares, SelectionKind.verdict, _ROUTE)


class Selector:
    """Selects until stopped, or until another selector takes an alias over."""

    def __init__(
        self, selectors: Sequence[AliasSelector], kafka: KafkaSettings, lookback_days: float
    ) -> None:
        self._selectors = selectors
        self._kafka = kafka
        self._lookback_ms = int(lookback_days * _DAY_MS)
        self._codec = make_codec()
        self._producer = EventProducer(kafka, self._codec, "fulgurite-selector")
        for one, kind in itertools.product(selectors, _KINDS):
            metrics.start_counter(_EVENTS, one.alias, kind)
        self._stopping = False
        self._shares: dict[tuple[str, ...], float] = {}
        """By alias and variant, as metrics show them."""

    def stop(self) -> None:
        """Stop soon."""
        self._stopping = True

    async def run(self) -> None:
        """Select until stopped. Raises Superseded, LogUnavailable."""
        await asyncio.to_thread(self._run)

    def _run(self) -> None:
        starts = dict.fromkeys(_OUTCOMES, self._since())
        topics = (*_DECISIONS, *_OUTCOMES)
        try:
            with LogFollower(self._kafka, self._codec, topics, since_ms=starts) as events:
                events.watch_lag()
                self._select(events)
        finally:
            self._producer.close()

    def _select(self, events: LogFollower) -> None:
        while not events.caught_up and not self._stopping:
            self._consume(events)
            liveness.beat()
        for selector in self._selectors:
            self._write(selector.claim(now_ms()))
        logger.info("ready", aliases=[one.alias for one in self._selectors])
        while not self._stopping:
            has_more = self._consume(events)
            liveness.beat()
            if not has_more:
                self._write_due()

    def _since(self) -> int:
        """The time of the oldest route that a comparison starts from, Unix milliseconds."""
        histories = [SelectionHistory(one.alias) for one in self._selectors]
        for topic in _DECISIONS:
            for record in read_all(self._kafka, topic, self._codec):
                for history in histories:
                    history.apply(record.event)
        now = now_ms()
        bases = [base.time for history in histories if (base := history.base()) is not None]
        return max(min([now, *bases]) - _SKEW_MS, now - self._lookback_ms, 0)

    def _consume(self, events: LogFollower) -> bool:
        """Apply what has come; True if more has come already.

        Only a full batch says so: with steady traffic there is always another record, and shares
        and guard rails would wait for it for ever.
        """
        found = events.poll(_POLL_S)
        for topic, record in found:
            metrics.count("fulgurite_consumed_records_total", topic.name)
            for selector in self._selectors:
                self._apply(selector, record.event)
        return len(found) > BATCH

    def _apply(self, selector: AliasSelector, event: object) -> None:
        try:
            selector.apply(event)
        except Exception as error:
            logger.error(
                "an event cannot be applied and is skipped",
                alias=selector.alias,
                event_id=getattr(event, "event_id", None),
                error=words_of(error),
                exc_info=error,
            )

    def _write_due(self) -> None:
        for selector in self._selectors:
            event = selector.due(now_ms())
            if event is not None:
                self._write(event)

    def _write(self, event: PolicyRoute | SelectionDecision) -> None:
        topic: Topic = POLICY_ROUTES if isinstance(event, PolicyRoute) else SELECTION_DECISIONS
        self._producer.publish_sync(topic, event.alias, event)
        kind = _ROUTE if isinstance(event, PolicyRoute) else event.kind.value
        metrics.count(_EVENTS, event.alias, kind)
        logger.info("written", alias=event.alias, kind=kind, reason=event.reason)
        if isinstance(event, SelectionDecision):
            self._shares |= {(event.alias, one.variant): one.share for one in event.variants}
            metrics.put("fulgurite_selector_share", self._shares)
