"""Defines the command `fulgurite try`: compares rewards or weights on recorded episodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from services.cli.errors import report_errors, show_failures, show_left_out
from services.cli.options import (
    Archive,
    ArchiveOnly,
    Concurrency,
    MemoryLimit,
    RewardName,
    Since,
    Timeout,
    Weights,
)
from services.cli.output import print_json
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.archive import open_source
from services.replay.errors import BadArgument
from services.replay.groups import Group, read_groups
from services.replay.leaving_out import LeftOut
from services.replay.rescoring import Rescorer, rescored
from services.replay.scoring import Comparison, Score, Spread, compare, scores
from services.replay.windows import parse_window
from services.rewards.plugins import RewardPlugin
from services.rewards.sandbox import Limits
from services.runner.options import REWARD_NAME, read_rewards, read_weights


def try_reward(
    functions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]FILE.py:FN|builtin:NAME",
            help="Reward functions to compare with the log's rewards.",
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE.py:FN|builtin:NAME",
            help="Another way to name a reward function, as in other commands. Repeatable.",
        ),
    ] = None,
    weight: Weights = None,
    since: Since = "24h",
    name: RewardName = REWARD_NAME,
    flips: Annotated[
        int,
        typer.Option(
            min=0, help="Print at most this many of the rollouts that change rank in their group."
        ),
    ] = 10,
    archive: Archive = None,
    archive_only: ArchiveOnly = False,
    concurrency: Concurrency = 8,
    timeout: Timeout = 30.0,
    memory: MemoryLimit = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare reward functions on recorded episodes with the rewards in the log.

    Shows rewards before and after, rollouts that change rank in their group, and how many groups
    have a training signal. A function replaces the log's rewards of the same name. Writes nothing.
    Exits 1 if a function cannot be loaded, 2 if the log cannot be read, 3 if a function failed for
    an episode.

    Example: `fulgurite try rewards.py:score --since 7d`
    """
    with report_errors("try"):
        asked, weights = (
            read_rewards([*(functions or ()), *(reward or ())], name),
            read_weights(weight or ()),
        )
        if not asked and not weights:
            raise BadArgument(
                "nothing to compare: give FILE.py:FN, builtin:NAME or --weight NAME=W"
            )
        plugins = [RewardPlugin(reference, named) for named, reference in asked.items()]
        limits = Limits(processes=concurrency, timeout_s=timeout, memory_mb=memory)
        codec, since_ms = make_codec(), parse_window(since)
        source = open_source(KafkaSettings(), codec, archive, archive_only=archive_only)
        groups = read_groups(source, codec, since_ms=since_ms)
        left_out = LeftOut()
        with Rescorer(plugins, limits, anew=True) as rescorer:
            found = compare(_pairs(left_out, groups, rescorer, weights))
    show_left_out(left_out.lines)
    if as_json:
        print_json(
            {
                **msgspec.structs.asdict(found),
                "failed": rescorer.failed,
                "why": rescorer.why,
                "left_out": left_out.lines,
            }
        )
    else:
        _show(found, rescorer, flips)
    if rescorer.failed:
        raise typer.Exit(3)


def _pairs(
    left_out: LeftOut, groups: Iterable[Group], rescorer: Rescorer, weights: Mapping[str, float]
) -> Iterator[tuple[Sequence[Score], Sequence[Score]]]:
    for group, episodes, rewards in rescored(left_out.each(groups, _usable), rescorer):
        yield scores(group, episodes), scores(group, episodes, rewards, weights)


def _usable(group: Group) -> tuple[Group]:
    """Return the group; raises if its episodes and rewards cannot be combined."""
    scores(group)
    return (group,)


def _show(found: Comparison, rescorer: Rescorer, flips: int) -> None:
    console = make_console()
    table = Table("", "before", "after")
    for title, value in (
        ("scored episodes", "count"),
        ("mean", "mean"),
        ("deviation", "deviation"),
        ("lowest", "lowest"),
    ):
        table.add_row(title, *(_cell(side, value) for side in (found.before, found.after)))
    for place, title in enumerate(("lower quartile", "median", "upper quartile")):
        table.add_row(
            title,
            *(
                f"{side.quartiles[place]:.4g}" if side else "-"
                for side in (found.before, found.after)
            ),
        )
    table.add_row("highest", *(_cell(side, "highest") for side in (found.before, found.after)))
    table.add_row(
        "groups with signal",
        *(f"{count} of {found.groups}" for count in (found.signal_before, found.signal_after)),
    )
    console.print(table)
    console.print(
        f"{found.episodes} episodes scored; {rescorer.failed} rewards failed, {found.unscored} "
        "have no reward after it"
    )
    show_failures(console, rescorer.why)
    console.print(
        f"{len(found.flips)} rollouts change places with another of their group"
        + (":" if found.flips and flips else "")
    )
    for rollout_id, before, after in found.flips[:flips]:
        console.print(f"  {plain(rollout_id)}  {before:.4g} → {after:.4g}")


def _cell(side: Spread | None, name: str) -> str:
    return "-" if side is None else f"{getattr(side, name):.4g}"
