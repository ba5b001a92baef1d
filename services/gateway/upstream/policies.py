"""The policies' state: `policy.updates`, `policy.applied` and `policy.routes` folded into one view,
for `GET /v1/policies` and for routing. For one event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome
from fulgurite.events import Event, PolicyApplied, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.learning.policy_epochs import PolicyEpochs
from fulgurite.topics import POLICY_APPLIED, POLICY_ROUTES, POLICY_UPDATES
from services.common.kafka.settings import KafkaSettings
from services.gateway.upstream.followed_topics import FollowedTopics

_TOPICS = (POLICY_UPDATES, POLICY_APPLIED, POLICY_ROUTES)


class Serving(msgspec.Struct):
    """What one backend has reported of one policy since its engine started."""

    engine_id: str
    versions: set[str] = set()
    """Versions that it proved to serve, and that were not replaced or retired since."""


class PolicyState(msgspec.Struct):
    """What is known of one policy."""

    epochs: PolicyEpochs = msgspec.field(default_factory=PolicyEpochs)
    newest: PolicyUpdate | None = None
    """The last update that counts."""
    applied: dict[str, PolicyApplied] = {}
    serving: dict[str, Serving] = {}


class PolicyView:
    """The fold. Pure."""

    def __init__(self, adapters: frozenset[str] = frozenset()) -> None:
        """`adapters`: policies of which a backend holds several versions at once."""
        self._adapters = adapters
        self.generation = 0
        """Counts the events applied: what was derived from the view is valid while it is the same.
        """
        self._policies: dict[str, PolicyState] = {}
        self._routes: dict[str, PolicyRoute] = {}

    def apply(self, event: Event | None) -> None:
        """Apply any event of the three topics, in log order."""
        self.generation += 1
        if isinstance(event, PolicyUpdate):
            self._apply_update(event)
        elif isinstance(event, PolicyApplied):
            self._apply_applied(event)
        elif isinstance(event, PolicyRoute):
            self._routes[event.alias] = event

    def targets(self, alias: str) -> tuple[RouteTarget, ...]:
        """The latest targets of an alias in `policy.routes`; empty if it has none."""
        route = self._routes.get(alias)
        return route.targets if route is not None else ()

    def newest(self, policy: str) -> str:
        """The newest version there is; the base model before any update."""
        newest = self._state(policy).newest
        return (newest.version if newest is not None else None) or f"{policy}@0.0"

    def loaded(self, policy: str, backend: str) -> frozenset[str]:
        """The versions that a backend holds: one of full weights, several of adapters."""
        serving = self._state(policy).serving.get(backend)
        return frozenset(serving.versions) if serving is not None else frozenset()

    def served(self, policy: str, backend: str) -> str | None:
        """The version a backend last proved to serve."""
        applied = self._state(policy).applied.get(backend)
        if applied is None:
            return None
        return applied.version if applied.outcome is ApplyOutcome.applied else applied.previous

    def held(self) -> Iterator[tuple[str, str, str]]:
        """Policy, backend and version, for every version that a backend holds."""
        for policy, state in sorted(self._policies.items()):
            for backend in sorted(state.serving):
                yield from (
                    (policy, backend, version) for version in sorted(self.loaded(policy, backend))
                )

    def as_json(self, policies: set[str]) -> dict[str, Any]:
        """The reply of `GET /v1/policies`; `policies` are listed even if the log does not know
        them.
        """
        names = sorted(policies | set(self._policies))
        return {
            "object": "list",
            "data": [self._one(name) for name in names],
            "routes": [_route(r) for _, r in sorted(self._routes.items())],
        }

    def _apply_update(self, event: PolicyUpdate) -> None:
        state = self._state(event.policy)
        if state.epochs.apply(event):
            state.newest = event

    def _apply_applied(self, event: PolicyApplied) -> None:
        state = self._state(event.policy)
        if event.outcome is not ApplyOutcome.retired:
            state.applied[event.backend] = event
        serving = state.serving.get(event.backend)
        if serving is None or serving.engine_id != event.engine_id:
            serving = state.serving[event.backend] = Serving(event.engine_id)
        if event.policy not in self._adapters:
            served = self.served(event.policy, event.backend)
            serving.versions = set() if served is None else {served}
        elif event.outcome is ApplyOutcome.applied:
            serving.versions.add(event.version)
        elif event.outcome is ApplyOutcome.retired:
            serving.versions.discard(event.version)

    def _state(self, policy: str) -> PolicyState:
        return self._policies.setdefault(policy, PolicyState())

    def _one(self, name: str) -> dict[str, Any]:
        state = self._state(name)
        newest = state.newest
        return {
            "policy": name,
            "epoch": max(state.epochs.epoch, 0),
            "newest": newest.version if newest else f"{name}@0.0",
            "newest_at": newest.event_time if newest else None,
            "metrics": newest.metrics if newest else {},
            "backends": [
                {
                    "backend": applied.backend,
                    "engine_id": applied.engine_id,
                    "version": self.served(name, applied.backend),
                    "versions": sorted(self.loaded(name, applied.backend)),
                    "last_attempt": {
                        "version": applied.version,
                        "outcome": applied.outcome.value,
                        "error": applied.error,
                    },
                    "at": applied.event_time,
                }
                for _, applied in sorted(state.applied.items())
            ],
        }


def _route(route: PolicyRoute) -> dict[str, Any]:
    return {
        "alias": route.alias,
        "targets": [msgspec.to_builtins(target) for target in route.targets],
        "reason": route.reason,
    }


class PolicyTail:
    """Keeps a `PolicyView` up to date. While Kafka is away the view only gets older."""

    def __init__(
        self, kafka: KafkaSettings, codec: Codec, adapters: frozenset[str] = frozenset()
    ) -> None:
        self.view = PolicyView(adapters)
        self._followed = FollowedTopics(
            kafka,
            codec,
            _TOPICS,
            self.view.apply,
            "calls are routed by settings alone until policy.updates, policy.applied and "
            "policy.routes can be read",
        )
        self.start, self.close = self._followed.start, self._followed.close

    @property
    def caught_up(self) -> bool:
        """Whether all that the topics had at the start is in the view."""
        return self._followed.caught_up
