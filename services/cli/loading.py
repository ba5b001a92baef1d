"""Has a backend load a version while it is evaluated, and puts the route back afterwards."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from fulgurite.events import RouteTarget
from fulgurite.versions import Version
from services.cli.gateway_models import is_served
from services.cli.route_effect import RouteEffect
from services.cli.route_targets import BadTarget, read_published
from services.cli.routes import last_routes, write_route
from services.common.kafka.settings import KafkaSettings

_POLL_S = 0.1


@contextmanager
def loaded(kafka: KafkaSettings, alias: str, version: Version, wait_s: float) -> Generator[None]:
    """Route to a version until the block ends. Raises BadTarget if no backend loads it.

    An adapter gets a share of 0. Full weights get the whole alias: a backend holds one version.
    """
    published = read_published(kafka)
    wanted = RouteTarget(policy=version.policy, version=str(version), weight=1.0)
    published.check(wanted, {version.policy})
    before = last_routes(kafka).get(alias)
    targets = before.targets if before is not None else ()
    routed = (wanted,)
    if version.policy in published.adapters():
        kept = targets or (RouteTarget(policy=version.policy, weight=1.0),)
        unserved = RouteTarget(policy=version.policy, version=str(version), weight=0.0)
        named = any(target.version == str(version) for target in kept)
        routed = kept if named else (*kept, unserved)
    with RouteEffect(kafka, published) as effect:
        write_route(kafka, alias, routed, f"evaluation of {version}")
        try:
            if not effect.wait((wanted,), wait_s):
                raise BadTarget(f"no backend has loaded {version}: see `fulgurite status`")
            _wait_for_gateway(version, time.monotonic() + wait_s)
            yield
        finally:
            previous = before.previous if before is not None else ()
            write_route(kafka, alias, targets, f"after the evaluation of {version}", previous)


def _wait_for_gateway(version: Version, deadline: float) -> None:
    """The gateway reads what backends report a little later than this process."""
    while not is_served(str(version)):
        if time.monotonic() > deadline:
            raise BadTarget(
                f"the gateway does not know that a backend serves {version}: see `fulgurite status`"
            )
        time.sleep(_POLL_S)
