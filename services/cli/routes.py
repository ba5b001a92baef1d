"""`fulgurite routes`: which versions serve an alias, by hand. Writes `policy.routes`; gateways and appliers follow within a second."""

from __future__ import annotations

import getpass
import math
import re
import uuid
from collections.abc import Sequence

from fulgurite.codec import Codec
from fulgurite.desired import DesiredVersion
from fulgurite.events import PolicyRoute, RouteTarget
from fulgurite.ids import derive_id
from fulgurite.topics import POLICY_ROUTES, POLICY_UPDATES
from fulgurite.versions import MalformedVersion, base_version, parse_version
from services.brokers import answering
from services.cli.failing import told
from services.clock import now_ms
from services.kafka import EventProducer, KafkaSettings, read_all
from services.replay.windows import shown
from services.terminal import make_console, plain

_POLICY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class BadTarget(ValueError):
    """Not `policy@epoch.step=share` or `policy=share`."""


def parse_targets(texts: Sequence[str]) -> tuple[RouteTarget, ...]:
    """`policy@1.3=0.9`, `policy=0.1` for whatever is newest; a share not given is 1. Raises BadTarget."""
    targets = tuple(_target(text) for text in texts)
    if not any(target.weight > 0 for target in targets):
        raise BadTarget("at least one target needs a share above 0; `fulgurite routes clear` takes a route back")
    if len({(target.policy, target.version) for target in targets}) < len(targets):
        raise BadTarget("the same target is named twice")
    return targets


def _target(text: str) -> RouteTarget:
    name, equals, share = text.partition("=")
    try:
        weight = float(share) if equals else 1.0
        policy, at, _ = name.partition("@")
        version = str(parse_version(name)) if at else None
    except (ValueError, MalformedVersion) as error:
        raise BadTarget(f"{text!r}: {error}") from error
    if not math.isfinite(weight) or weight < 0 or not _POLICY.fullmatch(policy):
        raise BadTarget(f"{text!r} is neither policy@epoch.step=share nor policy=share, with a share of 0 or more")
    return RouteTarget(policy=policy, version=version, weight=weight)


def set_route_command(alias: str, texts: Sequence[str], reason: str) -> None:
    """Exits 1 with a plain message for what makes no sense, 2 if the log does not answer."""
    with told("routes"):
        targets = parse_targets(texts)
        kafka = answering(KafkaSettings())
        _check_known(kafka, targets)
        _write(kafka, alias, targets, reason)
    list_routes_command()


def clear_route_command(alias: str, reason: str) -> None:
    """An alias without targets is served as FULGURITE_ALIASES says."""
    with told("routes"):
        _write(answering(KafkaSettings()), alias, (), reason)
    list_routes_command()


def list_routes_command() -> None:
    """The routes in force, an alias a line."""
    with told("routes"):
        found = read_routes(answering(KafkaSettings()))
    console = make_console()
    for alias, route in sorted(found.items()):
        since = shown(route.event_time)
        targets = ", ".join(_shown(target) for target in route.targets)
        console.print(plain(f"{alias}: {targets}  ({since} UTC, {route.author}: {route.reason})"))
    if not found:
        console.print("no routes: every alias is served by the newest version of its policy")


def read_routes(kafka: KafkaSettings) -> dict[str, PolicyRoute]:
    """The last word on each alias. Raises LogUnavailable."""
    events = (record.event for record in read_all(kafka, POLICY_ROUTES, Codec()))
    last = {event.alias: event for event in events if isinstance(event, PolicyRoute)}
    return {alias: route for alias, route in last.items() if route.targets}


def _check_known(kafka: KafkaSettings, targets: Sequence[RouteTarget]) -> None:
    """A version that nobody has published would be waited for in vain."""
    folds = {target.policy: DesiredVersion(target.policy) for target in targets}
    for record in read_all(kafka, POLICY_UPDATES, Codec()):
        for fold in folds.values():
            fold.take(record.event)
    for target in targets:
        known = [base_version(target.policy), *sorted(folds[target.policy].updates)]
        if target.version is not None and parse_version(target.version) not in known:
            raise BadTarget(f"{target.version} was never published; the newest is {known[-1]}")


def _write(kafka: KafkaSettings, alias: str, targets: tuple[RouteTarget, ...], reason: str) -> None:
    event = PolicyRoute(
        event_id=derive_id("route", alias, uuid.uuid4().hex),
        event_time=now_ms(),
        alias=alias,
        targets=targets,
        reason=reason,
        author=getpass.getuser(),
    )
    producer = EventProducer(kafka, Codec(), "fulgurite-cli")
    try:
        producer.publish_sync(POLICY_ROUTES, alias, event)
    finally:
        producer.close()


def _shown(target: RouteTarget) -> str:
    return f"{target.version or f'{target.policy} (newest)'}={target.weight:g}"
