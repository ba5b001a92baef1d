"""Implements `fulgurite routes`: chooses which variants serve an alias.

It writes `policy.routes`, which gateways and appliers follow within a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import typer

from fulgurite.events import RouteTarget
from fulgurite.selection.variants import name_variant
from services.cli.errors import report_errors
from services.cli.gateway_models import GatewaySilent, models_of_gateway
from services.cli.prompt_log import read_prompts
from services.cli.route_effect import RouteEffect
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_log import read_routes, write_route
from services.common.policies.route_targets import (
    BadTarget,
    check_alias,
    check_prompts,
    check_upstreams,
    parse_targets,
    read_published,
)
from services.common.runtime.terminal import make_console, plain
from services.replay.windows import shown
from services.runner.settings import RunnerSettings


def set_route_command(alias: str, texts: Sequence[str], reason: str, wait_s: float) -> None:
    """Set a route. Exits 1 if it is invalid or takes no effect, 2 if the log cannot be read."""
    with report_errors("routes"):
        targets = parse_targets(texts)
        took_effect = change_route(answering(KafkaSettings()), alias, targets, reason, wait_s)
    if not took_effect:
        raise typer.Exit(1)


def change_route(
    kafka: KafkaSettings,
    alias: str,
    targets: tuple[RouteTarget, ...],
    reason: str,
    wait_s: float,
) -> bool:
    """Check a route, write it, print the routes, and wait until backends serve it.

    Returns False if none does. No targets remove the route, and nothing is waited for. Raises
    BadTarget, LogUnavailable.
    """
    policies = {RunnerSettings().policy, *_check_alias(alias, targets)}
    published = read_published(kafka)
    for target in targets:
        if target.upstream is None:
            published.check(target, policies)
    if any(target.prompt is not None for target in targets):
        check_prompts(alias, targets, read_prompts(kafka))
    with RouteEffect(kafka, published) as effect:
        write_route(kafka, alias, targets, reason)
        list_routes_command()
        return not targets or effect.wait(targets, wait_s)


def clear_route_command(alias: str, reason: str) -> None:
    """Remove a route, so that FULGURITE_ALIASES decides what serves the alias."""
    with report_errors("routes"):
        kafka = answering(KafkaSettings())
        routed = read_routes(kafka)
        if alias not in routed:
            raise BadTarget(
                f"no route is set for {alias!r}; routes are set for: "
                f"{', '.join(sorted(routed)) or 'no alias'}"
            )
        write_route(kafka, alias, (), reason)
    list_routes_command()


def _check_alias(alias: str, targets: Sequence[RouteTarget]) -> list[str]:
    """Return the gateway's policies. Raises BadTarget for an alias or upstream that it lacks.

    If the gateway cannot be asked, prints a warning and returns none.
    """
    try:
        models = models_of_gateway()
    except GatewaySilent as error:
        make_console(stderr=True).print(
            "[yellow]routes:[/yellow] "
            f"{plain(f'cannot check whether {alias!r} is an alias: {error}')}"
        )
        return []
    aliases = {model.id: model.policy for model in models}
    check_alias(alias, aliases, upstreams_only=all(target.upstream for target in targets))
    check_upstreams(targets, [model.id for model in models if model.upstream])
    return [policy for policy in aliases.values() if policy is not None]


def list_routes_command() -> None:
    """Print the routes in force, one alias per line."""
    with report_errors("routes"):
        found = read_routes(answering(KafkaSettings()))
    console = make_console()
    for alias, route in sorted(found.items()):
        since = shown(route.event_time)
        targets = ", ".join(_shown(target) for target in route.targets)
        console.print(plain(f"{alias}: {targets}  ({since} UTC, {route.author}: {route.reason})"))
    if not found:
        console.print("no routes: every alias is served by the newest version of its policy")


def _shown(target: RouteTarget) -> str:
    newest = " (newest)" if target.version is None and target.upstream is None else ""
    local = ", other shares in some contexts" if target.cell_weights else ""
    return f"{name_variant(target)}{newest}={target.weight:g}{local}"
