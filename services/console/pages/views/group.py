"""Group: why this credit? Its rollouts side by side."""

from __future__ import annotations

from collections.abc import Sequence

from fulgurite.groups.rewards import SMALLEST_SPREAD
from services.console.pages.address import link
from services.console.pages.blocks import (
    Axis,
    Block,
    Cell,
    Chart,
    Column,
    Columns,
    Field,
    Figure,
    Figures,
    Filters,
    Link,
    Links,
    Mark,
    Notice,
    Series,
    Table,
    Text,
)
from services.console.pages.formats import NONE, ago, cell, count, fixed, number, pretty
from services.console.pages.reading import Asked, Row
from services.console.pages.rollout_links import tail
from services.console.pages.view import View

_SUMMARY = "SELECT * FROM group_summaries WHERE group_id = $1"
_MEMBERS = "SELECT * FROM rollouts WHERE group_id = $1 ORDER BY rollout_id"
_DECLARED = "SELECT * FROM groups WHERE group_id = $1"
_CLOSING = "SELECT * FROM closings WHERE group_id = $1"
_REWARDS = """
SELECT rollout_id, name, call_id, value, source, error, metadata FROM counted_rewards
WHERE group_id = $1 ORDER BY rollout_id, name
"""
_CREDIT = """
SELECT rollout_id, count(*) AS actions, avg(credit) AS credit, avg(advantage) AS advantage,
    count(mask) AS masked, any_value(mask) AS mask
FROM action_advantages WHERE group_id = $1 GROUP BY rollout_id
"""
_NEWEST = "SELECT group_id FROM rollouts ORDER BY began_at DESC LIMIT 1"


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    group = asked.address.get("id")
    form = Filters((Field("id", "Group id", group or "", kind="search"),))
    if group is None:
        newest = asked.row(_NEWEST).get("group_id")
        return [
            form,
            Notice(
                "Choose a group: its id is in every rollout and ledger entry.",
                link=Link("The newest group", link("/group", id=newest)) if newest else None,
            ),
        ]
    summary = asked.row(_SUMMARY, group)
    if not summary:
        return [form, Notice(f"The group {group!r} is not known here.", "warning")]
    members = asked.rows(_MEMBERS, group)
    rewards = asked.rows(_REWARDS, group)
    declared = asked.row(_DECLARED, group)
    return [
        form,
        *state(summary, asked.row(_CLOSING, group)),
        figures(summary, declared, asked.now_ms),
        *([Text(pretty(str(summary["task"])), "Task")] if summary["task"] else []),
        Columns((spread(members, summary), named(members))),
        member_table(members, asked.rows(_CREDIT, group)),
        Columns(
            tuple(
                Text(
                    str(row["answer"] or "no answer"),
                    f"{tail(row['rollout_id'])}: reward {fixed(row['reward'])}",
                )
                for row in members
            ),
            least=360,
        ),
        *words(rewards),
        reward_table(rewards),
        Links((Link("its run", link("/runs", run=summary["run_id"])),))
        if summary["run_id"]
        else Links((Link("all rollouts", "/rollouts"),)),
    ]


def state(summary: Row, closing: Row) -> list[Notice]:
    """Whether the group teaches something."""
    found: list[Notice] = []
    if summary["ended"] < summary["rollouts"]:
        open_rollouts = summary["rollouts"] - summary["ended"]
        found.append(Notice(f"{count(open_rollouts, 'rollout')} of this group still open."))
    elif summary["scored"] < 2:
        found.append(
            Notice(
                "Fewer than two rollouts have a reward: there is no baseline to compare with.",
                "warning",
            )
        )
    elif (summary["reward_spread"] or 0) <= SMALLEST_SPREAD:
        found.append(
            Notice("All rewards are equal: this group has no signal and is not trained.", "warning")
        )
    if not closing and summary["mode"] != "val" and summary["ended"] == summary["rollouts"]:
        found.append(Notice("It is not closed yet: it waits for rewards, or for its deadline."))
    elif closing and closing["closings"] > 1:
        found.append(
            Notice(
                f"It was closed {number(closing['closings'])} times: late events changed it. The "
                "newest closing counts."
            )
        )
    return found


def figures(summary: Row, declared: Row, now: int) -> Figures:
    """The numbers of the group."""
    return Figures(
        (
            Figure("Rollouts", number(summary["rollouts"]), f"{number(summary['scored'])} scored"),
            Figure("Baseline", fixed(summary["mean_reward"]), "mean reward of the group"),
            Figure("Spread", fixed(summary["reward_spread"]), "greatest less smallest"),
            Figure("Deviation", fixed(summary["reward_deviation"]), "of its rewards"),
            Figure("Failed", number(summary["failed"]), "rollouts with a failure"),
            Figure("Credit rule", declared.get("credit_rule", NONE), "as declared"),
            Figure("Mode", str(summary["mode"]), str(summary["alias"] or "")),
            Figure("Began", ago(summary["began_at"], now)),
        )
    )


def spread(members: Sequence[Row], summary: Row) -> Chart:
    """Each rollout's reward against the baseline."""
    mean = summary["mean_reward"]
    return Chart(
        "Reward of each rollout",
        Axis("rollout", "category"),
        Axis("reward"),
        (
            Series(
                "reward", tuple((tail(row["rollout_id"]), row["reward"]) for row in members), "bar"
            ),
        ),
        () if mean is None else (Mark(mean, "baseline"),),
    )


def named(members: Sequence[Row]) -> Chart:
    """Each named reward of each rollout."""
    names = sorted({name for row in members for name in row["rewards"]})
    return Chart(
        "Named rewards",
        Axis("rollout", "category"),
        Axis("value, without its weight"),
        tuple(
            Series(
                name,
                tuple((tail(row["rollout_id"]), row["rewards"].get(name)) for row in members),
                "bar",
            )
            for name in names[:6]
        ),
    )


def member_table(members: Sequence[Row], credited: Sequence[Row]) -> Table:
    """The rollouts with what the learner makes of them."""
    by_rollout = {row["rollout_id"]: row for row in credited}

    def row_of(row: Row) -> tuple[Cell, ...]:
        credit = by_rollout.get(row["rollout_id"], {})
        return (
            cell(tail(row["rollout_id"]), link("/timeline", rollout=row["rollout_id"])),
            cell(row["outcome"], tone="bad" if row["failure"] else "plain"),
            cell(row["failure"], tone="bad"),
            cell(fixed(row["reward"])),
            cell(fixed(row["closed_reward"])),
            cell(credit.get("actions")),
            cell(fixed(credit.get("credit"))),
            cell(fixed(credit.get("advantage"))),
            cell(credit.get("mask") or row["tombstone"]),
            cell(row["version"], link("/step", version=row["version"]) if row["version"] else None),
        )

    return Table(
        (
            Column("Rollout"),
            Column("Outcome"),
            Column("Failure"),
            Column("Reward", number=True),
            Column("In the closing", number=True, note="After the rules for failures"),
            Column("Actions", number=True, note="That carry loss"),
            Column("Credit", number=True, note="Mean over its actions"),
            Column("Advantage", number=True, note="Credit less the group's mean; not divided"),
            Column("Not trained because"),
            Column("Version"),
        ),
        tuple(row_of(row) for row in members),
        "Rollouts",
    )


def words(rewards: Sequence[Row]) -> list[Block]:
    """What a judge or a reward function said."""
    said = [row for row in rewards if row["metadata"]]
    if not said:
        return []
    return [
        Columns(
            tuple(
                Text(str(row["metadata"]), f"{row['name']} on {tail(row['rollout_id'])}")
                for row in said
            )
        )
    ]


def reward_table(rewards: Sequence[Row]) -> Table:
    """Each reward with its source and error."""
    return Table(
        (
            Column("Rollout"),
            Column("Reward"),
            Column("Value", number=True),
            Column("Source"),
            Column("Error"),
        ),
        tuple(
            (
                cell(tail(row["rollout_id"]), link("/timeline", rollout=row["rollout_id"])),
                cell(row["name"]),
                cell(fixed(row["value"])),
                cell(row["source"]),
                cell(row["error"], tone="bad", most=300),
            )
            for row in rewards
        ),
        "Rewards",
        "No reward has come yet.",
    )


VIEW = View("/group", "Group", "Why this credit?", content, wide=True)
