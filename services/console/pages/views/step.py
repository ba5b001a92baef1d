"""Step: is the optimizer healthy?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from fulgurite.untrusted_json import Json, mapping, parsed
from services.console.pages.address import link
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
    Link,
    Links,
    Mark,
    Notice,
    Series,
    Table,
    Text,
    Tone,
)
from services.console.pages.formats import ago, cell, clock, count, number, size
from services.console.pages.reading import Asked, Row
from services.console.pages.view import View

_MOST = 200
"""Versions that the charts show, the newest."""

_POLICIES = """
SELECT policy, max(published_at) AS last_at FROM versions GROUP BY policy ORDER BY last_at DESC
"""

_VERSIONS = f"""
SELECT * FROM (
    SELECT * FROM versions WHERE policy = $1 ORDER BY epoch DESC, step DESC LIMIT {_MOST}
) ORDER BY epoch, step
"""

_CONFIG = """
SELECT config, learner_id, event_time FROM updates
WHERE policy = $1 AND kind = 'claim' AND epoch = $2 ORDER BY "offset" LIMIT 1
"""

_APPLIED = """
SELECT backend, outcome, event_time, seconds, probe_error, error FROM applied
WHERE version = $1 ORDER BY event_time
"""

_TERMS = """
SELECT term, CASE source WHEN 'offline' THEN source ELSE reason END AS why,
    sum(actions)::BIGINT AS actions
FROM ledger WHERE version = $1 GROUP BY term, why ORDER BY actions DESC, term, why
"""

CHARTS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("Loss", "loss", ("loss", "policy_loss"), ""),
    ("Entropy", "nats per token", ("entropy",), "It falls as the policy becomes sure."),
    (
        "KL to the base model",
        "nats per token",
        ("kl",),
        "Only with a KL term in the loss (`algorithm.kl`).",
    ),
    (
        "Disagreement of engine and trainer",
        "k3, nats per token",
        ("k3",),
        "Estimate of KL(engine ‖ trainer) over trained tokens.",
    ),
    (
        "Effective sample size",
        "share of trained tokens",
        ("ess",),
        "1: all tokens count alike. Low: a few tokens make the step.",
    ),
    ("Clipped tokens", "share of trained tokens", ("clip_fraction",), ""),
    ("Norm of the gradient", "before clipping", ("grad_norm",), ""),
    ("Learning rate", "learning rate", ("lr",), ""),
    ("Reward of the batch", "reward", ("reward_mean", "reward_std"), "Mean and deviation."),
    (
        "Groups that teach nothing",
        "share of groups",
        ("share_without_signal",),
        "All their rewards are equal.",
    ),
)
"""Title, unit, metrics and note of each chart."""

_AGES = "k3/age/"

Metrics = Mapping[str, float | None]
"""The metrics of a version by name; None: not finite."""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    policies = [str(row["policy"]) for row in asked.rows(_POLICIES)]
    version = asked.address.get("version")
    wanted = version.partition("@")[0] if version else asked.address.get("policy")
    if not policies:
        return [
            Notice(
                "No version is published yet. A learner publishes one as soon as a batch of groups "
                "with different rewards is complete.",
                commands=("fulgurite diagnose", "fulgurite ledger"),
            )
        ]
    policy = wanted if wanted in policies else policies[0]
    versions = asked.rows(_VERSIONS, policy)
    names = [str(row["version"]) for row in versions]
    chosen = next((row for row in versions if row["version"] == version), versions[-1])
    claim = asked.row(_CONFIG, policy, chosen["epoch"])
    unknown = (
        [Notice(f"{version} is not among the newest versions; the newest is shown.", "warning")]
        if version and version not in names
        else []
    )
    return [
        Filters(
            (
                Field("policy", "Policy", policy, tuple((name, name) for name in policies)),
                Field(
                    "version",
                    "Version",
                    str(chosen["version"]),
                    tuple((name, name) for name in reversed(names)),
                ),
            )
        ),
        *unknown,
        *alarms(chosen["metrics"], bounds(claim)),
        figures(chosen, asked.now_ms),
        neighbours(names, str(chosen["version"])),
        Columns(charts(versions, bounds(claim)), least=360),
        staleness(chosen),
        phases(versions),
        terms(asked.rows(_TERMS, chosen["version"]), str(chosen["version"])),
        applied(asked.rows(_APPLIED, chosen["version"])),
        metric_table(chosen["metrics"]),
        config(claim),
    ]


def settings_of(claim: Row) -> Json:
    """The settings that a learner published when it started; empty if they cannot be read."""
    try:
        return mapping(parsed(claim.get("config")))
    except ValueError:
        return {}


def bounds(claim: Row) -> dict[str, float]:
    """Where this learner's alarms for `k3` and `ess` are."""
    alarm = mapping(mapping(settings_of(claim).get("drift")).get("alarm"))
    return {
        name: float(value)
        for name in ("k3", "ess")
        if isinstance(value := alarm.get(name), (int, float))
    }


def alarms(metrics: Metrics, limits: Mapping[str, float]) -> list[Notice]:
    """Values that a person should look at."""
    found: list[Notice] = []
    k3, ess = metrics.get("k3"), metrics.get("ess")
    if "k3" in limits and k3 is not None and k3 > limits["k3"]:
        found.append(
            Notice(
                f"Engine and trainer disagree: k3 is {number(k3)}, above "
                f"drift.alarm.k3 = {number(limits['k3'])}.",
                "warning",
                ("fulgurite diagnose",),
            )
        )
    if "ess" in limits and ess is not None and ess < limits["ess"]:
        found.append(
            Notice(
                f"A few tokens make the step: the effective sample size is "
                f"{number(ess)}, below drift.alarm.ess = {number(limits['ess'])}.",
                "warning",
                ("fulgurite diagnose",),
            )
        )
    if (metrics.get("share_without_signal") or 0) > 0.8:
        found.append(
            Notice(
                "More than 80% of the groups had equal rewards and taught nothing. Take tasks that "
                "the policy solves sometimes, or more rollouts a group.",
                "warning",
            )
        )
    return found


def figures(version: Row, now: int) -> Figures:
    """The numbers of one step."""
    metrics: Metrics = version["metrics"]

    def figure(label: str, name: str, note: str, tone: Tone = "plain") -> Figure:
        return Figure(label, number(metrics.get(name)), note, tone)

    return Figures(
        (
            Figure(
                "Version", str(version["version"]), f"published {ago(version['published_at'], now)}"
            ),
            figure("Mean reward", "reward_mean", "of its batch's episodes"),
            figure("Loss", "loss", "with entropy bonus and KL term"),
            figure("Gradient norm", "grad_norm", "before clipping"),
            figure("Entropy", "entropy", "nats per token"),
            figure("k3", "k3", "engine against trainer, nats"),
            figure("Clipped", "clip_fraction", "share of tokens"),
            Figure(
                "Trained actions",
                number(version["trained_actions"]),
                f"of {count(int(metrics.get('episodes') or 0), 'episode')}",
            ),
            figure("Batch to version", "step_seconds", "seconds"),
            Figure(
                "Weights",
                size(version["artifact_bytes"]),
                version["artifact_format"] or "none written",
            ),
        )
    )


def neighbours(names: Sequence[str], chosen: str) -> Links:
    """Links to the versions beside, and to what this one said."""
    place = names.index(chosen)
    items = [
        Link(f"← {names[place - 1]}", link("/step", version=names[place - 1])) if place else None,
        Link(f"{names[place + 1]} →", link("/step", version=names[place + 1]))
        if place + 1 < len(names)
        else None,
        Link("what it answered", link("/rollouts", version=chosen)),
        Link("its lineage", link("/versions", policy=chosen.partition("@")[0])),
    ]
    return Links(tuple(item for item in items if item))


def charts(versions: Sequence[Row], limits: Mapping[str, float]) -> tuple[Chart, ...]:
    """The metrics of all versions; those that no version has are left out."""
    made: list[Chart] = []
    for title, unit, names, note in CHARTS:
        marks = tuple(Mark(limits[name], f"drift.alarm.{name}") for name in names if name in limits)
        series = tuple(
            Series(
                name,
                tuple((_label(row), row["metrics"].get(name)) for row in versions),
                addresses=tuple(link("/step", version=row["version"]) for row in versions),
            )
            for name in names
            if any(name in row["metrics"] for row in versions)
        )
        if series:
            made.append(
                Chart(
                    title,
                    Axis("version (epoch.step)", "category"),
                    Axis(unit),
                    series,
                    marks,
                    note,
                    height=220,
                )
            )
    return tuple(made)


def _label(row: Row) -> str:
    return f"{row['epoch']}.{row['step']}"


def staleness(version: Row) -> Chart:
    """How old the tokens of a batch were, and how much engine and trainer differ on them."""
    metrics: Metrics = version["metrics"]
    ages = sorted(
        int(name.removeprefix(_AGES))
        for name in metrics
        if name.startswith(_AGES) and name.removeprefix(_AGES).isdecimal()
    )
    return Chart(
        f"Staleness of {version['version']}",
        Axis("age of a token's version (steps)", "category"),
        Axis("k3 (nats per token)", low=0),
        (Series("k3", tuple((str(age), metrics[f"{_AGES}{age}"]) for age in ages), "bar"),),
        note="An age that is missing had no token in the batch.",
        height=200,
    )


def phases(versions: Sequence[Row]) -> Chart:
    """Seconds of each phase."""
    names = sorted(
        {name for row in versions for name in row["metrics"] if name.startswith("seconds/")}
    )
    return Chart(
        "Time of the learner by phase",
        Axis("version (epoch.step)", "category"),
        Axis("seconds", low=0),
        tuple(
            Series(
                name.removeprefix("seconds/"),
                tuple((_label(row), row["metrics"].get(name)) for row in versions),
                "bar",
                stack="phases",
            )
            for name in names
        ),
    )


def terms(rows: Sequence[Row], version: str) -> Table:
    """What the learner wrote into the ledger with this version."""
    return Table(
        (Column("Term"), Column("Reason"), Column("Actions", number=True)),
        tuple((cell(row["term"]), cell(row["why"]), cell(row["actions"])) for row in rows),
        f"Actions settled with {version}",
        "The ledger has no entry for this version.",
    )


def applied(rows: Sequence[Row]) -> Table:
    """Where it was loaded."""
    return Table(
        (
            Column("Backend"),
            Column("Outcome"),
            Column("When"),
            Column("Seconds", number=True),
            Column(
                "Probe", number=True, note="Largest difference of the probe's log-probabilities"
            ),
            Column("Error"),
        ),
        tuple(
            (
                cell(row["backend"]),
                cell(row["outcome"], tone="bad" if row["outcome"] == "failed" else "plain"),
                cell(clock(row["event_time"])),
                cell(row["seconds"]),
                cell(row["probe_error"]),
                cell(row["error"]),
            )
            for row in rows
        ),
        "Where it was loaded",
        "No backend has loaded this version.",
    )


def metric_table(metrics: Metrics) -> Table:
    """All metrics of the version."""
    return Table(
        (Column("Metric"), Column("Value", number=True)),
        tuple((cell(name), cell(value)) for name, value in sorted(metrics.items())),
        "All metrics (docs/reference/metrics.md)",
    )


def config(claim: Row) -> Text:
    """The settings of the learner that made it, which it published when it started."""
    found = settings_of(claim)
    return Text(
        json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False)
        if found
        else "The learner's settings are not in the log.",
        f"Settings of {claim.get('learner_id', 'the learner')}",
        folded=True,
    )


VIEW = View(
    "/step", "Step", "Is the optimizer healthy?", content, key="s", section="Training", wide=True
)
