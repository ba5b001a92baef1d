"""Feedback: what do users like? Rewards of live conversations over time and version, the worst
ones, and how to make a task of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.console.pages.blocks import (
    Axis,
    Block,
    Chart,
    Column,
    Columns,
    Figure,
    Figures,
    Filters,
    Notice,
    Series,
    Table,
)
from services.console.pages.formats import ago, cell, fixed, milliseconds, number, share
from services.console.pages.reading import Asked, Row
from services.console.pages.rollout_links import rollout_cell
from services.console.pages.view import View
from services.console.pages.window import choice_field, since, window, window_field

_WORST = 25
_VERSIONS = 30

_LIVE = """
WITH live AS (
    SELECT reward.rollout_id, reward.name, reward.value, reward.event_time, reward.metadata,
        rollout.version, rollout.variant, rollout.answer, rollout.calls, rollout.alias
    FROM counted_rewards AS reward JOIN rollouts AS rollout USING (rollout_id)
    WHERE rollout.mode = 'live' AND NOT reward.fallback AND reward.value IS NOT NULL
        AND reward.event_time >= $1
        AND ($2 IS NULL OR reward.name = $2) AND ($3 IS NULL OR rollout.alias = $3)
)
"""

_TOTALS = (
    _LIVE
    + """
SELECT count(*) FILTER (value > 0) AS up, count(*) FILTER (value <= 0) AS down,
    count(DISTINCT rollout_id) AS conversations, max(event_time) AS last_at
FROM live
"""
)

_HOURS = (
    _LIVE
    + """
SELECT time_bucket(INTERVAL '1 second' * $4::INTEGER, event_time) AS began,
    count(*) FILTER (value > 0) AS up, count(*) FILTER (value <= 0) AS down
FROM live GROUP BY began ORDER BY began
"""
)

_BY_VERSION = (
    _LIVE
    + f"""
SELECT coalesce(version, variant, 'unknown') AS version, count(*) AS given,
    count(*) FILTER (value > 0) AS up, avg(value) AS mean,
    stddev_samp(value) / sqrt(count(*)) AS error, min(event_time) AS first_at
FROM live GROUP BY 1 ORDER BY first_at DESC LIMIT {_VERSIONS}
"""
)

_BAD = (
    _LIVE
    + f"""
SELECT rollout_id, sum(value) AS value, max(event_time) AS last_at, any_value(version) AS version,
    any_value(answer) AS answer, any_value(calls) AS calls,
    any_value(metadata) FILTER (metadata IS NOT NULL) AS metadata
FROM live GROUP BY rollout_id ORDER BY value, last_at DESC, rollout_id LIMIT {_WORST}
"""
)

_CONVERSATIONS = """
SELECT count(*) AS n FROM rollouts
WHERE mode = 'live' AND ($2 IS NULL OR alias = $2)
    AND (began_at >= $1 OR rollout_id IN (
        SELECT rollout_id FROM rewards WHERE event_time >= $1 AND NOT fallback
    ))
"""

_NAMES = """
SELECT DISTINCT reward.name FROM rewards AS reward JOIN rollouts AS rollout USING (rollout_id)
WHERE rollout.mode = 'live' AND NOT reward.fallback ORDER BY reward.name LIMIT 50
"""

_ALIASES = (
    "SELECT DISTINCT alias FROM rollouts WHERE mode = 'live' AND alias IS NOT NULL ORDER BY 1"
)

_BUCKETS = {"1h": 60, "24h": 3600, "7d": 6 * 3600, "all": 24 * 3600}
"""Seconds of a bar, by the window."""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    name, alias = asked.address.get("name"), asked.address.get("alias")
    start = since(asked)
    chosen = (start, name, alias)
    filters = Filters(
        (
            window_field(asked),
            choice_field("name", "Reward", name, [row["name"] for row in asked.rows(_NAMES)]),
            choice_field("alias", "Alias", alias, [row["alias"] for row in asked.rows(_ALIASES)]),
        ),
        asked.address.kept("since", "name", "alias"),
    )
    totals = asked.row(_TOTALS, *chosen)
    conversations: int = asked.row(_CONVERSATIONS, start, alias).get("n", 0)
    if not totals.get("conversations"):
        return [filters, nothing_given(conversations)]
    return [
        filters,
        *pinned(asked.address.get("pin")),
        figures(totals, conversations, asked.now_ms),
        Columns(
            (
                over_time(asked.rows(_HOURS, *chosen, _BUCKETS[window(asked)])),
                by_version(asked.rows(_BY_VERSION, *chosen)),
            )
        ),
        worst_table(asked, asked.rows(_BAD, *chosen)),
    ]


def nothing_given(conversations: int) -> Notice:
    """What to do where no user said anything."""
    return Notice(
        f"{number(conversations)} live conversations, and no feedback on them. Send a thumb with "
        "the id of a completion: POST /v1/rewards.",
        commands=(
            'curl $FULGURITE_GATEWAY_URL/v1/rewards -H "Authorization: Bearer $OPENAI_API_KEY" '
            "-H 'Content-Type: application/json' "
            '-d \'{"completion_id": "chatcmpl-…", "name": "thumb", "value": 1}\'',
        ),
    )


def figures(totals: Row, conversations: int, now_ms: int) -> Figures:
    """The numbers of the window."""
    up, down = totals["up"], totals["down"]
    return Figures(
        (
            Figure("Good", number(up), "feedback above 0", "good"),
            Figure("Bad", number(down), "feedback of 0 or less", "bad" if down else "plain"),
            Figure("Share of good", share(up, up + down)),
            Figure(
                "Conversations with feedback",
                share(totals["conversations"], conversations),
                f"{number(totals['conversations'])} of {number(conversations)}",
            ),
            Figure("Last feedback", ago(totals["last_at"], now_ms)),
        )
    )


def over_time(rows: Sequence[Row]) -> Chart:
    """Good and bad feedback over time."""

    def points(name: str) -> tuple[tuple[float, float | None], ...]:
        return tuple((float(milliseconds(row["began"]) or 0), row[name]) for row in rows)

    return Chart(
        "Feedback over time",
        Axis("time (UTC)", "time"),
        Axis("rewards", low=0, whole=True),
        (
            Series("good", points("up"), "bar", stack="feedback"),
            Series("bad", points("down"), "bar", stack="feedback"),
        ),
    )


def by_version(rows: Sequence[Row]) -> Chart:
    """Mean feedback of each version, the oldest first, with its 95% interval."""
    ordered = list(reversed(rows))
    return Chart(
        "Mean feedback by version",
        Axis("version", "category"),
        Axis("reward"),
        (
            Series(
                "mean",
                tuple((row["version"], row["mean"]) for row in ordered),
                band=tuple(
                    (
                        row["version"],
                        row["mean"] - 1.96 * (row["error"] or 0.0),
                        row["mean"] + 1.96 * (row["error"] or 0.0),
                    )
                    for row in ordered
                ),
            ),
        ),
        note="The band is the 95% interval.",
    )


def worst_table(asked: Asked, rows: Sequence[Row]) -> Table:
    """The conversations with the worst feedback."""
    return Table(
        (
            Column("Conversation"),
            Column("Feedback", number=True, note="Sum of its rewards"),
            Column("Version"),
            Column("Calls", number=True),
            Column("Last answer"),
            Column("What was said with it", note="Metadata of the reward"),
            Column("When"),
            Column("Task"),
        ),
        tuple(
            (
                rollout_cell(row["rollout_id"]),
                cell(fixed(row["value"], 2), tone="bad" if row["value"] <= 0 else "plain"),
                cell(row["version"]),
                cell(row["calls"]),
                cell(row["answer"]),
                cell(row["metadata"], most=60),
                cell(ago(row["last_at"], asked.now_ms)),
                cell("make this a task", asked.address.but(pin=row["rollout_id"])),
            )
            for row in rows
        ),
        "Worst conversations",
    )


def pinned(rollout_id: str | None) -> list[Notice]:
    """How to make a task of a conversation."""
    if rollout_id is None or not rollout_id.replace("_", "").isalnum():
        return []
    return [
        Notice(
            "This appends the conversation's first messages to a file of held-out tasks, which "
            "`fulgurite eval` asks again. Give the right answer as the reference.",
            commands=(f"fulgurite pin {rollout_id} --tasks held-out.jsonl --reference 'ANSWER'",),
        )
    ]


VIEW = View(
    "/feedback",
    "Feedback",
    "What do users like?",
    content,
    key="b",
    section="Behaviour",
)
