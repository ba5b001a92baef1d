"""Defines the commands `fulgurite select`: try shares on the log, or let a selector decide them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from fulgurite.cost.prices import Prices
from fulgurite.enums import Mode
from fulgurite.selection.comparison import RouterComparison, VariantEarnings, compare_routers
from fulgurite.selection.logged import LoggedEpisode, Weights, logged_episode
from fulgurite.selection.variants import name_variant
from services.cli.cost import read_prices
from services.cli.errors import report_errors, show_left_out
from services.cli.options import Archive, ArchiveOnly, Since
from services.cli.output import print_json, print_table
from services.cli.routes import list_routes_command
from services.cli.run_service import serve
from services.cli.selection_log import accept_proposal, read_histories, show_status
from services.common.kafka.codec import make_codec
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.policies.route_targets import parse_targets
from services.common.runtime.extras import how_to_install
from services.common.runtime.terminal import make_console, plain
from services.replay.archive import open_source
from services.replay.errors import BadArgument
from services.replay.groups import read_groups
from services.replay.leaving_out import LeftOut
from services.replay.scoring import Score, scores
from services.replay.windows import parse_window

app = typer.Typer(
    no_args_is_help=True,
    help="Choose between variants of an alias (versions, other models) by what they earn.",
)


@app.callback()
def _select() -> None:
    """Choose between variants of an alias (versions, other models) by what they earn."""


SelectedAlias = Annotated[
    str, typer.Argument(metavar="ALIAS", help="Alias: the model name that agents ask for.")
]


@app.command("start")
def start(
    alias: Annotated[
        str | None,
        typer.Option(
            metavar="ALIAS[,ALIAS...]",
            help="Aliases whose routes name the variants; FULGURITE_SELECTOR_ALIASES if not given.",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="`shadow`: record shares only. `proposal`: record them for `select accept`. "
            "`automatic`: route by them. Default: FULGURITE_SELECTOR_MODE, else shadow.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="`earn`: earn much while learning. `verdict`: find the best variant soon, then "
            "stop. Default: FULGURITE_SELECTOR_OBJECTIVE, else earn.",
        ),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file of prices (docs/how-to/cost.md)."),
    ] = None,
    price_weight: Annotated[
        float | None,
        typer.Option(help="Reward that a unit of the price file's currency costs; default 0."),
    ] = None,
    latency_weight: Annotated[
        float | None,
        typer.Option(help="Reward that a second in the alias's calls costs; default 0."),
    ] = None,
) -> None:
    """Run a selector: learn what each variant of an alias earns, and decide shares, until stopped.

    Options replace the settings FULGURITE_SELECTOR_* of the same name, which also hold warm-up,
    floor and guard rails. A second selector of an alias takes it over, and the first one exits 1.
    Exits 78 if a setting is invalid, 2 if the log cannot be read.

    Example: `fulgurite select start --alias policy --mode shadow`
    """
    with report_errors("select start"):
        run = _load_selector()
    serve(
        "select start",
        run,
        alias=alias,
        mode=mode,
        objective=objective,
        prices=prices,
        price_weight=price_weight,
        latency_weight=latency_weight,
    )


def _load_selector() -> Callable[[Sequence[str]], Coroutine[Any, Any, int]]:
    """Import the selector, whose libraries are an extra. Raises BadArgument without them."""
    try:
        from services.selector.main import run
    except ModuleNotFoundError as error:
        raise BadArgument(
            f"the selector needs {error.name!r}, which is not installed: "
            + how_to_install("cli", "selector")
        ) from error
    return run


@app.command("status")
def status(
    alias: Annotated[str | None, typer.Option(metavar="ALIAS", help="Only this alias.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what selectors decided: what each variant earns, shares in force and decided, verdicts.

    Exits 1 if no selector has run for the alias, 2 if the log cannot be read.

    Example: `fulgurite select status --alias policy`
    """
    with report_errors("select status"):
        histories = read_histories(answering(KafkaSettings()))
        show_status(histories, alias, as_json)


@app.command("accept")
def accept(alias: SelectedAlias) -> None:
    """Route an alias by the last proposal of its selector.

    The selector goes on from there. Exits 1 if there is no proposal, or if it was made for another
    route than the one in force.

    Example: `fulgurite select accept policy`
    """
    with report_errors("select accept"):
        accept_proposal(answering(KafkaSettings()), alias)
    list_routes_command()


@app.command("try")
def try_router(
    alias: Annotated[
        str, typer.Option(metavar="ALIAS", help="Alias: the model name that agents ask for.")
    ],
    shares: Annotated[
        list[str],
        typer.Option(
            metavar="VARIANT=SHARE",
            help="A target of the candidate, as `fulgurite routes set` takes it. Others may "
            "follow it.",
        ),
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VARIANT=SHARE]...", help="The candidate's other targets."),
    ] = None,
    since: Since = "7d",
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file of prices (docs/how-to/cost.md)."),
    ] = None,
    price_weight: Annotated[
        float, typer.Option(min=0, help="Reward that a unit of the price file's currency costs.")
    ] = 0.0,
    latency_weight: Annotated[
        float, typer.Option(min=0, help="Reward that a second in the alias's calls costs.")
    ] = 0.0,
    archive: Archive = None,
    archive_only: ArchiveOnly = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what other shares would have earned on the log's traffic.

    Compares the router that wrote the log with a candidate: what each earns per episode (reward,
    minus weighted price and latency), doubly robust and by inverse propensity, with 95% intervals
    and the effective sample size. Episodes of mode `val` do not count. Exits 1 where the log's
    propensities do not support an estimate, 2 if the log cannot be read.

    Example: `fulgurite select try --alias policy --since 7d --shares policy@1.3=0.5 policy@1.4=0.5`
    """
    with report_errors("select try"):
        candidate = _parse_shares([*shares, *(more or ())])
        if price_weight and prices is None:
            raise BadArgument("--price-weight needs --prices FILE (docs/how-to/cost.md)")
        table = read_prices(prices) if prices is not None else None
        codec, since_ms = make_codec(), parse_window(since)
        source = open_source(KafkaSettings(), codec, archive, archive_only=archive_only)
        left_out = LeftOut()
        scored = left_out.each(read_groups(source, codec, since_ms=since_ms), scores)
        episodes, unrewarded = reduce_episodes(scored, alias, table)
        weights = Weights(price=price_weight, latency=latency_weight)
        found = compare_routers(episodes, candidate, weights)
    show_left_out(left_out.lines)
    if as_json:
        print_json(
            {
                **msgspec.structs.asdict(found),
                "shares": candidate,
                "currency": table and table.currency,
                "unrewarded": unrewarded,
                "left_out": left_out.lines,
            }
        )
    else:
        show(found, candidate, unrewarded, table, make_console())


def reduce_episodes(
    scored: Iterable[Score], alias: str, prices: Prices | None
) -> tuple[list[LoggedEpisode], int]:
    """The alias's rewarded episodes, and how many of its episodes have no reward."""
    found: list[LoggedEpisode] = []
    unrewarded = 0
    for score in scored:
        if score.episode.mode is Mode.val:
            continue
        one = logged_episode(score.episode, alias, score.reward or 0.0, prices)
        if one is not None and score.reward is not None:
            found.append(one)
        unrewarded += one is not None and score.reward is None
    return found, unrewarded


def show(
    found: RouterComparison,
    shares: Mapping[str, float],
    unrewarded: int,
    prices: Prices | None,
    console: Console,
) -> None:
    """Print the variants, both routers, and what is left out."""
    currency = None if prices is None else prices.currency
    table = Table("variant", "episodes", "logged share", "candidate", "reward")
    for title in (currency, "seconds", "earned"):
        if title is not None:
            table.add_column(plain(title))
    for row in found.variants:
        table.add_row(*_cells(row, found.episodes, shares, priced=prices is not None))
    print_table(table)
    console.print(f"earned per episode, logged router:  {found.logged}")
    console.print(f"candidate, doubly robust:           {found.candidate}")
    console.print(f"candidate, inverse propensity:      {found.candidate_by_weighting}")
    console.print(f"candidate minus logged:             {found.difference}")
    console.print(f"effective sample size: {found.effective:.1f} of {found.episodes} episodes")
    for count, reason in (
        (unrewarded, "have no reward (yet)"),
        (found.without_propensity, "have no propensity, or were answered by several variants"),
        (found.without_choice, "were bound to get their variant"),
    ):
        if count:
            console.print(f"{count} episodes are left out: they {reason}")


def _cells(
    row: VariantEarnings, episodes: int, shares: Mapping[str, float], *, priced: bool
) -> list[str]:
    price = "unknown" if row.price is None else f"{row.price:.4f}"
    return [
        plain(row.variant),
        str(row.episodes),
        f"{row.episodes / episodes:.1%}",
        f"{shares.get(row.variant, 0.0):.1%}",
        f"{row.reward:.3f}",
        *([price] if priced else []),
        f"{row.seconds:.2f}",
        f"{row.earned:.3f}",
    ]


def _parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """The share of each variant; they add up to 1. Raises BadTarget."""
    targets = parse_targets(texts)
    total = sum(target.weight for target in targets)
    return {name_variant(target): target.weight / total for target in targets}
