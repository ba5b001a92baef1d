"""Timeline: what happened in this rollout?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.console.pages.address import Address, link
from services.console.pages.blocks import (
    Axis,
    Block,
    Chart,
    Column,
    Columns,
    Field,
    Figure,
    Figures,
    Filters,
    Heading,
    Link,
    Links,
    Notice,
    Series,
    Table,
    Text,
)
from services.console.pages.formats import (
    NONE,
    ago,
    cell,
    clock,
    count,
    fixed,
    milliseconds,
    number,
    pretty,
    seconds,
)
from services.console.pages.reading import Asked, Row
from services.console.pages.token_colours import by_advantage, by_logprob
from services.console.pages.tokenizer import Tokenizer
from services.console.pages.turns import Turn, read_turns
from services.console.pages.view import View

_TURNS = 20
"""Calls of a page."""
_MESSAGES = 4
"""Messages that a turn shows one by one."""
_LANES = 80
"""Calls that the swimlanes show."""

_ROLLOUT = "SELECT * FROM rollouts WHERE rollout_id = $1"
_NEWEST = "SELECT rollout_id FROM rollouts WHERE calls > 0 ORDER BY began_at DESC LIMIT 1"
_CALLS = """
SELECT * FROM calls WHERE rollout_id = $1 AND ($2 IS NULL OR attempt = $2)
ORDER BY started_at, call_id
"""
_STATUSES = "SELECT * FROM statuses WHERE rollout_id = $1 ORDER BY event_time"
_REWARDS = "SELECT * FROM rewards WHERE rollout_id = $1 ORDER BY event_time"
_ACTIONS = "SELECT * FROM action_advantages WHERE rollout_id = $1"
_OUTCOMES = "SELECT * FROM action_outcomes WHERE rollout_id = $1 AND group_id = $2"


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    rollout_id = asked.address.get("rollout")
    form = Filters((Field("rollout", "Rollout id", rollout_id or "", kind="search"),))
    if rollout_id is None:
        newest = asked.row(_NEWEST).get("rollout_id")
        return [
            form,
            Notice(
                "Choose a rollout: its id is in every table, and in the header "
                "x-fulgurite-rollout-id of every reply.",
                link=Link("The newest rollout", link("/timeline", rollout=newest))
                if newest
                else None,
            ),
        ]
    rollout = asked.row(_ROLLOUT, rollout_id)
    if not rollout:
        return [form, Notice(f"The rollout {rollout_id!r} is not known here.", "warning")]
    attempt = asked.address.number("attempt")
    calls = asked.rows(_CALLS, rollout_id, attempt)
    page = asked.address.number("page", 1) or 1
    shown = calls[_TURNS * (page - 1) : _TURNS * page]
    turns = read_turns(asked, shown)
    actions = {(row["call_id"], row["choice"]): row for row in asked.rows(_ACTIONS, rollout_id)}
    outcomes = {
        (row["call_id"], row["choice"]): row
        for row in asked.rows(_OUTCOMES, rollout_id, rollout["group_id"])
    }
    first = _TURNS * (page - 1) + 1
    return [
        form,
        figures(rollout, asked.now_ms),
        ways(rollout, asked.address, len(calls), page),
        *([Text(pretty(str(rollout["task"])), "Task")] if rollout["task"] else []),
        *([lanes(calls[:_LANES])] if calls else []),
        *advantages(turns, actions, asked.tokenizer),
        rewards(asked.rows(_REWARDS, rollout_id)),
        *(
            block
            for place, turn in enumerate(turns, first)
            for block in turn_blocks(place, turn, outcomes, asked.tokenizer)
        ),
        statuses(asked.rows(_STATUSES, rollout_id)),
    ]


def figures(rollout: Row, now: int) -> Figures:
    """The numbers of a rollout."""
    began, ended = milliseconds(rollout["began_at"]), milliseconds(rollout["ended_at"])
    lasted = None if began is None or ended is None else (ended - began) / 1000
    failure = rollout["failure"]
    return Figures(
        (
            Figure(
                "Outcome",
                str(failure or rollout["outcome"]),
                str(rollout["message"] or ""),
                "bad" if failure else "plain",
            ),
            Figure("Reward", fixed(rollout["reward"]), rollout["reward_reason"] or "weighted sum"),
            Figure("Calls", number(rollout["calls"]), f"{number(rollout['failed_calls'])} failed"),
            Figure(
                "Tokens",
                number(rollout["prompt_tokens"] + rollout["completion_tokens"]),
                f"{number(rollout['completion_tokens'])} generated",
            ),
            Figure("Lasted", seconds(lasted), f"began {ago(rollout['began_at'], now)}"),
            Figure(
                "Version",
                str(rollout["version"] or NONE),
                str(rollout["prompt_version"] or "prompt as sent"),
                address=link("/step", version=rollout["version"]) if rollout["version"] else None,
            ),
            Figure("Mode", str(rollout["mode"]), str(rollout["alias"] or "")),
        )
    )


def ways(rollout: Row, address: Address, calls: int, page: int) -> Links:
    """Where to go from here."""
    items = [Link("its group", link("/group", id=rollout["group_id"]))]
    if rollout["run_id"]:
        items.append(Link("its run", link("/runs", run=rollout["run_id"])))
    if rollout["attempts"] > 1:
        items += [
            Link(f"attempt {number}", address.but(attempt=str(number), page=None))
            for number in range(rollout["attempts"])
        ]
    if page > 1:
        items.append(Link("← turns before", address.but(page=str(page - 1))))
    if calls > page * _TURNS:
        items.append(Link("next turns →", address.but(page=str(page + 1))))
    return Links(tuple(items))


def lanes(calls: Sequence[Row]) -> Chart:
    """When each call ran, agent by agent."""
    start = min(row["started_at"] for row in calls)
    agents = list(dict.fromkeys(row["agent"] for row in calls))
    ordered = [
        (place, row)
        for agent in agents
        for place, row in enumerate(calls, 1)
        if row["agent"] == agent
    ]
    names = {row["call_id"]: f"{place} {row['agent'] or 'agent'}" for place, row in ordered}
    waits = tuple(
        (names[row["call_id"]], (row["started_at"] - start).total_seconds()) for _, row in ordered
    )
    return Chart(
        "Calls over time",
        Axis("call", "category"),
        Axis("seconds since the first call", low=0),
        (
            Series("before", waits, "bar", stack="time", hidden=True),
            *(
                Series(
                    agent or "agent",
                    tuple(
                        (
                            names[row["call_id"]],
                            row["milliseconds"] / 1000 if row["agent"] == agent else None,
                        )
                        for _, row in ordered
                    ),
                    "bar",
                    stack="time",
                    colour=place,
                )
                for place, agent in enumerate(agents)
            ),
        ),
        height=90 + 22 * len(calls),
        sideways=True,
    )


def advantages(
    turns: Sequence[Turn], actions: Mapping[tuple[str, int], Row], tokenizer: Tokenizer
) -> list[Block]:
    """All answers by advantage, if the group is closed."""
    found = [
        (tokenizer.pieces(ids), row["advantage"], row["mask"])
        for turn in turns
        for choice, ids in enumerate(turn.token_ids)
        if ids and (row := actions.get((turn.row["call_id"], choice)))
    ]
    if not found:
        return []
    return [by_advantage(found, "Answers by advantage (credit less the group's mean)")]


def rewards(rows: Sequence[Row]) -> Table:
    """Each reward with its source and error."""
    return Table(
        (
            Column("Reward"),
            Column("Value", number=True),
            Column("For"),
            Column("Final"),
            Column("Source"),
            Column("Error"),
            Column("More"),
            Column("When"),
        ),
        tuple(
            (
                cell(row["name"]),
                cell(fixed(row["value"])),
                cell(
                    "the rollout"
                    if row["call_id"] is None
                    else f"…{row['call_id'][-8:]}, choice {row['choice'] or 0}"
                ),
                cell(row["final"]),
                cell(row["source"]),
                cell(row["error"], tone="bad", most=300),
                cell(row["metadata"], most=300),
                cell(clock(row["event_time"])),
            )
            for row in rows
        ),
        "Rewards",
        "No reward has come.",
    )


def turn_blocks(
    place: int,
    turn: Turn,
    outcomes: Mapping[tuple[str, int], Row],
    tokenizer: Tokenizer,
) -> list[Block]:
    """A turn: what was said, what was answered, and its tokens."""
    row = turn.row
    agent = row["agent"] or "agent"
    parent = f", started by {row['parent_agent']}" if row["parent_agent"] else ""
    outcome = outcomes.get((row["call_id"], 0), {})
    blocks: list[Block] = [
        Heading(f"{place}. {agent}{parent}", f"{row['call_id']}, {clock(row['started_at'])}"),
        Figures(turn_figures(row, outcome)),
    ]
    if row["failure"] or row["error"]:
        blocks.append(Notice(f"{row['failure'] or row['outcome']}: {row['error'] or ''}", "bad"))
    if turn.missing:
        return [*blocks, Notice(turn.missing, "quiet"), Text(str(row["answer"] or ""), "Answer")]
    blocks += said_blocks(turn.said)
    if turn.served is not None and turn.sent is not None:
        blocks.append(
            Columns(
                (
                    Text(turn.sent, "Sent by the agent"),
                    Text(turn.served, f"Served, with {row['prompt_version']}"),
                )
            )
        )
    if turn.offered:
        blocks.append(Text(", ".join(turn.offered), "Tools offered", folded=len(turn.offered) > 8))
    several = len(turn.answers) > 1
    blocks += [
        Text(text, f"Answer {choice}" if several else "Answer")
        for choice, text in enumerate(turn.answers, 1)
        if text
    ]
    blocks += [Text(pretty(arguments), f"Calls {name}") for name, arguments in turn.called]
    blocks += [
        by_logprob(
            tokenizer.pieces(ids),
            turn.logprobs[choice],
            f"{count(len(ids), 'token')} by log-probability",
        )
        for choice, ids in enumerate(turn.token_ids)
        if ids and turn.logprobs[choice]
    ]
    return blocks


def said_blocks(said: Sequence[tuple[str, str]]) -> list[Block]:
    """The messages of a call. Of many, such as examples, the last is shown and the rest folded."""
    shown = [(role, text) for role, text in said if text]
    folded: list[Block] = []
    if len(shown) > _MESSAGES:
        before = "\n\n".join(f"[{role}]\n{text}" for role, text in shown[:-1])
        folded = [Text(before, f"{count(len(shown) - 1, 'message')} before", folded=True)]
        shown = shown[-1:]
    return [*folded, *(Text(text, role) for role, text in shown)]


def turn_figures(row: Row, outcome: Row) -> tuple[Figure, ...]:
    """The numbers of a call."""
    first = row["first_token_at"]
    wait = None if first is None else (first - row["started_at"]).total_seconds()
    reason = str(outcome.get("reason") or "").replace("_", " ")
    return (
        Figure("Time", seconds(row["milliseconds"] / 1000), f"first byte after {seconds(wait)}"),
        Figure("Prompt", count(row["prompt_tokens"] or 0, "token"), f"by {row['backend']}"),
        Figure("Answer", count(row["completion_tokens"] or 0, "token"), str(row["finish_reason"])),
        Figure("Mean log-prob.", fixed(row["mean_logprob"]), "nats per token"),
        Figure("Version", str(row["version_first"] or NONE), f"temperature {row['temperature']:g}"),
        Figure("In the ledger", str(outcome.get("term", NONE)), reason),
    )


def statuses(rows: Sequence[Row]) -> Table:
    """What was reported of the rollout."""
    return Table(
        (
            Column("When"),
            Column("Status"),
            Column("Attempt", number=True),
            Column("By"),
            Column("Failure"),
            Column("Message"),
            Column("Exit code", number=True),
        ),
        tuple(
            (
                cell(clock(row["event_time"])),
                cell(row["kind"]),
                cell(row["attempt"]),
                cell(row["source"]),
                cell(row["failure"], tone="bad"),
                cell(row["message"], most=300),
                cell(row["exit_code"]),
            )
            for row in rows
        ),
        "Statuses",
        "Nothing was reported: the rollout was not declared.",
    )


VIEW = View("/timeline", "Timeline", "What happened in this rollout?", content)
