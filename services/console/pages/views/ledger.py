"""Ledger: does every action have its place?

The console counts from its index; `fulgurite ledger` counts from the log, and is the proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.console.pages.address import link
from services.console.pages.blocks import (
    Axis,
    Block,
    Chart,
    Column,
    Field,
    Figure,
    Figures,
    Filters,
    Notice,
    Series,
    Table,
)
from services.console.pages.formats import ago, cell, count, milliseconds, number, share
from services.console.pages.outcomes import TERMS
from services.console.pages.reading import Asked, Row
from services.console.pages.view import View

_COUNTED = tuple(term for term in TERMS if term != "recorded")

_TERMS = """
SELECT policy, term, sum(actions)::BIGINT AS actions FROM funnel
WHERE term <> 'recorded' GROUP BY policy, term
"""

_RECORDED = """
SELECT reason, sum(actions)::BIGINT AS actions FROM funnel
WHERE term = 'recorded' GROUP BY reason ORDER BY actions DESC
"""

_OPEN = """
SELECT reason, sum(actions)::BIGINT AS actions, min(began_at) AS oldest
FROM funnel LEFT JOIN rollouts USING (rollout_id)
WHERE term = 'open' GROUP BY reason ORDER BY actions DESC
"""

_MINUTES = """
SELECT time_bucket(INTERVAL 1 MINUTE, event_time) AS minute, term, sum(actions)::BIGINT AS actions
FROM ledger WHERE $1 IS NULL OR policy = $1 GROUP BY minute, term ORDER BY minute DESC LIMIT 1000
"""

_ENTRIES = """
SELECT * FROM ledger WHERE ($1 IS NULL OR policy = $1) AND ($2 IS NULL OR term = $2)
ORDER BY event_time DESC, "offset" DESC LIMIT 100
"""

_POLICIES = "SELECT DISTINCT policy FROM ledger ORDER BY policy"


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    terms = asked.rows(_TERMS)
    recorded = asked.rows(_RECORDED)
    if not terms and not recorded:
        return [
            Notice(
                "The ledger is empty: no training action has succeeded yet.",
                commands=("fulgurite ledger",),
            )
        ]
    policy, term = asked.address.get("policy"), asked.address.get("term")
    policies = [str(row["policy"]) for row in asked.rows(_POLICIES)]
    return [
        Notice(
            "These are the console's counts. The log's own proof is this command; it exits with 1 "
            "if an action is missing or counted twice.",
            "quiet",
            ("fulgurite ledger --partitions",),
        ),
        figures(terms, recorded),
        accounts(terms),
        open_actions(asked.rows(_OPEN), asked.now_ms),
        Filters(
            (
                Field("policy", "Policy", policy or "", _choices(policies)),
                Field("term", "Term", term or "", _choices(_COUNTED)),
            )
        ),
        written(asked.rows(_MINUTES, policy)),
        entries(asked.rows(_ENTRIES, policy, term), asked.now_ms),
    ]


def _choices(values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return (("", "all"), *((value, value) for value in values))


def figures(terms: Sequence[Row], recorded: Sequence[Row]) -> Figures:
    """The sums over all policies."""
    counts = Counter[str]()
    for row in terms:
        counts[str(row["term"])] += row["actions"]
    rest = sum(row["actions"] for row in recorded)
    return Figures(
        (
            Figure("Training actions", number(counts.total()), "distinct and successful"),
            *(
                Figure(
                    term.replace("_", "-"),
                    number(counts[term]),
                    share(counts[term], counts.total()),
                    "bad" if term == "dead_lettered" and counts[term] else "plain",
                )
                for term in _COUNTED
            ),
            Figure("Recorded only", number(rest), "no part of the ledger", address="/funnel"),
        )
    )


def accounts(terms: Sequence[Row]) -> Table:
    """The terms of each policy."""
    counts: dict[str, Counter[str]] = {}
    for row in terms:
        counts.setdefault(str(row["policy"]), Counter())[str(row["term"])] += row["actions"]
    return Table(
        (
            Column("Policy"),
            Column("Actions", number=True),
            *(Column(term.replace("_", "-"), number=True, note=TERMS[term]) for term in _COUNTED),
        ),
        tuple(
            (
                cell(policy, link("/ledger", policy=policy)),
                cell(count.total()),
                *(cell(count[term]) for term in _COUNTED),
            )
            for policy, count in sorted(counts.items())
        ),
        "By policy",
    )


def open_actions(rows: Sequence[Row], now: int) -> Table:
    """What open actions wait for."""
    return Table(
        (Column("Waits for"), Column("Actions", number=True), Column("Oldest rollout")),
        tuple(
            (cell(row["reason"]), cell(row["actions"]), cell(ago(row["oldest"], now)))
            for row in rows
        ),
        "Open actions",
        "None: every action has its place.",
    )


def written(rows: Sequence[Row]) -> Chart:
    """What was written over time."""
    return Chart(
        "Entries by minute",
        Axis("time (UTC)", "time"),
        Axis("actions", low=0, whole=True),
        tuple(
            Series(
                term,
                tuple(
                    (float(milliseconds(row["minute"]) or 0), float(row["actions"]))
                    for row in reversed(rows)
                    if row["term"] == term
                ),
                "bar",
                stack="terms",
                colour=place,
            )
            for place, term in enumerate(_COUNTED)
            if any(row["term"] == term for row in rows)
        ),
    )


def entries(rows: Sequence[Row], now: int) -> Table:
    """The newest entries."""
    return Table(
        (
            Column("When"),
            Column("Policy"),
            Column("Term"),
            Column("Reason"),
            Column("Actions", number=True),
            Column("Group"),
            Column("Version"),
            Column("By"),
        ),
        tuple(
            (
                cell(ago(row["event_time"], now)),
                cell(row["policy"]),
                cell(row["term"]),
                cell(row["reason"]),
                cell(row["actions"]),
                cell(row["group_id"], link("/group", id=row["group_id"])),
                cell(
                    row["version"],
                    link("/step", version=row["version"]) if row["version"] else None,
                ),
                cell(row["source"]),
            )
            for row in rows
        ),
        f"Newest entries ({count(len(rows), 'entry', 'entries')})",
    )


VIEW = View(
    "/ledger", "Ledger", "Does every action have its place?", content, key="l", section="Training"
)
