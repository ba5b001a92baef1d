"""Reads and writes `policy.routes`, which gateways and appliers follow within a second."""

from __future__ import annotations

import getpass
import uuid

from fulgurite.events import PolicyRoute, RouteTarget
from fulgurite.ids import derive_id
from fulgurite.topics import POLICY_ROUTES
from fulgurite.versions import base_version
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_targets import BadTarget, Published
from services.common.runtime.clock import now_ms


def read_routes(kafka: KafkaSettings) -> dict[str, PolicyRoute]:
    """Read the routes in force, by alias. Raises LogUnavailable."""
    return {alias: route for alias, route in last_routes(kafka).items() if route.targets}


def last_routes(kafka: KafkaSettings) -> dict[str, PolicyRoute]:
    """Read the last route of each alias, removed ones too. Raises LogUnavailable."""
    events = (record.event for record in read_all(kafka, POLICY_ROUTES, make_codec()))
    return {event.alias: event for event in events if isinstance(event, PolicyRoute)}


def write_route(
    kafka: KafkaSettings,
    alias: str,
    targets: tuple[RouteTarget, ...],
    reason: str,
    previous: tuple[RouteTarget, ...] | None = None,
    author: str | None = None,
) -> PolicyRoute:
    """Write an alias's route and return it. Raises LogUnavailable.

    `previous`: what a rollback returns to; None: the targets that the route replaces. `author`: who
    writes it; None: the user of this process.
    """
    if previous is None:
        replaced = last_routes(kafka).get(alias)
        previous = replaced.targets if replaced is not None else ()
    event = PolicyRoute(
        event_id=derive_id("route", alias, uuid.uuid4().hex),
        event_time=now_ms(),
        alias=alias,
        targets=targets,
        reason=reason,
        author=author or getpass.getuser(),
        previous=previous,
    )
    publish_route(kafka, event)
    return event


def publish_route(kafka: KafkaSettings, event: PolicyRoute) -> int:
    """Publish a route, and return its offset. Raises LogUnavailable."""
    producer = EventProducer(kafka, make_codec(), "fulgurite-routes")
    try:
        return producer.publish_sync(POLICY_ROUTES, event.alias, event).offset
    finally:
        producer.close()


def former_targets(
    published: Published, route: PolicyRoute | None, policy: str
) -> tuple[RouteTarget, ...]:
    """What a rollback returns to: the targets that the route replaced, and without a route the
    version before the newest. Raises BadTarget if there is none.
    """
    if route is not None and (route.targets or route.previous):
        return route.previous
    newest = published.folds[policy].version() if policy in published.folds else None
    if newest is None or newest == base_version(policy):
        raise BadTarget(f"{policy} has no version yet, so there is nothing to roll back")
    parent = published.update(newest).parent_version or str(base_version(policy))
    return (RouteTarget(policy=policy, version=parent, weight=1.0),)
