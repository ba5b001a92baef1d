"""Agents: which role is weak? Calls, tokens, failures and credit by role, and who starts whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from services.console.pages.blocks import (
    Axis,
    Block,
    Cell,
    Chart,
    Column,
    Columns,
    Filters,
    Notice,
    Series,
    Table,
)
from services.console.pages.formats import NONE, cell, fixed, number, seconds, share
from services.console.pages.reading import Asked, Row
from services.console.pages.rollout_links import rollout_cell
from services.console.pages.view import View
from services.console.pages.window import choice_field, since, window_field

NO_ROLE = "(no role)"
_DEEPEST = 12
_BEGAN = "in rollouts that began in the window"
_INDENT = "\u2003"
"""A space that browsers keep."""

_CHOSEN = """
call.started_at >= $1
AND ($2 IS NULL OR call.rollout_id IN (SELECT rollout_id FROM rollouts WHERE run_id = $2))
"""
"""Calls of the window and, if one is chosen, of a run."""

_ROLES = f"""
SELECT call.alias, call.agent, count(*) AS calls, count(DISTINCT call.rollout_id) AS rollouts,
    count(*) FILTER (call.outcome <> 'success') AS failed,
    count(*) FILTER (call.finish_reason = 'length') AS cut,
    sum(call.prompt_tokens)::BIGINT AS prompt_tokens,
    sum(call.completion_tokens)::BIGINT AS completion_tokens,
    median(call.milliseconds) / 1000 AS seconds
FROM calls AS call WHERE {_CHOSEN}
GROUP BY call.alias, call.agent ORDER BY calls DESC, call.alias, call.agent
"""

_ACTIONS = """
SELECT found.alias, found.agent, sum(found.actions)::BIGINT AS actions,
    coalesce(sum(found.actions) FILTER (found.term = 'trained'), 0)::BIGINT AS trained,
    sum(found.credited)::BIGINT AS credited, coalesce(sum(found.credit), 0) AS credit
FROM funnel AS found JOIN rollouts AS rollout USING (rollout_id)
WHERE rollout.began_at >= $1 AND ($2 IS NULL OR found.run_id = $2)
GROUP BY found.alias, found.agent ORDER BY found.agent, found.alias
"""
"""Of the rollouts that began in the window."""

_FAILURES = f"""
SELECT call.agent, call.failure, count(*) AS calls, arg_max(call.error, call.started_at) AS error,
    arg_max(call.rollout_id, call.started_at) AS rollout_id
FROM calls AS call
WHERE call.failure IS NOT NULL AND {_CHOSEN}
GROUP BY call.agent, call.failure ORDER BY calls DESC LIMIT 20
"""

_STARTED = f"""
SELECT call.parent_agent, call.agent, count(*) AS calls, count(DISTINCT call.rollout_id) AS rollouts
FROM calls AS call WHERE {_CHOSEN}
GROUP BY call.parent_agent, call.agent ORDER BY calls DESC, call.agent
"""

_RUNS = "SELECT run_id FROM runs ORDER BY last_at DESC LIMIT 50"


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    run = asked.address.get("run")
    chosen = (since(asked), run)
    runs = [row["run_id"] for row in asked.rows(_RUNS)]
    filters = Filters(
        (window_field(asked), choice_field("run", "Run", run, runs)),
        asked.address.kept("since", "run"),
    )
    roles = asked.rows(_ROLES, *chosen)
    if not roles:
        return [filters, nothing_called()]
    actions = asked.rows(_ACTIONS, *chosen)
    return [
        filters,
        roles_table(roles, actions),
        Columns(charts(roles, actions)),
        tree_table(asked.rows(_STARTED, *chosen)),
        failures_table(asked.rows(_FAILURES, *chosen)),
    ]


def nothing_called() -> Notice:
    """What to do where no agent made a call."""
    return Notice(
        "No agent made a call in this window. A role comes from the header x-fulgurite-agent, the "
        "path, the key or the alias.",
        commands=('eval "$(fulgurite env)"', "python your_agent.py"),
    )


def role_name(agent: str | None) -> str:
    """A role for people."""
    return agent or NO_ROLE


def roles_table(roles: Sequence[Row], actions: Sequence[Row]) -> Table:
    """One row per alias and role."""
    earned = {
        (row["alias"], row["agent"]): row["credit"] / row["credited"]
        for row in actions
        if row["credited"]
    }
    trained = {
        (row["alias"], row["agent"]): share(row["trained"], row["actions"]) for row in actions
    }
    return Table(
        (
            Column("Role"),
            Column("Alias"),
            Column("Rollouts", number=True),
            Column("Calls", number=True),
            Column("Failed", number=True),
            Column("Cut", number=True, note="Answers that their length limit cut"),
            Column("Prompt tokens", number=True),
            Column("Generated tokens", number=True),
            Column("Median call", number=True),
            Column("Mean credit", number=True, note=f"Of actions that carry loss, {_BEGAN}"),
            Column("Trained", number=True, note=f"Share of actions, {_BEGAN}"),
        ),
        tuple(
            (
                cell(role_name(row["agent"])),
                cell(row["alias"]),
                cell(row["rollouts"]),
                cell(row["calls"]),
                cell(share(row["failed"], row["calls"]), tone="bad" if row["failed"] else "plain"),
                cell(share(row["cut"], row["calls"]), tone="warning" if row["cut"] else "plain"),
                cell(row["prompt_tokens"]),
                cell(row["completion_tokens"]),
                cell(seconds(row["seconds"])),
                cell(fixed(earned.get((row["alias"], row["agent"])))),
                cell(trained.get((row["alias"], row["agent"]), NONE)),
            )
            for row in roles
        ),
        "Roles",
    )


def charts(roles: Sequence[Row], actions: Sequence[Row]) -> tuple[Chart, ...]:
    """Tokens and credit by role."""
    tokens: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in roles:
        tokens[role_name(row["agent"])][0] += row["prompt_tokens"] or 0
        tokens[role_name(row["agent"])][1] += row["completion_tokens"] or 0
    earned: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in actions:
        if row["credited"]:
            earned[role_name(row["agent"])][0] += row["credit"]
            earned[role_name(row["agent"])][1] += row["credited"]
    found = [
        Chart(
            "Tokens by role",
            Axis("role", "category"),
            Axis("tokens", low=0, whole=True),
            tuple(
                Series(
                    name, tuple((role, pair[at]) for role, pair in tokens.items()), "bar", stack="t"
                )
                for at, name in enumerate(("prompt", "generated"))
            ),
        )
    ]
    if earned:
        found.append(
            Chart(
                "Mean credit by role",
                Axis("role", "category"),
                Axis("credit"),
                (
                    Series(
                        "mean credit",
                        tuple((role, total / count) for role, (total, count) in earned.items()),
                        "bar",
                    ),
                ),
            )
        )
    return tuple(found)


def _indented(depth: int, name: Cell) -> Cell:
    branch = "└ " if depth else ""
    return replace(name, text=f"{_INDENT * depth}{branch}{name.text}")


def tree_table(started: Sequence[Row]) -> Table:
    """Who starts whom, as an indented tree."""
    return Table(
        (
            Column("Agent"),
            Column("Rollouts", number=True),
            Column("Calls", number=True),
        ),
        tuple(
            (
                _indented(depth, cell(role_name(row["agent"]))),
                cell(row["rollouts"]),
                cell(row["calls"]),
            )
            for depth, row in tree(started)
        ),
        "Agents and their sub-agents",
    )


def tree(started: Sequence[Row]) -> Iterator[tuple[int, Row]]:
    """Depth and row of each agent, below the one that started it. Agents that start one another in
    a circle are listed once.
    """
    names = {row["agent"] for row in started}
    below: defaultdict[str | None, list[Row]] = defaultdict(list)
    for row in started:
        parent = row["parent_agent"]
        below[parent if parent in names and parent != row["agent"] else None].append(row)
    listed: set[tuple[str | None, str]] = set()

    def walk(parent: str | None, depth: int) -> Iterator[tuple[int, Row]]:
        for row in below[parent]:
            name = (row["parent_agent"], row["agent"])
            if name in listed or depth > _DEEPEST:
                continue
            listed.add(name)
            yield depth, row
            if row["agent"] != parent:
                yield from walk(row["agent"], depth + 1)

    yield from walk(None, 0)
    for row in started:
        if (row["parent_agent"], row["agent"]) not in listed:
            listed.add((row["parent_agent"], row["agent"]))
            yield 0, row


def failures_table(failures: Sequence[Row]) -> Table:
    """What went wrong in calls, by role."""
    return Table(
        (
            Column("Role"),
            Column("Failure"),
            Column("Calls", number=True),
            Column("Last error"),
            Column("Example"),
        ),
        tuple(
            (
                cell(role_name(row["agent"])),
                cell(row["failure"], tone="bad"),
                cell(number(row["calls"])),
                cell(row["error"]),
                rollout_cell(row["rollout_id"]),
            )
            for row in failures
        ),
        "Failed calls by role",
        "No call failed.",
    )


VIEW = View(
    "/agents",
    "Agents",
    "Which role is weak?",
    content,
    key="a",
    section="Behaviour",
)
