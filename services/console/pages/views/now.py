"""Now: is everything alive, what is served where, and is anything lost?"""

from __future__ import annotations

from collections.abc import Sequence

from services.console.pages.address import link
from services.console.pages.blocks import (
    Axis,
    Block,
    Chart,
    Column,
    Columns,
    Figure,
    Figures,
    Link,
    Notice,
    Series,
    Table,
    Tone,
)
from services.console.pages.formats import ago, cell, count, milliseconds, number, seconds, share
from services.console.pages.reading import Asked, Row
from services.console.pages.variants import shown_variant
from services.console.pages.view import View
from services.console.pages.window import minutes_ago

_SPAN_MIN = 60
"""Minutes that the page looks back."""

_TOTALS = """
SELECT
    (SELECT count(*) FROM calls WHERE started_at >= $1) AS calls,
    (SELECT count(*) FROM calls WHERE started_at >= $1 AND outcome <> 'success') AS failed_calls,
    (SELECT median(milliseconds) / 1000 FROM calls WHERE started_at >= $1) AS seconds,
    (SELECT max(finished_at) FROM calls) AS last_call,
    (SELECT count(*) FROM rollouts WHERE outcome = 'open') AS open_rollouts,
    (SELECT count(*) FROM rollouts WHERE ended_at >= $1) AS ended_rollouts,
    (SELECT max(published_at) FROM versions) AS last_version,
    (SELECT count(*) FROM dead_letters WHERE event_time >= $1) AS dead_letters,
    (SELECT count(*) FROM rewards WHERE event_time >= $1 AND value IS NULL) AS failed_rewards,
    (SELECT sum(to_offset - from_offset)::BIGINT FROM gaps) AS lost_records,
    (SELECT count(*) FROM unreadable) AS unreadable,
    (SELECT sum(records)::BIGINT FROM lag) AS behind,
    (SELECT count(*) FROM positions WHERE next_offset > 0) AS topics_with_records
"""

_MINUTES = """
SELECT date_trunc('minute', started_at) AS minute,
    count(*) FILTER (outcome = 'success') AS good,
    count(*) FILTER (outcome <> 'success') AS failed,
    quantile_cont(milliseconds, 0.5) / 1000 AS middle,
    quantile_cont(milliseconds, 0.95) / 1000 AS slow
FROM calls WHERE started_at >= $1 GROUP BY minute ORDER BY minute
"""

_SERVING = """
SELECT serving.*, coalesce(newest.version, serving.policy || '@0.0') AS newest
FROM serving
LEFT JOIN (
    SELECT policy, arg_max(version, (epoch, step)) AS version FROM versions GROUP BY policy
) AS newest USING (policy)
ORDER BY backend, policy
"""

_ROUTES = "SELECT * FROM current_routes ORDER BY alias, share DESC"

_LEARNERS = """
SELECT policy, arg_max(learner_id, (epoch, "offset")) AS learner_id, max(epoch) AS epoch,
    arg_max(step, "offset") AS step, max(event_time) AS last_at
FROM updates WHERE counts GROUP BY policy ORDER BY policy
"""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    since = minutes_ago(asked, _SPAN_MIN)
    totals = asked.row(_TOTALS, since)
    if not totals.get("topics_with_records"):
        return [nothing_recorded()]
    backends = asked.rows(_SERVING)
    return [
        *alarms(totals, backends),
        figures(totals, asked.now_ms),
        Columns(charts(asked.rows(_MINUTES, since))),
        serving(backends, asked.now_ms),
        learners(asked.rows(_LEARNERS), asked.now_ms),
        routes(asked.rows(_ROUTES), asked.now_ms),
    ]


def nothing_recorded() -> Notice:
    """What to do where the log is empty."""
    return Notice(
        "Nothing is recorded yet. Point an agent at the gateway: its first call appears here "
        "within two seconds.",
        commands=('eval "$(fulgurite env)"', "python your_agent.py"),
    )


def alarms(totals: Row, backends: Sequence[Row]) -> list[Notice]:
    """What somebody should look at."""
    found = [
        Notice(
            f"{row['backend']} could not load a version of {row['policy']}: "
            f"{row['last_error'] or 'no reason given'}",
            "bad",
        )
        for row in backends
        if row["last_outcome"] == "failed"
    ]
    if totals["lost_records"]:
        found.append(
            Notice(
                f"{count(totals['lost_records'], 'record')} left the log before the console read "
                "them. Its counts are too low; the log's own accounting is `fulgurite ledger`.",
                "warning",
            )
        )
    if totals["unreadable"]:
        found.append(
            Notice(f"{count(totals['unreadable'], 'record')} could not be decoded.", "bad")
        )
    if totals["dead_letters"]:
        found.append(
            Notice(
                f"{count(totals['dead_letters'], 'event')} could not be processed in the last "
                "hour.",
                "bad",
                link=Link("Dead letters", "/dead-letters"),
            )
        )
    if totals["failed_rewards"]:
        found.append(
            Notice(
                f"{count(totals['failed_rewards'], 'reward')} could not be computed in the last "
                "hour.",
                "warning",
                link=Link("Rewards", "/rewards"),
            )
        )
    return found


def figures(totals: Row, now: int) -> Figures:
    """The numbers of the last hour."""
    calls, failed = totals["calls"], totals["failed_calls"]
    behind = totals["behind"] or 0
    return Figures(
        (
            Figure(
                "Calls, last hour",
                number(calls),
                f"last {ago(totals['last_call'], now)}",
            ),
            Figure(
                "Calls that failed",
                share(failed, calls) if calls else number(0),
                count(failed, "call"),
                _tone(failed, calls),
            ),
            Figure("Median call", seconds(totals["seconds"]), "from request to last byte"),
            Figure(
                "Open rollouts",
                number(totals["open_rollouts"]),
                f"{number(totals['ended_rollouts'])} ended, last hour",
                address=link("/rollouts", outcome="open"),
            ),
            Figure(
                "Newest version", ago(totals["last_version"], now), "published", address="/runs"
            ),
            Figure(
                "Console behind the log",
                count(behind, "record"),
                "read by this page",
                "good" if behind == 0 else "plain",
            ),
        )
    )


def _tone(failed: int, calls: int) -> Tone:
    if not failed:
        return "good"
    return "bad" if failed > calls / 10 else "warning"


def charts(minutes: Sequence[Row]) -> tuple[Chart, ...]:
    """Calls and their time by minute."""
    x = Axis("time (UTC)", "time")
    times = [float(milliseconds(row["minute"]) or 0) for row in minutes]

    def points(name: str) -> tuple[tuple[float, float | None], ...]:
        return tuple(zip(times, (row[name] for row in minutes), strict=True))

    return (
        Chart(
            "Calls by minute",
            x,
            Axis("calls", whole=True, low=0),
            (
                Series("successful", points("good"), "bar", stack="calls"),
                Series("failed", points("failed"), "bar", stack="calls"),
            ),
        ),
        Chart(
            "Time of a call",
            x,
            Axis("seconds", low=0),
            (
                Series("median", points("middle")),
                Series("95th percentile", points("slow"), dashed=True),
            ),
        ),
    )


def serving(backends: Sequence[Row], now: int) -> Table:
    """What each backend serves."""
    return Table(
        (
            Column("Backend"),
            Column("Policy"),
            Column("Serves"),
            Column("Since"),
            Column("Newest version"),
            Column("State"),
        ),
        tuple(
            (
                cell(row["backend"]),
                cell(row["policy"]),
                cell(row["version"], _version(row["version"])),
                cell(ago(row["since"], now)),
                cell(row["newest"], _version(row["newest"])),
                cell("load failed", tone="bad")
                if row["last_outcome"] == "failed"
                else cell("newest", tone="good")
                if row["version"] == row["newest"]
                else cell("another version"),
            )
            for row in backends
        ),
        "What is served where",
        "No backend has reported a version yet: the first one comes with the first version that "
        "a learner publishes.",
    )


def _version(version: str | None) -> str | None:
    return link("/step", version=version) if version else None


def learners(rows: Sequence[Row], now: int) -> Table:
    """What learns."""
    return Table(
        (
            Column("Policy"),
            Column("Learner"),
            Column("Epoch", number=True, note="A learner that starts takes the next epoch"),
            Column("Step", number=True),
            Column("Last event"),
        ),
        tuple(
            (
                cell(row["policy"], link("/step", policy=row["policy"])),
                cell(row["learner_id"]),
                cell(row["epoch"]),
                cell(row["step"]),
                cell(ago(row["last_at"], now)),
            )
            for row in rows
        ),
        "Learners",
        "No learner has started yet.",
    )


def routes(rows: Sequence[Row], now: int) -> Table:
    """Which routes somebody set."""
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
                cell(shown_variant(row), _version(row["version"])),
                cell(share(row["share"])),
                cell(ago(row["since"], now)),
                cell(row["author"]),
                cell(row["reason"]),
            )
            for row in rows
        ),
        "Routes",
        "No route is set: the newest version of its policy serves each alias.",
    )


VIEW = View(
    "/",
    "Now",
    "Is everything alive, what is served where, and is anything lost?",
    content,
    key="n",
    section="Training",
)
