"""Routes: what serves each alias, with which share, and which variant earns most?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.console.pages.address import link
from services.console.pages.blocks import (
    Axis,
    Block,
    Button,
    Buttons,
    Chart,
    Column,
    Columns,
    Field,
    Filters,
    Notice,
    Series,
    Table,
)
from services.console.pages.formats import ago, cell, clock, fixed, milliseconds, number, share
from services.console.pages.reading import Asked, Row
from services.console.pages.variants import shown_variant, variant_of
from services.console.pages.view import View
from services.console.pages.window import choice_field, since, window, window_field

_HISTORY = 50
_BUCKETS = {"1h": 60, "24h": 1800, "7d": 6 * 3600, "all": 24 * 3600}
_VARIANTS = 8

_CURRENT = """
SELECT * FROM current_routes WHERE $1 IS NULL OR alias = $1 ORDER BY alias, share DESC
"""

_EARNED = """
SELECT alias, variant, count(*) AS rollouts, count(reward) AS scored, avg(reward) AS mean,
    stddev_samp(reward) / sqrt(count(reward)) AS error, count(failure) AS failed,
    sum(count(*)) OVER (PARTITION BY alias) AS of_alias, max(began_at) AS last_at
FROM rollouts
WHERE variant IS NOT NULL AND began_at >= $1 AND ($2 IS NULL OR alias = $2)
GROUP BY alias, variant ORDER BY alias, mean DESC NULLS LAST, variant
"""

_TRAFFIC = """
SELECT time_bucket(INTERVAL '1 second' * $3::INTEGER, began_at) AS began, alias, variant,
    count(*) AS rollouts
FROM rollouts WHERE variant IS NOT NULL AND began_at >= $1 AND ($2 IS NULL OR alias = $2)
GROUP BY began, alias, variant ORDER BY began
"""

_WRITTEN = f"""
SELECT * FROM routes WHERE $1 IS NULL OR alias = $1 ORDER BY "offset" DESC LIMIT {_HISTORY}
"""

_ALIASES = """
SELECT alias FROM routes UNION SELECT alias FROM rollouts WHERE variant IS NOT NULL ORDER BY alias
"""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    alias = asked.address.get("alias")
    aliases = [row["alias"] for row in asked.rows(_ALIASES) if row["alias"]]
    if not aliases:
        return [nothing_routed()]
    start = since(asked)
    written = asked.rows(_WRITTEN, alias)
    current = asked.rows(_CURRENT, alias)
    return [
        Filters(
            (window_field(asked), choice_field("alias", "Alias", alias, aliases)),
            asked.address.kept("since", "alias"),
        ),
        current_table(current, asked.now_ms),
        *([buttons(sorted({row["alias"] for row in written}))] if written else []),
        Columns(traffic(asked.rows(_TRAFFIC, start, alias, _BUCKETS[window(asked)]))),
        earned_table(asked.rows(_EARNED, start, alias)),
        history_table(written),
    ]


def nothing_routed() -> Notice:
    """What to do where nothing was ever routed."""
    return Notice(
        "No route was set, and no call was recorded: the newest version of its policy serves each "
        "alias. A route divides an alias between variants.",
        commands=("fulgurite routes set policy policy@1.3=0.9 policy@1.4=0.1",),
    )


def current_table(current: Sequence[Row], now_ms: int) -> Table:
    """The routes in force."""
    return Table(
        (
            Column("Alias"),
            Column("Variant"),
            Column("Share", number=True),
            Column("Since"),
            Column("By"),
            Column("Reason"),
        ),
        tuple(
            (
                cell(row["alias"]),
                cell(
                    shown_variant(row),
                    link("/versions", version=row["version"]) if row["version"] else None,
                ),
                cell(share(row["share"])),
                cell(ago(row["since"], now_ms)),
                cell(row["author"]),
                cell(row["reason"]),
            )
            for row in current
        ),
        "Routes in force",
        "No route is in force: the newest version of its policy serves each alias.",
    )


def buttons(aliases: Sequence[str]) -> Buttons:
    """What may be done with a route."""
    fields = (
        Field("alias", "Alias", aliases[0], tuple((one, one) for one in aliases)),
        Field("reason", "Reason, for people who read the route later"),
    )
    return Buttons(
        (
            Button(
                "Roll back",
                "roll_back",
                "Return the alias to what served it before its last route?",
                (),
                fields,
                "warning",
            ),
        )
    )


def traffic(rows: Sequence[Row]) -> tuple[Chart, ...]:
    """Which variants got the rollouts of each alias, over time."""
    charts: list[Chart] = []
    for alias in dict.fromkeys(row["alias"] for row in rows):
        own = [row for row in rows if row["alias"] == alias]
        totals: dict[str, int] = {}
        for row in own:
            totals[row["variant"]] = totals.get(row["variant"], 0) + row["rollouts"]
        names = sorted(totals, key=lambda name: (-totals[name], name))[:_VARIANTS]
        times = sorted({row["began"] for row in own})
        counts = {(row["began"], row["variant"]): row["rollouts"] for row in own}
        charts.append(
            Chart(
                f"Rollouts of {alias} by variant",
                Axis("time (UTC)", "time"),
                Axis("rollouts", low=0, whole=True),
                tuple(
                    Series(
                        name,
                        tuple(
                            (float(milliseconds(at) or 0), float(counts.get((at, name), 0)))
                            for at in times
                        ),
                        "bar",
                        stack="rollouts",
                    )
                    for name in names
                ),
            )
        )
    return tuple(charts)


def earned_table(rows: Sequence[Row]) -> Table:
    """What each variant earned, and how far it is from the best of its alias."""
    best: dict[str, float] = {}
    for row in rows:
        if row["mean"] is not None:
            best[row["alias"]] = max(best.get(row["alias"], row["mean"]), row["mean"])
    return Table(
        (
            Column("Alias"),
            Column("Variant"),
            Column("Rollouts", number=True),
            Column("Share", number=True, note="Of the alias's rollouts in this window"),
            Column("Mean reward", number=True, note="With its 95% interval"),
            Column("Below the best", number=True, note="Regret for each rollout"),
            Column("Failed", number=True),
        ),
        tuple(
            (
                cell(row["alias"]),
                cell(row["variant"]),
                cell(row["rollouts"]),
                cell(share(row["rollouts"], float(row["of_alias"]))),
                cell(_with_interval(row)),
                cell(
                    fixed(best[row["alias"]] - row["mean"]) if row["mean"] is not None else None,
                    tone="good" if row["mean"] == best.get(row["alias"]) else "plain",
                ),
                cell(share(row["failed"], row["rollouts"])),
            )
            for row in rows
        ),
        "What variants earned",
        "No rollout of this window has a variant.",
    )


def _with_interval(row: Row) -> str:
    if row["mean"] is None:
        return "–"
    reach = f" ± {fixed(1.96 * row['error'])}" if row["error"] is not None else ""
    return f"{fixed(row['mean'])}{reach} (n = {number(row['scored'])})"


def changes(written: Sequence[Row]) -> list[tuple[Row, str]]:
    """Each route, the newest first, with what it changed."""
    found: list[tuple[Row, str]] = []
    for at, row in enumerate(written):
        before = next((one for one in written[at + 1 :] if one["alias"] == row["alias"]), None)
        found.append((row, _change(_shares(before), _shares(row))))
    return found


def _shares(route: Row | None) -> dict[str, float]:
    targets: list[Mapping[str, Any]] = route["targets"] if route is not None else []
    total = sum(target["weight"] for target in targets)
    return {variant_of(target): target["weight"] / total for target in targets if total}


def _change(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    if not after:
        return "route removed"
    parts = [
        f"{name}: {share(before[name])} → {share(after[name])}"
        if name in before and name in after
        else f"{name}: new, {share(after[name])}"
        if name in after
        else f"{name}: removed"
        for name in dict.fromkeys([*after, *before])
        if before.get(name) != after.get(name)
    ]
    return "; ".join(parts) or "the same shares"


def history_table(written: Sequence[Row]) -> Table:
    """Every route that was written."""
    return Table(
        (Column("When"), Column("Alias"), Column("What changed"), Column("By"), Column("Reason")),
        tuple(
            (
                cell(clock(row["event_time"])),
                cell(row["alias"]),
                cell(change, most=200),
                cell(row["author"]),
                cell(row["reason"]),
            )
            for row, change in changes(written)
        ),
        "History",
        "No route was ever set.",
    )


VIEW = View(
    "/routes",
    "Routes",
    "What serves each alias, and which variant earns most?",
    content,
    key="u",
    section="Serving",
)
