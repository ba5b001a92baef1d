"""Defines the command `fulgurite cost`: adds up tokens, seconds and money."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fulgurite.avro.codec import Codec
from fulgurite.cost.prices import Money, Prices, parse_prices
from fulgurite.cost.table import By, CostRow, CostSources, CostTable, cost_table
from fulgurite.errors import BadPrices, CodecError
from fulgurite.events import Event
from fulgurite.topics import (
    AGENT_STATUS,
    DEAD_LETTERS,
    LLM_CALLS,
    POLICY_UPDATES,
    TRAINING_LEDGER,
    Topic,
)
from services.cli.errors import report_errors, show_left_out
from services.cli.options import Archive, ArchiveOnly
from services.cli.output import print_json, print_table
from services.common.kafka.codec import make_codec
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.terminal import make_console, plain
from services.replay.archive import open_source
from services.replay.errors import BadArgument
from services.replay.groups import REACH_MS
from services.replay.records import Source
from services.replay.windows import parse_since

_TOPICS = (POLICY_UPDATES, TRAINING_LEDGER, DEAD_LETTERS, AGENT_STATUS, LLM_CALLS)
"""Downstream first, so that a call that is read has its outcome if there was one."""

_UNKNOWN = "unknown"


def cost(
    by: Annotated[
        By, typer.Option(help="What a row is: a `run`, `version`, `alias` or `group`.")
    ] = By.run,
    prices: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TOML file of prices; without it, no money (docs/how-to/cost.md)."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only calls and versions from this time on: an age (90s, 30m, 24h, 7d) or an ISO "
            "time in UTC. Without it, all that the log has.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Print at most this many rows; the sum has all.")
    ] = 20,
    archive: Archive = None,
    archive_only: ArchiveOnly = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every row.")] = False,
) -> None:
    """Add up tokens, learner time and money per run, version, alias or group.

    Tokens are those of prompts (cached or not) and sampled ones; of these, trained, discarded (by
    reason) and still open ones. What the log does not say is printed as unknown. Exits 1 if an
    option or the price file is invalid, 2 if the log cannot be read.

    Example: `fulgurite cost --by version --prices prices.toml`
    """
    with report_errors("cost"):
        table = read_prices(prices) if prices is not None else None
        since_ms, codec, left_out = parse_since(since), make_codec(), list[str]()
        source = open_source(
            KafkaSettings(), codec, archive, archive_only=archive_only, topics=_TOPICS
        )
        found = cost_table(
            read_sources(source, codec, since_ms, left_out), codec.decode, by, table, since_ms or 0
        )
    show_left_out(left_out)
    if as_json:
        print_json(found)
    else:
        show(found, make_console(), limit)


def read_prices(path: Path) -> Prices:
    """Read a price file. Raises BadArgument."""
    try:
        return parse_prices(path.read_text(encoding="utf-8"))
    except (BadPrices, OSError, UnicodeDecodeError) as error:
        raise BadArgument(
            f"the price file {path} cannot be read: {error}. docs/how-to/cost.md has an example."
        ) from error


def read_sources(
    source: Source, codec: Codec, since_ms: int | None, left_out: list[str]
) -> CostSources:
    """The topics that costs are counted from; each is read when it is iterated.

    `left_out` gets the places of records that cannot be decoded.
    """

    def read(topic: Topic, start_ms: int | None = None) -> Iterator[Event]:
        for partition in range(topic.partitions):
            for raw in source.read((topic,), partition, start_ms):
                try:
                    yield codec.decode(raw.value)
                except CodecError as error:
                    left_out.append(f"{raw.topic}[{raw.partition}]@{raw.offset}: {error}")

    # A group that was declared before `since_ms` may have calls after it.
    declared_ms = None if since_ms is None else since_ms - REACH_MS
    return CostSources(
        updates=read(POLICY_UPDATES),
        dead_letters=read(DEAD_LETTERS, since_ms),
        ledger=read(TRAINING_LEDGER, since_ms),
        statuses=read(AGENT_STATUS, declared_ms),
        calls=read(LLM_CALLS, since_ms),
    )


def show(found: CostTable, console: Console, limit: int) -> None:
    """Print the table, its sum, and what is not in it."""
    if not found.rows:
        console.print("The log holds no call and no version in this time.")
        return
    columns = ["calls", "prompt", "cached", "sampled", "trained", "discarded", "open", "learner s"]
    columns += [found.currency] if found.currency is not None else []
    table = Table(show_footer=True)
    table.add_column(found.by.value, footer="sum")
    for title, cell in zip(columns, _cells(found.total), strict=True):
        table.add_column(plain(title), footer=cell, justify="right")
    for row in found.rows[:limit]:
        table.add_row(plain(row.key or f"no {found.by}"), *_cells(row))
    print_table(table)
    if len(found.rows) > limit:
        console.print(f"... and {len(found.rows) - limit} more rows (--json has them all)")
    for line in _notes(found):
        console.print(plain(line))


def _cells(row: CostRow) -> list[str]:
    cells = [
        str(row.calls),
        _shown(row, row.prompt),
        _cached(row),
        _shown(row, row.sampled),
        str(row.trained),
        str(sum(row.discarded.values())),
        str(row.open),
        _UNKNOWN
        if row.updates_of_unknown_seconds and not row.learner_seconds
        else f"{row.learner_seconds:.0f}",
    ]
    return cells + ([] if row.money is None else [_amount(row.money)])


def _shown(row: CostRow, tokens: int) -> str:
    """A sum of tokens, unless it is 0 because no call says its own."""
    is_unknown = not tokens and row.calls and row.calls == row.calls_of_unknown_tokens
    return _UNKNOWN if is_unknown else str(tokens)


def _cached(row: CostRow) -> str:
    """Cached tokens, as far as the calls say how many they were."""
    if not row.maybe_cached:
        return _UNKNOWN if _shown(row, row.prompt) == _UNKNOWN else str(row.cached)
    return _UNKNOWN if not row.cached + row.not_cached else f"{row.cached} + {_UNKNOWN}"


def _amount(money: Money) -> str:
    low, high = f"{money.low:.4f}", f"{money.high:.4f}"
    return low if low == high else f"{low} to {high}"


def _notes(found: CostTable) -> Iterator[str]:
    """What was discarded and why, and what the sums lack."""
    total = found.total
    if total.discarded:
        listed = sorted(total.discarded.items(), key=lambda item: (-item[1], item[0]))
        yield "discarded tokens: " + ", ".join(f"{count} {reason}" for reason, count in listed)
    if total.calls_of_unknown_tokens:
        yield (
            f"{total.calls_of_unknown_tokens} of {total.calls} calls have no usage: some of their "
            "tokens are unknown and not in the sums."
        )
    if total.maybe_cached:
        yield (
            f"Of {total.maybe_cached} prompt tokens it is unknown how many were cached: the "
            "upstream's usage does not say it (docs/how-to/cost.md)."
        )
    if total.actions_of_unknown_tokens:
        yield (
            f"{total.actions_of_unknown_tokens} actions have no token ids: their tokens are not in "
            "trained, discarded or open."
        )
    if total.updates_of_unknown_seconds:
        yield f"{total.updates_of_unknown_seconds} versions do not say what they took in seconds."
    if found.unpriced:
        yield f"not in the price file, and not in the sum of money: {', '.join(found.unpriced)}"
