"""Versions: which is best, what made it, is its artifact there, and can I go back?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from services.console.pages.address import link
from services.console.pages.blocks import (
    Axis,
    Block,
    Button,
    Buttons,
    Chart,
    Column,
    Field,
    Filters,
    Heading,
    Notice,
    Point,
    Series,
    Table,
    Tone,
)
from services.console.pages.formats import ago, cell, clock, fixed, number, share, size
from services.console.pages.reading import Asked, Row
from services.console.pages.view import View
from services.console.pages.window import choice_field

_SHOWN = 50
"""Versions of each policy that the table has, the newest."""

_POLICIES = "SELECT DISTINCT policy FROM versions ORDER BY policy"

_VERSIONS = f"""
SELECT * EXCLUDE (metrics) FROM versions
WHERE $1 IS NULL OR policy = $1
QUALIFY row_number() OVER (PARTITION BY policy ORDER BY epoch DESC, step DESC) <= {_SHOWN}
ORDER BY policy, epoch DESC, step DESC
"""

_SCORES = """
SELECT version, mode, count(reward) AS scored, avg(reward) AS mean,
    stddev_samp(reward) / sqrt(count(reward)) AS error
FROM rollouts
WHERE version IS NOT NULL AND reward IS NOT NULL
    AND (mode = 'train' OR (mode = 'val' AND versions = [version]))
    AND ($1 IS NULL OR policy = $1)
GROUP BY version, mode
"""

_SERVING = "SELECT version, backend FROM serving WHERE version IS NOT NULL ORDER BY backend"

_ROUTED = "SELECT alias, policy, version, share FROM current_routes WHERE upstream IS NULL"

_ALIASES = """
SELECT DISTINCT alias FROM calls WHERE policy = $1
UNION SELECT DISTINCT alias FROM current_routes WHERE policy = $1 ORDER BY alias
"""

_ONE = "SELECT * FROM versions WHERE version = $1"

_CHILDREN = "SELECT version FROM versions WHERE parent_version = $1 ORDER BY epoch, step LIMIT 20"

_BEHIND = """
SELECT coalesce(sum(actions), 0)::BIGINT AS actions, count(DISTINCT group_id) AS groups
FROM ledger WHERE version = $1 AND term = 'trained'
"""

Scores = Mapping[tuple[str, str], Row]
"""By version and mode."""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    policies = [row["policy"] for row in asked.rows(_POLICIES)]
    policy = asked.address.get("policy")
    if not policies:
        return [nothing_published()]
    scores = {(row["version"], row["mode"]): row for row in asked.rows(_SCORES, policy)}
    versions = asked.rows(_VERSIONS, policy)
    chosen = asked.address.get("version")
    return [
        Filters(
            (choice_field("policy", "Policy", policy, policies),), asked.address.kept("policy")
        ),
        *(chosen_version(asked, chosen, scores) if chosen is not None else ()),
        *curves(versions, scores),
        versions_table(
            asked, versions, scores, where_used(asked.rows(_SERVING), asked.rows(_ROUTED))
        ),
    ]


def nothing_published() -> Notice:
    """What to do where no version was published."""
    return Notice(
        "No version was published yet: a learner publishes one when it has trained on enough "
        "groups. This says what it waits for.",
        commands=("fulgurite diagnose",),
    )


def weights_state(uri: str | None) -> str:
    """Whether a version's weights are `there` or `pruned`; `elsewhere` if this machine cannot see
    where they were written.
    """
    location = urlparse(uri or "")
    if uri is None or location.scheme not in ("", "file"):
        return "elsewhere"
    path = Path(unquote(location.path))
    if path.is_file():
        return "there"
    # artifacts/<policy>/<version>/<file>: where the policy's folder is, the file should be.
    return "pruned" if path.parent.parent.is_dir() else "elsewhere"


def where_used(serving: Sequence[Row], routed: Sequence[Row]) -> dict[str, list[str]]:
    """By version: the backends that serve it, and its share of each alias."""
    used: dict[str, list[str]] = {}
    for row in serving:
        used.setdefault(row["version"], []).append(f"served by {row['backend']}")
    for row in routed:
        if row["version"] is not None:
            used.setdefault(row["version"], []).append(f"{row['alias']}: {share(row['share'])}")
    return used


def curves(versions: Sequence[Row], scores: Scores) -> list[Chart]:
    """Held-out and training rewards of each policy's versions, the oldest first."""
    charts: list[Chart] = []
    for policy in dict.fromkeys(row["policy"] for row in versions):
        names = [row["version"] for row in reversed(versions) if row["policy"] == policy]
        series = [
            _series(names, mode, title, scores)
            for mode, title in (("val", "held-out"), ("train", "training"))
            if any((name, mode) in scores for name in names)
        ]
        if series:
            charts.append(
                Chart(
                    f"Reward by version of {policy}",
                    Axis("version", "category"),
                    Axis("mean reward"),
                    tuple(series),
                    note="The bands are 95% intervals over rollouts.",
                )
            )
    return charts


def _series(names: Sequence[str], mode: str, title: str, scores: Scores) -> Series:
    points: list[Point] = []
    band: list[tuple[float | str, float, float]] = []
    for name in names:
        row, short_name = scores.get((name, mode)), name.partition("@")[2]
        # Without a value too, so that all series have the versions in one order.
        points.append((short_name, None if row is None else row["mean"]))
        if row is not None:
            reach = 1.96 * (row["error"] or 0.0)
            band.append((short_name, row["mean"] - reach, row["mean"] + reach))
    return Series(title, tuple(points), band=tuple(band), dashed=mode == "train")


def versions_table(
    asked: Asked, versions: Sequence[Row], scores: Scores, used: Mapping[str, list[str]]
) -> Table:
    """One row per version, the newest first."""
    best = {
        policy: max(
            (
                (scores[row["version"], "val"]["mean"], row["version"])
                for row in versions
                if row["policy"] == policy and (row["version"], "val") in scores
            ),
            default=(0.0, ""),
        )[1]
        for policy in {row["policy"] for row in versions}
    }
    return Table(
        (
            Column("Version"),
            Column("Published"),
            Column("From", note="The version that it was trained from"),
            Column("Trained actions", number=True),
            Column(
                "Held-out reward",
                number=True,
                note="Mean, with the number of rollouts that it alone answered",
            ),
            Column("Training reward", number=True, note="Of the rollouts that it answered"),
            Column("Served", note="Backends that serve it, and its share of routes"),
            Column("Weights"),
        ),
        tuple(
            (
                cell(row["version"], asked.address.but(version=row["version"])),
                cell(ago(row["published_at"], asked.now_ms)),
                cell(row["parent_version"] or "the base model"),
                cell(row["trained_actions"]),
                cell(
                    score(scores.get((row["version"], "val"))),
                    tone="good" if best[row["policy"]] == row["version"] else "plain",
                ),
                cell(score(scores.get((row["version"], "train")))),
                cell(", ".join(used.get(row["version"], [])) or None),
                cell(
                    weights_state(row["artifact_uri"]),
                    tone=_WEIGHTS.get(weights_state(row["artifact_uri"]), "plain"),
                ),
            )
            for row in versions
        ),
        "Versions",
    )


_WEIGHTS: Mapping[str, Tone] = {"there": "good", "pruned": "warning"}


def score(row: Row | None) -> str:
    """A mean reward with the number of rollouts."""
    return "–" if row is None else f"{fixed(row['mean'])} (n = {number(row['scored'])})"


def chosen_version(asked: Asked, name: str, scores: Scores) -> list[Block]:
    """One version: where it comes from, how to take it home, and what may be done with it."""
    row = asked.row(_ONE, name)
    if not row:
        return [Notice(f"{name} was never published.", "warning")]
    children = [child["version"] for child in asked.rows(_CHILDREN, name)]
    aliases = [one["alias"] for one in asked.rows(_ALIASES, row["policy"])] or [row["policy"]]
    return [
        Heading(name, f"published {clock(row['published_at'])} by {row['learner_id']}"),
        lineage_table(asked, row, children, asked.row(_BEHIND, name), scores),
        Notice(
            "Copy the weights, verified, or list the calls behind them.",
            commands=(f"fulgurite policy pull {name} my-model", f"fulgurite lineage {name}"),
        ),
        buttons(name, row["policy"], aliases),
    ]


def lineage_table(
    asked: Asked, row: Row, children: Sequence[str], behind: Row, scores: Scores
) -> Table:
    """What a version was made from, and what was made from it."""
    parent = row["parent_version"]
    method = f", offline ({row['offline_method']})" if row["offline_method"] else ""
    lines = (
        ("Trained from", parent or "the base model", parent and asked.address.but(version=parent)),
        (
            "Trained on",
            f"{number(row['trained_actions'])} actions{method}; the ledger has "
            f"{number(behind['actions'])} of {number(behind['groups'])} groups",
            None,
        ),
        ("Versions trained from it", ", ".join(children) or None, None),
        ("Held-out reward", score(scores.get((row["version"], "val"))), None),
        ("Training reward", score(scores.get((row["version"], "train"))), None),
        (
            "Weights",
            f"{weights_state(row['artifact_uri'])}, {size(row['artifact_bytes'])}: "
            f"{row['artifact_uri'] or '–'}",
            None,
        ),
        ("SHA-256", row["artifact_sha256"], None),
        ("Metrics of the step", "loss, entropy, drift …", link("/step", version=row["version"])),
    )
    return Table(
        (Column("What"), Column("Value")),
        tuple((cell(what), cell(value, address, most=200)) for what, value, address in lines),
    )


def buttons(version: str, policy: str, aliases: Sequence[str]) -> Buttons:
    """What may be done with a version."""
    alias = Field("alias", "Alias", aliases[0], tuple((one, one) for one in aliases))
    reason = Field("reason", "Reason, for people who read the route later")
    return Buttons(
        (
            Button(
                "Promote",
                "promote",
                f"Have {version} serve all calls of the alias, until it is promoted over or rolled "
                "back?",
                (("version", version),),
                (alias, reason),
            ),
            Button(
                "Canary",
                "canary",
                f"Give {version} a share of the alias's rollouts? The rest stays with what serves "
                "them now.",
                (("version", version),),
                (alias, Field("share", "Share, from 0 to 1", "0.1", kind="number"), reason),
            ),
            Button(
                "Roll back",
                "roll_back",
                "Return the alias to what served it before its last route?",
                (("policy", policy),),
                (alias, reason),
                "warning",
            ),
        )
    )


VIEW = View(
    "/versions",
    "Versions",
    "Which is best, what made it, and can I go back?",
    content,
    key="v",
    section="Training",
)
