"""Has a backend load a version while it is evaluated, and puts the route back afterwards."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import msgspec

from fulgurite.events import PolicyRoute, RouteTarget
from fulgurite.selection.authors import EVALUATION, GATE
from fulgurite.topics import POLICY_ROUTES
from fulgurite.versions import Version, base_version
from services.cli.gateway_models import is_served
from services.cli.route_effect import RouteEffect
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_log import last_routes, publish_route, write_route
from services.common.policies.route_targets import BadTarget, read_published
from services.common.runtime.terminal import make_console

_POLL_S = 0.1


@contextmanager
def loaded(
    kafka: KafkaSettings,
    alias: str,
    version: Version,
    wait_s: float,
    *,
    load: bool,
    author: str = EVALUATION,
) -> Generator[None]:
    """Hold a version at the backends until the block ends. Raises BadTarget if none loads it.

    An adapter gets a share of 0. Full weights get the whole alias, as a backend holds one version,
    and only if `load` says so.
    """
    published = read_published(kafka)
    is_adapter = version.policy in published.adapters()
    is_base = version == base_version(version.policy)
    if is_base if is_adapter else not load:
        yield
        return
    wanted = RouteTarget(policy=version.policy, version=str(version), weight=1.0)
    published.check(wanted, {version.policy})
    before = last_routes(kafka).get(alias)
    targets = before.targets if before is not None else ()
    # Standard output is for the result.
    with RouteEffect(kafka, published, make_console(stderr=True)) as effect:
        routed = with_share_of_0(targets, wanted) if is_adapter else (wanted,)
        reason = f"evaluation of {version}"
        ours = write_route(kafka, alias, routed, reason, author=author)
        try:
            if not effect.wait((wanted,), wait_s):
                raise BadTarget(f"no backend has loaded {version}: see `fulgurite status`")
            _wait_for_gateway(version, time.monotonic() + wait_s)
            yield
        finally:
            # A route that somebody else has set since then stays.
            if last_routes(kafka).get(alias) != ours:
                pass
            elif before is not None:
                # The same event: who wrote it, when and why stays.
                publish_route(kafka, before)
            else:
                write_route(kafka, alias, (), f"{version} is evaluated", (), author=author)


def take_back(kafka: KafkaSettings, author: str) -> list[str]:
    """Put back the routes that evaluations by this author have replaced, which were killed.

    Returns what they were, for people. Raises LogUnavailable.
    """
    routes: dict[str, list[PolicyRoute]] = {}
    for record in read_all(kafka, POLICY_ROUTES, make_codec()):
        if isinstance(record.event, PolicyRoute):
            routes.setdefault(record.event.alias, []).append(record.event)
    found: list[str] = []
    for alias, known in routes.items():
        killed = known[-1]
        if killed.author != author or not killed.targets:
            continue
        before = next((route for route in reversed(known) if route.author != author), None)
        if before is not None and before.targets == killed.previous:
            publish_route(kafka, before)
        else:
            # The topic is compacted, or there was no route.
            reason = f"taken back: {killed.reason}"
            by = GATE if killed.previous else author
            write_route(kafka, alias, killed.previous, reason, (), author=by)
        found.append(f"{alias}: {killed.reason}")
    return found


def with_share_of_0(
    targets: tuple[RouteTarget, ...], wanted: RouteTarget
) -> tuple[RouteTarget, ...]:
    """A route's targets, and one that backends load and no rollout gets."""
    kept = targets or (RouteTarget(policy=wanted.policy, weight=1.0),)
    if any(target.version == wanted.version for target in kept):
        return kept
    return (*kept, msgspec.structs.replace(wanted, weight=0.0))


def _wait_for_gateway(version: Version, deadline: float) -> None:
    """The gateway reads what backends report a little later than this process."""
    while not is_served(str(version)):
        if time.monotonic() > deadline:
            raise BadTarget(
                f"the gateway does not know that a backend serves {version}: see `fulgurite status`"
            )
        time.sleep(_POLL_S)
