"""Prompts: which prompt wins? Versions, what they change, and what rollouts earned with them."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence

from fulgurite.prompts.history import PromptHistory
from fulgurite.untrusted_json import mappings, parsed
from services.console.pages.blocks import (
    Axis,
    Block,
    Chart,
    Column,
    Filters,
    Heading,
    Notice,
    Series,
    Table,
    Text,
)
from services.console.pages.formats import ago, cell, fixed, number
from services.console.pages.reading import Asked, Row
from services.console.pages.turns import prompt_update
from services.console.pages.view import View
from services.console.pages.window import choice_field

SENT = "as sent"
"""Stands for rollouts that were served without a prompt version."""

_ALL = """
SELECT * FROM prompts WHERE $1 IS NULL OR alias = $1 ORDER BY "offset"
"""

_SCORES = """
SELECT alias, prompt_version, count(*) AS rollouts, count(reward) AS scored, avg(reward) AS mean,
    stddev_samp(reward) / sqrt(count(reward)) AS error
FROM rollouts
WHERE alias IN (SELECT alias FROM prompts) AND ($1 IS NULL OR alias = $1)
GROUP BY alias, prompt_version
"""

_TUNED = """
SELECT alias, version, avg(reward) AS mean, count(*) AS scored
FROM (SELECT alias, version, unnest(rewards) AS reward FROM prompt_scores
    WHERE stage <> 'training' AND ($1 IS NULL OR alias = $1))
GROUP BY alias, version
"""

_ALIASES = "SELECT DISTINCT alias FROM prompts ORDER BY alias"

IN_FORCE = {"set": "set", "rollback": "rolled back to", "promoted": "promoted"}
"""Kinds of events after which a version is in force, and what a person reads."""

Scores = Mapping[tuple[str, str | None], Row]
"""By alias and version; None: as sent."""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    alias = asked.address.get("alias")
    aliases = [row["alias"] for row in asked.rows(_ALIASES)]
    if not aliases:
        return [nothing_set()]
    events = asked.rows(_ALL, alias)
    scores = {(row["alias"], row["prompt_version"]): row for row in asked.rows(_SCORES, alias)}
    tuned = {(row["alias"], row["version"]): row for row in asked.rows(_TUNED, alias)}
    return [
        Filters((choice_field("alias", "Alias", alias, aliases),), asked.address.kept("alias")),
        *chosen_version(asked, events),
        *charts(events, scores),
        versions_table(asked, events, scores, tuned),
    ]


def nothing_set() -> Notice:
    """What to do where there is no prompt version."""
    return Notice(
        "No prompt version was set: every request is served as it is sent. A version changes the "
        "prompts of an alias, and its agents stay as they are.",
        commands=("fulgurite prompts set --alias policy --system system.txt --reason 'be brief'",),
    )


def history_of(events: Sequence[Row]) -> tuple[PromptHistory, set[str]]:
    """The versions as gateways have them, and the ids of events that change nothing: a number that
    is taken, a return to a version that was never written.
    """
    history, ignored = PromptHistory(), set[str]()
    for row in events:
        event = prompt_update(row)
        history.apply(event)
        if row["kind"] in IN_FORCE:
            counting = history.last_change(event.alias, event.role)
        elif row["kind"] == "candidate":
            counting = history.find(event.alias, event.version)
        else:
            continue
        if counting is None or counting.event_id != event.event_id:
            ignored.add(event.event_id)
    return history, ignored


def lines_of(row: Row | None) -> list[str]:
    """What a version changes, in lines; none for what the agent sends."""
    if row is None:
        return []
    sections: dict[str, str] = row["sections"] or {}
    tools: dict[str, str] = row["tools"] or {}
    parts: list[tuple[str, str | None]] = [
        ("system prompt", row["system"]),
        ("prefix", row["prefix"]),
        *((f"section {name}", text) for name, text in sorted(sections.items())),
        *((f"tool {name}", text) for name, text in sorted(tools.items())),
    ]
    lines = [line for title, text in parts if text for line in (f"-- {title}", *text.splitlines())]
    try:
        messages = mappings(parsed(row["demonstrations"]))
    except ValueError:
        messages = []
    said = [json.dumps(message, ensure_ascii=False) for message in messages]
    return [*lines, *(["-- demonstrations", *said] if said else [])]


def diff(before: Row | None, after: Row) -> str:
    """What differs between two versions, as a unified diff."""
    name = before["version"] if before is not None else SENT
    lines = difflib.unified_diff(
        lines_of(before), lines_of(after), name, str(after["version"]), lineterm=""
    )
    return "\n".join(lines) or "They say the same."


def chosen_version(asked: Asked, events: Sequence[Row]) -> list[Block]:
    """One version: what it changes, against its parent or another version."""
    alias, version = asked.address.get("of"), asked.address.get("version")
    if alias is None or version is None:
        return []
    _, ignored = history_of(events)
    known = {
        row["version"]: row
        for row in events
        if row["alias"] == alias
        and row["kind"] in ("set", "candidate")
        and row["event_id"] not in ignored
    }
    row = known.get(version)
    if row is None:
        return [Notice(f"{alias} has no version {version}.", "warning")]
    against = asked.address.get("against") or row["parent"]
    choices = [one for one in known if one != version]
    return [
        Heading(f"{version} of {alias}", f"by {row['author']}: {row['reason']}"),
        Filters(
            (choice_field("against", "Compare with", against, choices),),
            asked.address.kept("against"),
        ),
        Text(diff(known.get(against or ""), row), f"Against {against or SENT}"),
        Text("\n".join(lines_of(row)), "All that it changes", folded=True),
        back_to(alias, version, row["role"]),
    ]


def back_to(alias: str, version: str, role: str | None) -> Notice:
    """How to put a version in force again."""
    of_role = f" --role {shlex.quote(role)}" if role else ""
    return Notice(
        "Put it in force for rollouts that begin from then on:",
        commands=(
            f"fulgurite prompts rollback --alias {shlex.quote(alias)}{of_role} "
            f"--to {shlex.quote(version)} --reason 'TEXT'",
        ),
    )


def charts(events: Sequence[Row], scores: Scores) -> list[Chart]:
    """Mean reward by prompt version, for each alias."""
    found: list[Chart] = []
    for alias in dict.fromkeys(row["alias"] for row in events):
        names = [None, *dict.fromkeys(row["version"] for row in events if row["alias"] == alias)]
        rows = [
            (name or SENT, row)
            for name in dict.fromkeys(names)
            if (row := scores.get((alias, name))) is not None and row["mean"] is not None
        ]
        if rows:
            found.append(
                Chart(
                    f"Reward by prompt version of {alias}",
                    Axis("prompt version", "category"),
                    Axis("mean reward"),
                    (
                        Series(
                            "mean reward", tuple((name, row["mean"]) for name, row in rows), "bar"
                        ),
                    ),
                    height=220,
                )
            )
    return found


def versions_table(asked: Asked, events: Sequence[Row], scores: Scores, tuned: Scores) -> Table:
    """One row per version, and per event about one, the newest first."""
    history, ignored = history_of(events)
    rows: list[tuple[Row, str]] = []
    for row in reversed(events):
        last = history.last_change(row["alias"], row["role"])
        is_current = last is not None and last.event_id == row["event_id"]
        what = IN_FORCE.get(row["kind"], str(row["kind"]))
        if row["event_id"] in ignored:
            what = f"{what}, ignored"
        elif is_current and row["version"]:
            what = f"{what}, in force"
        rows.append((row, what))
    return Table(
        (
            Column("Version"),
            Column("Alias"),
            Column("Role"),
            Column("What"),
            Column("Changes"),
            Column("Mean reward", number=True, note="Of rollouts that it served"),
            Column("In tuning", number=True, note="Mean reward on validation tasks"),
            Column("Written"),
            Column("By"),
            Column("Reason"),
        ),
        tuple(
            (
                cell(
                    row["version"] or SENT,
                    asked.address.but(of=row["alias"], version=row["version"], against=None)
                    if row["version"]
                    else None,
                ),
                cell(row["alias"]),
                cell(row["role"] or "all"),
                cell(what, tone="good" if "in force" in what else "plain"),
                cell(", ".join(changed(row)) or None),
                cell(_score(scores.get((row["alias"], row["version"])))),
                cell(_tuning_score(tuned.get((row["alias"], row["version"])))),
                cell(ago(row["event_time"], asked.now_ms)),
                cell(row["author"]),
                cell(row["reason"]),
            )
            for row, what in rows
        ),
        "Versions",
    )


def changed(row: Row) -> list[str]:
    """Names of what a version changes."""
    names = [name for name in ("system", "prefix", "sections", "tools") if row[name]]
    has_demonstrations = row["demonstrations"] not in ("", "[]")
    return [*names, *(["demonstrations"] if has_demonstrations else [])]


def _score(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return "–"
    reach = f" ± {fixed(1.96 * row['error'])}" if row["error"] is not None else ""
    return f"{fixed(row['mean'])}{reach} (n = {number(row['scored'])})"


def _tuning_score(row: Row | None) -> str | None:
    return f"{fixed(row['mean'])} (n = {number(row['scored'])})" if row is not None else None


VIEW = View(
    "/prompts",
    "Prompts",
    "Which prompt wins?",
    content,
    key="p",
    section="Serving",
)
