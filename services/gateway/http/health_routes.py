"""`/healthz` (the process is alive), `/readyz` (it may get traffic, and what it promises),
`/metrics`.

The durability promise needs replication ≥ 3, `min.insync.replicas` ≥ 2 and unclean election off.
With less the gateway serves, and `/readyz` reports what is missing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from confluent_kafka import KafkaException
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fulgurite.topics import AGENT_STATUS, LLM_CALLS, min_insync
from services.common.kafka.errors import LogUnavailable
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.kafka.topic_admin import TopicLayoutError, admin_client, check_topics
from services.gateway.context import GatewayContext
from services.gateway.errors import Unavailable

FULL_REPLICATION = 3
_TOPICS_FRESH_S = 10.0
_UPSTREAMS_FRESH_S = 2.0
"""Seconds for which an upstream's answer is reused, however often readiness is asked for."""
_TIMEOUT_S = 3.0
"""Seconds that a broker may take to answer, so that a readiness check does not wait longer."""


def promise(replication: int) -> dict[str, Any]:
    """The durability of acknowledged calls, given the replicas of the topics."""
    full = replication >= FULL_REPLICATION
    acknowledging = min_insync(replication)
    text = (
        f"an acknowledged call survives the loss of {acknowledging - 1} broker(s)"
        if full
        else "an acknowledged call does not survive the loss of a broker's disk: use 3 brokers "
        "and FULGURITE_REPLICATION=3"
    )
    return {
        "full": full,
        "replication": replication,
        "min_insync_replicas": acknowledging,
        "unclean_election": False,
        "promise": text,
    }


class HealthRoutes:
    """The operators' routes. Their details need FULGURITE_OPERATIONS_KEY where that is set."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._topics: dict[str, Any] = {}
        self._topics_at = self._upstreams_at = float("-inf")
        self._up: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()
        self.router = APIRouter(tags=["Operations"])
        self.router.add_api_route("/healthz", self.healthz, methods=["GET"], response_model=None)
        self.router.add_api_route("/readyz", self.readyz, methods=["GET"], response_model=None)
        self.router.add_api_route("/metrics", self.metrics, methods=["GET"], response_model=None)

    async def healthz(self) -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    async def readyz(self, request: Request) -> JSONResponse:
        """200 if traffic is welcome, 503 if not; tells operators why."""
        candidates = {
            alias: self._context.dispatcher.router.candidates(alias, "")
            for alias in self._context.routes
        }
        backends = {route.backend: route for listed in candidates.values() for route in listed}
        async with self._lock:
            if time.monotonic() - self._topics_at > _TOPICS_FRESH_S:
                self._topics = await asyncio.to_thread(_look_at_topics, self._context.kafka)
                self._topics_at = time.monotonic()
            if time.monotonic() - self._upstreams_at > _UPSTREAMS_FRESH_S:
                answers = await asyncio.gather(
                    *(self._context.upstream.reachable(route) for route in backends.values())
                )
                self._up = frozenset(
                    name for name, answer in zip(backends, answers, strict=True) if answer
                )
                self._upstreams_at = time.monotonic()
        up = self._up
        upstreams = {name: "reachable" if name in up else "unreachable" for name in backends}
        problem = self._context.recorder.problem()
        # One backend of several may be away: its calls go to the others.
        ready = self._log_ready() and all(
            any(route.backend in up for route in listed) for listed in candidates.values()
        )
        report = {
            "ready": ready,
            "log": {
                "problem": problem,
                "unavailable": self._context.settings.outage_modes(),
                "spool": self._context.recorder.spool_report(),
            },
            "topics": self._topics,
            "upstreams": upstreams,
            "unserved_routes": self._context.dispatcher.router.unserved(),
            "policies": {"read": self._context.policies.caught_up},
            "prompts": {"read": self._context.prompts.caught_up},
            "store": {"problem": await self._store_problem()},
        }
        shown = (
            report
            if self._context.authenticator.is_operator(request.headers.get("authorization"))
            else {"ready": ready}
        )
        return JSONResponse(shown, 200 if ready else 503)

    def _log_ready(self) -> bool:
        """Whether calls of some mode would be answered, by the routes and prompt versions of the
        log: a gateway that can serve without the log is ready without it.
        """
        recorder = self._context.recorder
        away = not self._topics["reached"] and any(
            outage_mode != "refuse"
            for outage_mode in self._context.settings.outage_modes().values()
        )
        read = self._context.policies.caught_up and self._context.prompts.caught_up
        readable = self._topics["problem"] is None and read
        return recorder.welcome() and (readable or away)

    async def _store_problem(self) -> str | None:
        """The store's error, if any. It is reported but does not make the gateway unready, as calls
        need no store.
        """
        try:
            await self._context.store.ping()
        except Unavailable as problem:
            return problem.message
        return None

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(
            self._context.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def _look_at_topics(kafka: KafkaSettings) -> dict[str, Any]:
    """Compare the topics with the table of topics; blocking."""
    try:
        check_topics(answering(kafka), _TIMEOUT_S)
        found = cast(Any, admin_client(kafka).list_topics(timeout=_TIMEOUT_S)).topics
        names = (kafka.topic(LLM_CALLS), kafka.topic(AGENT_STATUS))
        replication = min(
            len(partition.replicas)
            for name in names
            for partition in found[name].partitions.values()
        )
    except (LogUnavailable, TopicLayoutError, KafkaException) as error:
        return {
            "problem": str(error),
            "reached": isinstance(error, TopicLayoutError),
            "durability": None,
        }
    return {"problem": None, "reached": True, "durability": promise(replication)}
