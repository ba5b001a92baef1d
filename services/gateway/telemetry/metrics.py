"""The metrics of `/metrics`; one registry per app, so that several apps can live in one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
)


class Metrics:
    """The gateway's counters and histograms, and the memory and processor time of its process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        calls = Counter(
            "fulgurite_gateway_calls",
            "Calls by how they ended.",
            ("alias", "outcome", "failure"),
            registry=self.registry,
        )
        self.calls = cache(calls.labels)
        """Counters by alias, outcome and failure. They are kept here, as looking one up takes six
        times as long as counting.
        """
        self._in_flight = Gauge(
            "fulgurite_gateway_calls_in_flight", "Calls not yet answered.", registry=self.registry
        )
        self.upstream_seconds = Histogram(
            "fulgurite_gateway_upstream_seconds",
            "Upstream asked to answer complete.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.added_seconds = Histogram(
            "fulgurite_gateway_added_seconds",
            "What an answered call took apart from its upstream: waiting for a place, and for "
            "the log's acknowledgement, included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "fulgurite_gateway_first_token_seconds",
            "Request received to first byte of the answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.ack_seconds = Histogram(
            "fulgurite_gateway_ack_seconds",
            "How long an event waited for Kafka's acknowledgement.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.log_refusals = Counter(
            "fulgurite_gateway_log_refusals",
            "Calls refused before generation because the log was unavailable.",
            registry=self.registry,
        )
        self.unlogged = Counter(
            "fulgurite_gateway_unlogged",
            "Events answered for without a record, in mode `serve`, by topic; a few of them "
            "arrive all the same.",
            ("topic",),
            registry=self.registry,
        )
        self.delta_saved_bytes = Counter(
            "fulgurite_gateway_delta_saved_bytes",
            "Bytes of prompts and requests that their parents in the log already hold, before "
            "compression.",
            registry=self.registry,
        )
        self.claim_checks = Counter(
            "fulgurite_gateway_claim_checks",
            "Calls whose text was left in the claims folder.",
            registry=self.registry,
        )
        self.claim_bytes = Counter(
            "fulgurite_gateway_claim_bytes",
            "Bytes left in the claims folder.",
            registry=self.registry,
        )
        self.unread_chunks = Counter(
            "fulgurite_gateway_unread_chunks",
            "Parts of answers that the agent got and the gateway did not understand; such a "
            "call is recorded without tokens.",
            registry=self.registry,
        )
        self.withheld = Counter(
            "fulgurite_gateway_withheld",
            "Answers generated and then withheld because the log did not take them.",
            registry=self.registry,
        )
        self.inference = Counter(
            "fulgurite_gateway_inference",
            "Conversations of calls that name no rollout: recognised, ambiguous, unknown, or "
            "not asked (store_down).",
            ("result",),
            registry=self.registry,
        )
        self.training_uses = Counter(
            "fulgurite_gateway_training_uses",
            "Calls that are not treated as their mode says: live (trained), quota or excluded "
            "(not trained), and quotas that were not asked for (store_down).",
            ("use",),
            registry=self.registry,
        )
        self.responses = Counter(
            "fulgurite_gateway_responses",
            "Recorded responses that requests named: found in memory or in the log, not_found, "
            "or unavailable.",
            ("result",),
            registry=self.registry,
        )
        self.unchecked_rewards = Counter(
            "fulgurite_gateway_unchecked_rewards",
            "Rewards accepted without knowing that what they are for was recorded: the look-up in "
            "the log gave no answer in time.",
            registry=self.registry,
        )
        events = Counter(
            "fulgurite_gateway_events",
            "Events by topic and fate.",
            ("topic", "fate"),
            registry=self.registry,
        )
        self.events = cache(events.labels)
        """By topic and fate."""
        self.failovers = Counter(
            "fulgurite_gateway_failovers",
            "Calls that a backend could not take (no connection, no such adapter yet), so that "
            "another was asked, if there was one.",
            ("backend",),
            registry=self.registry,
        )
        self._places = Gauge(
            "fulgurite_gateway_backend_calls",
            "Calls at a backend.",
            ("backend",),
            registry=self.registry,
        )
        self._waiting = Gauge(
            "fulgurite_gateway_backend_waiting",
            "Calls that wait for a place.",
            ("backend",),
            registry=self.registry,
        )

    def watch_calls(self, in_flight: Callable[[], float]) -> None:
        """A gauge whose value is read when the metrics are shown."""
        self._in_flight.set_function(in_flight)

    def watch_gate(
        self, backend: str, in_flight: Callable[[], float], waiting: Callable[[], float]
    ) -> None:
        """Show a backend's places and queue."""
        self._places.labels(backend).set_function(in_flight)
        self._waiting.labels(backend).set_function(waiting)

    def watch_spool(
        self, depth: Callable[[], float], size: Callable[[], float], age_s: Callable[[], float]
    ) -> None:
        """Show what waits on disk."""
        for name, text, ask in (
            ("events", "Events on disk that wait for Kafka.", depth),
            ("bytes", "What they take.", size),
            ("oldest_seconds", "How long the oldest of them has waited.", age_s),
        ):
            Gauge(f"fulgurite_gateway_spool_{name}", text, registry=self.registry).set_function(ask)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
