"""Funnel: where did my actions go?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.console.pages.address import Address, link
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
from services.console.pages.formats import cell, count, number, share
from services.console.pages.outcomes import TERMS, meaning
from services.console.pages.reading import Asked, Row
from services.console.pages.view import View

_WHERE = """
($1 IS NULL OR funnel.run_id = $1) AND ($2 IS NULL OR funnel.agent = $2)
    AND ($3 IS NULL OR funnel.mode = $3) AND ($4 IS NULL OR funnel.policy = $4)
"""

_OUTCOMES = f"""
SELECT term, reason, sum(actions)::BIGINT AS actions FROM funnel
WHERE {_WHERE} GROUP BY term, reason ORDER BY actions DESC
"""

_STAGES = f"""
SELECT sum(actions)::BIGINT AS actions,
    coalesce(sum(actions) FILTER (rollout.outcome <> 'open'), 0)::BIGINT AS in_episodes,
    (
        SELECT count(*) FROM actions AS action JOIN rollouts AS owner USING (rollout_id)
        WHERE action.loss AND ($1 IS NULL OR owner.run_id = $1)
            AND ($2 IS NULL OR action.agent = $2) AND ($3 IS NULL OR owner.mode = $3)
            AND ($4 IS NULL OR owner.policy = $4)
    ) AS in_trajectories,
    coalesce(sum(actions) FILTER (term IN ('trained', 'amended')), 0)::BIGINT AS trained
FROM funnel LEFT JOIN rollouts AS rollout USING (rollout_id)
WHERE {_WHERE}
"""

_BY = {
    "role": "CASE agent WHEN '' THEN '(no role)' ELSE agent END",
    "run": "coalesce(run_id, '(no run)')",
    "policy": "coalesce(policy, '(no policy)')",
    "mode": "mode",
}
"""What a table can be split by. These are constants: an address only chooses one."""


_CHOICES = """
SELECT 'run' AS name, run_id AS value FROM runs
UNION ALL SELECT DISTINCT 'agent', agent FROM calls WHERE agent <> ''
UNION ALL SELECT DISTINCT 'policy', policy FROM calls WHERE policy IS NOT NULL
ORDER BY name, value
"""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    get = asked.address.get
    wanted = (get("run"), get("agent"), get("mode"), get("policy"))
    by = asked.address.choice("by", _BY, "role")
    stages = asked.row(_STAGES, *wanted)
    form = filters(asked.address, asked.rows(_CHOICES), by)
    if not stages["actions"]:
        return [form, nothing(asked.address)]
    outcomes = asked.rows(_OUTCOMES, *wanted)
    split = asked.rows(
        f"SELECT {_BY[by]} AS name, term, sum(actions)::BIGINT AS actions FROM funnel "
        f"WHERE {_WHERE} GROUP BY 1, 2",
        *wanted,
    )
    return [
        form,
        figures(stages),
        funnel(stages, outcomes),
        *recorded_only(outcomes),
        reasons(outcomes),
        split_table(split, by),
    ]


def filters(address: Address, choices: Sequence[Row], by: str) -> Filters:
    """What the page can be narrowed to."""

    def field(name: str, label: str) -> Field:
        values = [str(row["value"]) for row in choices if row["name"] == name]
        return Field(
            name,
            label,
            address.get(name) or "",
            (("", "all"), *((value, value) for value in values)),
        )

    modes = (("", "all"), ("train", "train"), ("val", "val"), ("live", "live"))
    return Filters(
        (
            field("run", "Run"),
            field("agent", "Role"),
            field("policy", "Policy"),
            Field("mode", "Mode", address.get("mode") or "", modes),
            Field("by", "Split by", by, tuple((name, name) for name in _BY)),
        )
    )


def nothing(address: Address) -> Notice:
    """What to do where no action fits."""
    if address.query:
        return Notice("No successful call fits these filters. Widen them.")
    return Notice(
        "No call has succeeded yet. Every generated answer of a successful call appears here.",
        commands=('eval "$(fulgurite env)"', "python your_agent.py"),
    )


def figures(stages: Row) -> Figures:
    """The stages as numbers."""
    actions = stages["actions"]
    return Figures(
        (
            Figure("Actions", number(actions), "generated answers of successful calls"),
            Figure(
                "In an episode",
                share(stages["in_episodes"], actions),
                number(stages["in_episodes"]),
            ),
            Figure(
                "In a trajectory, with loss",
                share(stages["in_trajectories"], actions),
                number(stages["in_trajectories"]),
            ),
            Figure("Trained", share(stages["trained"], actions), number(stages["trained"])),
        )
    )


def funnel(stages: Row, outcomes: Sequence[Row]) -> Chart:
    """The way of all actions, from call to training, and where those went that left it."""
    actions = stages["actions"]
    terms = Counter[str]()
    for row in outcomes:
        terms[str(row["term"])] += row["actions"]
    way = (
        ("calls", actions),
        ("episodes", stages["in_episodes"]),
        ("trajectories", stages["in_trajectories"]),
        ("trained", stages["trained"]),
    )
    left = tuple(
        (term.replace("_", "-"), terms[term])
        for term in TERMS
        if terms[term] and term not in ("trained", "amended")
    )
    names = (*way, *left)
    return Chart(
        "From call to training",
        Axis("stage", "category"),
        Axis("actions", low=0, whole=True),
        (
            Series("on the way", tuple((name, float(n)) for name, n in way), "bar", stack="way"),
            Series("left it", tuple((name, float(n)) for name, n in left), "bar", stack="way"),
        ),
        height=60 + 34 * len(names),
        sideways=True,
    )


def recorded_only(outcomes: Sequence[Row]) -> list[Notice]:
    """Says in a sentence what is recorded and not trained."""
    return [
        Notice(
            f"{count(row['actions'], 'action')} recorded, not trained: "
            f"{meaning('recorded', row['reason'])}."
        )
        for row in outcomes
        if row["term"] == "recorded" and row["reason"] in ("live", "no_policy")
    ]


def reasons(outcomes: Sequence[Row]) -> Table:
    """Each term with its reasons, and what helps."""
    total = sum(row["actions"] for row in outcomes)
    order = list(TERMS)
    return Table(
        (
            Column("Term"),
            Column("Reason"),
            Column("Actions", number=True),
            Column("Share", number=True),
            Column("What it means"),
        ),
        tuple(
            (
                cell(row["term"]),
                cell(row["reason"]),
                cell(row["actions"]),
                cell(share(row["actions"], total)),
                cell(meaning(row["term"], row["reason"]), most=260),
            )
            for row in sorted(outcomes, key=lambda row: (order.index(row["term"]), -row["actions"]))
        ),
        "Why",
    )


def split_table(rows: Sequence[Row], by: str) -> Table:
    """The terms of each role, run, policy or mode."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(str(row["name"]), Counter())[str(row["term"])] += row["actions"]
    shown = [term for term in TERMS if any(count[term] for count in counts.values())]
    name = {"role": "agent"}.get(by, by)
    return Table(
        (
            Column(by.capitalize()),
            Column("Actions", number=True),
            *(Column(term.replace("_", "-"), number=True, note=TERMS[term]) for term in shown),
        ),
        tuple(
            (
                cell(
                    value,
                    None if value.startswith("(") else link("/funnel", **{name: value, "by": by}),
                ),
                cell(count.total()),
                *(cell(count[term] or None) for term in shown),
            )
            for value, count in sorted(counts.items(), key=lambda item: -item[1].total())
        ),
        f"By {by}",
    )


VIEW = View(
    "/funnel",
    "Funnel",
    "Where did my actions go, and why were they not trained?",
    content,
    key="f",
    section="Training",
)
