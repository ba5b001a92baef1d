"""Implements `fulgurite select status` and `accept`: what selectors decided, and applying it."""

from __future__ import annotations

import getpass
from collections.abc import Mapping

import msgspec
from rich.console import Console
from rich.table import Table

from fulgurite.enums import SelectionMode
from fulgurite.events import PolicyRoute, RouteTarget, SelectionDecision
from fulgurite.selection.deciding import ANYWHERE
from fulgurite.selection.history import SelectionHistory, route_of
from fulgurite.selection.variants import name_variant
from fulgurite.topics import POLICY_ROUTES, SELECTION_DECISIONS
from services.cli.output import print_json, print_table
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import BadArgument
from services.replay.windows import shown


def read_histories(kafka: KafkaSettings) -> dict[str, SelectionHistory]:
    """Read what selectors go on from, by alias. Raises LogUnavailable."""
    found: dict[str, SelectionHistory] = {}
    for topic in (POLICY_ROUTES, SELECTION_DECISIONS):
        for record in read_all(kafka, topic, make_codec()):
            event = record.event
            if isinstance(event, PolicyRoute | SelectionDecision):
                found.setdefault(event.alias, SelectionHistory(event.alias)).apply(event)
    return found


def show_status(
    histories: Mapping[str, SelectionHistory], alias: str | None, as_json: bool
) -> None:
    """Print what selectors decided. Raises BadArgument for an alias without a selector."""
    selected = {name: one for name, one in histories.items() if one.epochs.holder is not None}
    if alias is not None:
        selected = {alias: history_of(selected, alias)}
    if as_json:
        print_json({name: _as_json(one) for name, one in sorted(selected.items())})
        return
    console = make_console()
    for name, history in sorted(selected.items()):
        _show(name, history, console)
    if not selected:
        console.print("no selector has run: `fulgurite select start --alias ALIAS` starts one")


def history_of(histories: Mapping[str, SelectionHistory], alias: str) -> SelectionHistory:
    """The history of an alias. Raises BadArgument."""
    if alias not in histories or histories[alias].epochs.holder is None:
        known = sorted(name for name, one in histories.items() if one.epochs.holder is not None)
        raise BadArgument(
            f"no selector has run for the alias {alias!r}; selectors have run for: "
            f"{', '.join(known) or 'no alias'}"
        )
    return histories[alias]


def accept_proposal(kafka: KafkaSettings, alias: str) -> PolicyRoute:
    """Write the last proposal to `policy.routes`. Raises BadArgument, LogUnavailable."""
    history = history_of(read_histories(kafka), alias)
    proposal, route = history.shares(), history.route
    if proposal is None or route is None or proposal.mode is not SelectionMode.proposal:
        raise BadArgument(
            f"there is no proposal for the alias {alias!r} and its route: a selector in mode "
            "`proposal` writes one once it has seen enough episodes"
        )
    if proposal.replaces != route.event_id:
        raise BadArgument(
            f"the last proposal for {alias!r} was made for another route than the one in force "
            f"(since {shown(route.event_time)} UTC): wait for the next one"
        )
    if proposal.targets == route.targets:
        raise BadArgument(
            f"the last proposal for {alias!r} is the route in force: nothing to accept"
        )
    event = route_of(proposal, getpass.getuser(), route.targets)
    producer = EventProducer(kafka, make_codec(), "fulgurite-cli")
    try:
        producer.publish_sync(POLICY_ROUTES, alias, event)
    finally:
        producer.close()
    return event


def _show(alias: str, history: SelectionHistory, console: Console) -> None:
    last, route, verdict = history.shares(), history.route, history.verdict()
    console.print(
        plain(f"{alias}: epoch {history.epochs.epoch}, held by selector {history.epochs.holder}")
    )
    if route is None or not route.targets:
        console.print(
            "  it has no route, so there is nothing to choose between: `fulgurite routes set`"
        )
        return
    if history.base() is None:
        console.print(plain(f"  {route.author} holds it, and the selector waits: {route.reason}"))
        return
    if last is None:
        console.print("  nothing is decided yet since the last route was set by hand")
        return
    console.print(plain(f"  {last.mode}, decided {shown(last.event_time)} UTC: {last.reason}"))
    table = Table("variant", "episodes", "failed", "reward", "price", "seconds", "earned")
    for title in ("in force", "decided"):
        table.add_column(title)
    in_force = _shares(route.targets, ANYWHERE)
    decided = _shares(last.targets, ANYWHERE)
    for one in last.variants:
        table.add_row(
            plain(one.variant),
            str(one.episodes),
            str(one.failed),
            *(_number(value) for value in (one.reward, one.price, one.seconds, one.earned)),
            f"{in_force.get(one.variant, 0.0):.1%}",
            f"{decided.get(one.variant, 0.0):.1%}",
        )
    print_table(table)
    for cell in sorted({cell for target in last.targets for cell in target.cell_weights}):
        shares = _shares(last.targets, cell).items()
        text = ", ".join(f"{name}={share:.1%}" for name, share in shares)
        console.print(plain(f"  context {cell}: {text}"))
    for one in last.differences:
        console.print(
            plain(
                f"  {one.better} minus {one.worse}: {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}] "
                f"({one.groups} groups)"
            )
        )
    if verdict is not None:
        console.print(plain(f"  verdict, {shown(verdict.event_time)} UTC: {verdict.reason}"))


def _shares(targets: tuple[RouteTarget, ...], cell: str) -> dict[str, float]:
    weights = {name_variant(one): one.cell_weights.get(cell, one.weight) for one in targets}
    total = sum(weights.values()) or 1.0
    return {name: weight / total for name, weight in weights.items()}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _as_json(history: SelectionHistory) -> dict[str, object]:
    return {
        "epoch": history.epochs.epoch,
        "selector": history.epochs.holder,
        "route": _built(history.route),
        "decision": _built(history.shares()),
        "verdict": _built(history.verdict()),
    }


def _built(event: PolicyRoute | SelectionDecision | None) -> object:
    return None if event is None else msgspec.to_builtins(event)
