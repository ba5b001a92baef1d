"""Rewards: is the reward function right? Distributions, errors, and where rewards disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

from services.console.pages.blocks import (
    Axis,
    Block,
    Chart,
    Column,
    Columns,
    Filters,
    Heading,
    Notice,
    Series,
    Table,
)
from services.console.pages.formats import ago, cell, fixed, number, share
from services.console.pages.reading import Asked, Row
from services.console.pages.rollout_links import rollout_cell
from services.console.pages.view import View
from services.console.pages.window import choice_field, since, window, window_field

BINS = 20
_CHARTS = 6
"""Rewards whose distribution is drawn, the most frequent."""
_NAMES = 8
"""Rewards that are compared with one another."""
_ROWS = 20

_CHOSEN = """
WITH chosen AS MATERIALIZED (
    SELECT reward.*, rollout.run_id, rollout.mode, rollout.version
    FROM counted_rewards AS reward JOIN rollouts AS rollout USING (rollout_id)
    WHERE reward.event_time >= $1 AND ($2 IS NULL OR rollout.mode = $2)
        AND ($3 IS NULL OR rollout.run_id = $3)
)
"""

_NAMED = (
    _CHOSEN
    + f"""
, named AS (
    SELECT name, count(*) AS given, count(value) AS valued, avg(value) AS mean,
        stddev_pop(value) AS deviation, min(value) AS low, max(value) AS high,
        count(*) FILTER (value IS NULL) AS failed, count(DISTINCT source) AS sources,
        max(event_time) AS last_at
    FROM chosen GROUP BY name
), binned AS (
    SELECT name, CASE WHEN high > low
            THEN least({BINS - 1}, floor((value - low) / (high - low) * {BINS}))::INTEGER ELSE 0 END
            AS bin, count(*) AS rewards
    FROM chosen JOIN named USING (name) WHERE value IS NOT NULL GROUP BY name, bin
), bins AS (
    SELECT name, map_from_entries(list((bin, rewards) ORDER BY bin)) AS bins
    FROM binned GROUP BY name
)
SELECT * FROM named LEFT JOIN bins USING (name) ORDER BY given DESC, name
"""
)
"""Each name in numbers, with the number of its rewards in each bin between its bounds."""

_ERRORS = (
    _CHOSEN
    + f"""
SELECT name, coalesce(error, 'no value') AS error, any_value(source) AS source, count(*) AS times,
    max(event_time) AS last_at, arg_max(rollout_id, event_time) AS rollout_id
FROM chosen WHERE value IS NULL GROUP BY name, error ORDER BY times DESC LIMIT {_ROWS}
"""
)

_PAIRS = (
    _CHOSEN
    + """
, summed AS (
    SELECT rollout_id, name, sum(value) AS value FROM chosen WHERE value IS NOT NULL
    GROUP BY rollout_id, name
)
SELECT a.name AS first, b.name AS second, count(*) AS rollouts, corr(a.value, b.value) AS agreement,
    avg(abs(a.value - b.value)) AS difference
FROM summed AS a JOIN summed AS b USING (rollout_id)
WHERE a.name < b.name AND list_contains($4, a.name) AND list_contains($4, b.name)
GROUP BY first, second ORDER BY agreement NULLS LAST, first, second
"""
)

_APART = (
    _CHOSEN
    + f"""
, summed AS (
    SELECT rollout_id, name, sum(value) AS value FROM chosen WHERE value IS NOT NULL
    GROUP BY rollout_id, name
)
SELECT rollout_id, a.value AS first, b.value AS second, rollout.answer, rollout.version
FROM summed AS a JOIN summed AS b USING (rollout_id) JOIN rollouts AS rollout USING (rollout_id)
WHERE a.name = $4 AND b.name = $5
ORDER BY abs(a.value - b.value) DESC, rollout_id LIMIT {_ROWS}
"""
)

_RUNS = "SELECT run_id FROM runs ORDER BY last_at DESC LIMIT 50"


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    run, mode = asked.address.get("run"), asked.address.get("mode")
    chosen = (since(asked), mode, run)
    runs = [row["run_id"] for row in asked.rows(_RUNS)]
    named = asked.rows(_NAMED, *chosen)
    filters = Filters(
        (
            window_field(asked),
            choice_field("mode", "Mode", mode, ["train", "val", "live"]),
            choice_field("run", "Run", run, runs),
        ),
        asked.address.kept("since", "mode", "run"),
    )
    if not named:
        return [filters, nothing_rewarded()]
    names = [row["name"] for row in named]
    pair = chosen_pair(asked.address.get("pair"), names)
    return [
        filters,
        names_table(named, asked.now_ms),
        Columns(distributions(named)),
        errors_table(asked.rows(_ERRORS, *chosen), asked.now_ms),
        *(
            disagreement(asked, asked.rows(_PAIRS, *chosen, names[:_NAMES]), pair)
            if len(names) > 1
            else ()
        ),
        *([apart_table(asked.rows(_APART, *chosen, *pair), pair)] if pair is not None else []),
        how_to_try(window(asked)),
    ]


def nothing_rewarded() -> Notice:
    """What to do where there is no reward."""
    return Notice(
        "No reward was given in this window. A reward function or POST /v1/rewards gives them.",
        commands=("fulgurite reward-worker --reward rewards.py:reward",),
    )


def names_table(named: Sequence[Row], now_ms: int) -> Table:
    """Each named reward in numbers."""
    return Table(
        (
            Column("Reward"),
            Column("Given", number=True),
            Column("Failed", number=True, note="Rewards that could not be computed"),
            Column("Mean", number=True),
            Column("Deviation", number=True, note="Standard deviation; 0: it teaches nothing"),
            Column("Lowest", number=True),
            Column("Highest", number=True),
            Column("Sources", number=True, note="Functions, by their content, and REST"),
            Column("Last"),
        ),
        tuple(
            (
                cell(row["name"]),
                cell(row["given"]),
                cell(
                    f"{number(row['failed'])} ({share(row['failed'], row['given'])})",
                    tone="bad" if row["failed"] else "plain",
                ),
                cell(fixed(row["mean"])),
                cell(
                    fixed(row["deviation"]),
                    tone="warning" if row["deviation"] == 0 and row["valued"] > 1 else "plain",
                ),
                cell(fixed(row["low"])),
                cell(fixed(row["high"])),
                cell(row["sources"]),
                cell(ago(row["last_at"], now_ms)),
            )
            for row in named
        ),
        "Named rewards",
    )


def distributions(named: Sequence[Row]) -> tuple[Chart, ...]:
    """A histogram for each of the most frequent rewards."""
    return tuple(
        Chart(
            f"Distribution of {row['name']}",
            Axis("reward", "category"),
            Axis("rollouts or actions", whole=True, low=0),
            (Series("rewards", histogram(row["low"], row["high"], row["bins"]), "bar"),),
            height=220,
        )
        for row in named[:_CHARTS]
        if row["bins"]
    )


def histogram(low: float, high: float, bins: Mapping[int, int]) -> tuple[tuple[str, float], ...]:
    """Name and number of rewards of each bin between the bounds, empty ones too."""
    width = (high - low) / BINS
    if not 0 < width < math.inf:
        return ((fixed(low, 2), float(sum(bins.values()))),)
    # A name is a place on the axis: each bin needs its own.
    places = max(2, math.floor(-math.log10(width)) + 1)
    return tuple((fixed(low + width * one, places), float(bins.get(one, 0))) for one in range(BINS))


def errors_table(errors: Sequence[Row], now_ms: int) -> Table:
    """Why rewards could not be computed."""
    return Table(
        (
            Column("Reward"),
            Column("Error"),
            Column("Times", number=True),
            Column("Source"),
            Column("Last"),
            Column("Example"),
        ),
        tuple(
            (
                cell(row["name"]),
                cell(row["error"], tone="bad"),
                cell(row["times"]),
                cell(row["source"], most=40),
                cell(ago(row["last_at"], now_ms)),
                rollout_cell(row["rollout_id"]),
            )
            for row in errors
        ),
        "Errors",
        "Every reward has a value.",
    )


def chosen_pair(text: str | None, names: Sequence[str]) -> tuple[str, str] | None:
    """The two rewards that the address compares, as `first|second`."""
    for first, second in combinations(sorted(names), 2):
        if text == f"{first}|{second}":
            return first, second
    return None


def disagreement(
    asked: Asked, pairs: Sequence[Row], pair: tuple[str, str] | None
) -> tuple[Block, ...]:
    """How far two rewards agree on the same rollouts, the least first."""
    table = Table(
        (
            Column("Rewards"),
            Column("Rollouts", number=True, note="With both rewards"),
            Column("Correlation", number=True, note="1: they agree; −1: they contradict"),
            Column("Mean difference", number=True, note="Of their values, without weights"),
        ),
        tuple(
            (
                cell(
                    f"{row['first']} and {row['second']}",
                    asked.address.but(pair=f"{row['first']}|{row['second']}"),
                ),
                cell(row["rollouts"]),
                cell(
                    fixed(row["agreement"], 2),
                    tone="warning" if (row["agreement"] or 0) < 0 else "plain",
                ),
                cell(fixed(row["difference"])),
            )
            for row in pairs
        ),
        empty="No rollout has two rewards.",
    )
    note = "Choose a pair to see where it differs most." if pair is None else ""
    return Heading("Where rewards disagree", note), table


def apart_table(rows: Sequence[Row], pair: tuple[str, str]) -> Table:
    """The rollouts on which two rewards differ most."""
    return Table(
        (
            Column("Rollout"),
            Column(pair[0], number=True),
            Column(pair[1], number=True),
            Column("Version"),
            Column("Last answer"),
        ),
        tuple(
            (
                rollout_cell(row["rollout_id"]),
                cell(fixed(row["first"])),
                cell(fixed(row["second"])),
                cell(row["version"]),
                cell(row["answer"]),
            )
            for row in rows
        ),
        f"Where {pair[0]} and {pair[1]} differ most",
    )


def how_to_try(chosen: str) -> Notice:
    """How to see what another reward function would give."""
    return Notice(
        "Try another function on the recorded rollouts: it says which ranks flip, and writes "
        "nothing.",
        commands=(f"fulgurite try rewards.py:reward --since {chosen}",),
    )


VIEW = View(
    "/rewards",
    "Rewards",
    "Is the reward function right?",
    content,
    key="w",
    section="Training",
)
