"""Runs: is it learning?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from fulgurite.groups.rewards import SMALLEST_SPREAD
from fulgurite.versions import Version
from services.console.pages.address import Address, link
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
    Notice,
    Series,
    Table,
)
from services.console.pages.curves import curve, estimates, label, version_of
from services.console.pages.formats import (
    NONE,
    ago,
    cell,
    clock,
    count,
    fixed,
    milliseconds,
    number,
    seconds,
    share,
)
from services.console.pages.reading import Asked, Row
from services.console.pages.view import View

_MOST_RUNS = 50
_MOST_COMPARED = 6
"""As many as can be told apart in one chart."""

_RUNS = f"""
SELECT runs.*, cost.money, cost.currency
FROM runs
LEFT JOIN (
    SELECT run_id, sum(money) AS money, any_value(currency) AS currency FROM costs GROUP BY run_id
) AS cost USING (run_id)
QUALIFY row_number() OVER (ORDER BY last_at DESC, run_id) <= {_MOST_RUNS}
    OR run_id IN (SELECT unnest($1::VARCHAR[]))
ORDER BY last_at DESC, run_id
"""
"""The newest runs, and those that the address names."""

_REWARDS = """
SELECT run_id, mode, version, sum(scored)::BIGINT AS count, sum(total) / sum(scored) AS mean,
    count(*) AS groups, max(scored) AS largest, bool_and(is_binary) AS is_binary,
    max(group_mean) = min(group_mean) AS is_alike,
    stddev_samp(group_mean) / sqrt(count(*)) AS standard_error
FROM (
    SELECT run_id, mode, version, count(*) AS scored, sum(reward) AS total,
        avg(reward) AS group_mean, bool_and(reward IN (0, 1)) AS is_binary
    FROM rollouts
    WHERE run_id IN (SELECT unnest($1)) AND reward IS NOT NULL AND version IS NOT NULL
    GROUP BY run_id, mode, version, group_id
)
GROUP BY run_id, mode, version
"""
"""What `GroupedValues` has, by version."""

_ENDED = """
SELECT group_id, min(began_at) AS began_at, count(reward) AS scored,
    first(version ORDER BY began_at, rollout_id) FILTER (version IS NOT NULL) AS version,
    max(reward) - min(reward) AS spread
FROM rollouts WHERE run_id = $1 AND mode = 'train'
GROUP BY group_id HAVING bool_and(outcome <> 'open')
"""
"""The groups of a run that have ended. A group counts once, with the version that began it."""

_FLAT = f"(scored < 2 OR spread <= {SMALLEST_SPREAD})"
"""Whether a group has no two rewards that differ."""

_SIGNAL = f"""
SELECT version, count(*) AS groups, count(*) FILTER ({_FLAT}) AS flat
FROM ({_ENDED}) GROUP BY version
"""

_NEWEST_SIGNAL = f"""
SELECT count(*) AS groups, count(*) FILTER ({_FLAT}) AS flat
FROM (SELECT * FROM ({_ENDED}) WHERE scored > 1 ORDER BY began_at DESC, group_id DESC LIMIT 32)
"""

_NAMED = """
SELECT version, name, avg(value) AS mean FROM (
    SELECT version, unnest(map_entries(rewards)).key AS name,
        unnest(map_entries(rewards)).value AS value
    FROM rollouts WHERE run_id = $1 AND mode = 'train' AND version IS NOT NULL
) GROUP BY version, name
"""

_FAILURES = """
SELECT version, failure, count(*) AS rollouts
FROM rollouts WHERE run_id = $1 AND version IS NOT NULL AND outcome <> 'open'
GROUP BY version, failure
"""

_REASONS = """
SELECT reward_reason AS reason, count(*) AS rollouts
FROM rollouts WHERE run_id = $1 AND outcome <> 'open' AND reward IS NULL
GROUP BY reason ORDER BY rollouts DESC
"""

_PHASES = """
SELECT version, metric, value FROM version_metrics
WHERE metric LIKE 'seconds/%' AND version IN (
    SELECT DISTINCT version FROM rollouts WHERE run_id = $1 AND version IS NOT NULL
)
ORDER BY epoch, step
"""


def content(asked: Asked) -> Sequence[Block]:
    """The page."""
    runs = asked.rows(_RUNS, named_runs(asked.address))
    if not runs:
        return [
            Notice(
                "There is no run yet. A run gives an agent tasks, in groups of rollouts, and "
                "rewards each rollout.",
                commands=("make demo", "fulgurite run --help"),
            )
        ]
    known = [str(row["run_id"]) for row in runs]
    chosen = asked.address.get("run")
    compared = chosen_runs(asked.address, known)
    earned = asked.rows(_REWARDS, compared)
    if chosen is None or chosen not in known:
        unknown = [Notice(f"The run {chosen!r} is not known here.", "warning")] if chosen else []
        return [
            *unknown,
            comparison(earned, compared),
            run_table(runs, asked.address, compared, asked.now_ms),
        ]
    own = [row for row in earned if row["run_id"] == chosen]
    others = [comparison(earned, compared)] if len(compared) > 1 else []
    run = next(row for row in runs if row["run_id"] == chosen)
    signal = asked.rows(_SIGNAL, chosen)
    return [
        Filters(
            (
                Field("run", "Run", chosen, tuple((name, name) for name in known)),
                Field("with", "Compare with", asked.address.get("with") or "", kind="search"),
            )
        ),
        figures(run, signal, asked.now_ms),
        *verdict(asked.row(_NEWEST_SIGNAL, chosen), asked.rows(_REASONS, chosen)),
        *others,
        Columns(
            (
                rewards(own),
                named_rewards(asked.rows(_NAMED, chosen)),
                without_signal(signal),
                failures(asked.rows(_FAILURES, chosen)),
                phases(asked.rows(_PHASES, chosen)),
            ),
            least=420,
        ),
        Links(
            (
                Link("its rollouts", link("/rollouts", run=chosen)),
                Link("where its actions went", link("/funnel", run=chosen)),
                Link("its learner", link("/step", policy=str(run["policy"] or ""))),
            ),
            "More of this run:",
        ),
    ]


def named_runs(address: Address) -> list[str]:
    """The runs that the address names, each once."""
    named = [address.get("run") or "", *(address.get("with") or "").split(",")]
    return list(dict.fromkeys(name.strip() for name in named))


def chosen_runs(address: Address, known: Sequence[str]) -> list[str]:
    """The runs that are compared: those that the address names, or the newest."""
    found = [name for name in named_runs(address) if name in known]
    return (found or list(known))[:_MOST_COMPARED]


def run_table(runs: Sequence[Row], address: Address, compared: Sequence[str], now: int) -> Table:
    """A table of runs, the newest first."""
    wanted: Sequence[str] = compared if address.get("with") else ()

    def toggle(run: str) -> Cell:
        rest = [name for name in wanted if name != run]
        names = rest if run in wanted else [*wanted, run]
        text = "remove" if run in wanted else "compare"
        return Cell(text, address.but(**{"with": ",".join(names) or None}))

    return Table(
        (
            Column("Run"),
            Column("Began"),
            Column("Last sign"),
            Column("Groups", number=True),
            Column("Rollouts", number=True),
            Column("Failed", number=True),
            Column("Reward, train", number=True, note="Mean over its rollouts"),
            Column("Reward, held out", number=True, note="Mean over its rollouts of mode val"),
            Column("Tokens", number=True, note="Prompts and answers of its calls"),
            Column("Cost", number=True, note="Where the price file has a price"),
            Column("Chart"),
        ),
        tuple(
            (
                cell(row["run_id"], link("/runs", run=row["run_id"])),
                cell(clock(row["began_at"])),
                cell(ago(row["last_at"], now)),
                cell(row["groups"]),
                cell(row["rollouts"]),
                cell(share(row["failed"], row["rollouts"])),
                cell(fixed(row["mean_train_reward"])),
                cell(fixed(row["mean_val_reward"])),
                cell(row["prompt_tokens"] + row["completion_tokens"]),
                cell(money(row)),
                toggle(str(row["run_id"])),
            )
            for row in runs
        ),
        "Runs",
    )


def money(row: Row) -> str:
    """What a run cost, where prices are known."""
    return NONE if row["money"] is None else f"{row['money']:.2f} {row['currency']}"


def comparison(earned: Sequence[Row], runs: Sequence[str]) -> Chart:
    """The training curves of several runs over one another."""
    return Chart(
        "Training reward, runs compared",
        Axis("version of the run, counted from its first", whole=True),
        Axis("mean reward"),
        tuple(
            curve(
                run,
                estimates(row for row in earned if row["run_id"] == run and row["mode"] == "train"),
                counted=True,
                colour=place,
            )
            for place, run in enumerate(runs)
        ),
        note="Bands are 95% intervals over groups.",
    )


def figures(run: Row, signal: Sequence[Row], now: int) -> Figures:
    """The numbers of a run."""
    groups, flat = (sum(row[name] for row in signal) for name in ("groups", "flat"))
    began, last = milliseconds(run["began_at"]), milliseconds(run["last_at"])
    lasted = None if began is None or last is None else (last - began) / 1000
    return Figures(
        (
            Figure(
                "Rollouts",
                number(run["rollouts"]),
                f"{number(run['open'])} open",
                address=link("/rollouts", run=run["run_id"]),
            ),
            Figure("Mean reward, train", fixed(run["mean_train_reward"]), "over all versions"),
            Figure("Mean reward, held out", fixed(run["mean_val_reward"]), "mode val"),
            Figure(
                "Groups without signal",
                share(flat, groups),
                f"{number(flat)} of {count(groups, 'group')} that ended",
                "warning" if flat > groups / 2 else "plain",
            ),
            Figure(
                "Failed rollouts",
                share(run["failed"], run["rollouts"]),
                count(run["failed"], "rollout"),
                "warning" if run["failed"] else "good",
            ),
            Figure(
                "Tokens",
                number(run["prompt_tokens"] + run["completion_tokens"]),
                f"{number(run['completion_tokens'])} generated",
            ),
            Figure("Cost", money(run), "by the price file"),
            Figure("Lasted", seconds(lasted), f"last sign {ago(run['last_at'], now)}"),
        )
    )


def verdict(newest: Row, missing: Sequence[Row]) -> list[Notice]:
    """What keeps this run from learning, if that can be seen."""
    found: list[Notice] = []
    for row in missing:
        why = "their reward function failed" if row["reason"] == "reward_failed" else "none came"
        found.append(
            Notice(
                f"{count(row['rollouts'], 'rollout')} ended without a reward: {why}.",
                "warning",
                ("fulgurite diagnose",),
            )
        )
    if newest["flat"] == newest["groups"] >= 8:
        found.append(
            Notice(
                f"The rewards are equal in each of the newest {newest['groups']} groups: there is "
                "nothing to compare, and nothing is learned.",
                "bad",
                ("fulgurite diagnose",),
            )
        )
    return found


def rewards(earned: Sequence[Row]) -> Chart:
    """The curve of a run, and its held-out scores."""
    curves = [
        curve(
            title,
            estimates(row for row in earned if row["mode"] == mode),
            dashed=mode == "val",
            colour=place,
        )
        for place, (mode, title) in enumerate((("train", "training"), ("val", "held out")))
    ]
    return Chart(
        "Reward by version",
        Axis("version (epoch.step)", "category"),
        Axis("mean reward"),
        in_order([series for series in curves if series.points]),
        note="Bands are 95% intervals over groups. Click on a point for its step.",
    )


def in_order(series: Sequence[Series]) -> tuple[Series, ...]:
    """Series over categories, the one with the most points first: it sets their order."""
    return tuple(sorted(series, key=lambda one: -len(one.points)))


def by_version(
    rows: Iterable[Row], name: str, value: str
) -> tuple[list[str], Mapping[str, Mapping[str, float]]]:
    """Values by name and by the label of their version, and the labels in order."""
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    versions: dict[Version, str] = {}
    for row in rows:
        version = version_of(row["version"])
        if version is not None and row[value] is not None:
            versions[version] = label(version)
            found[str(row[name])][label(version)] = float(row[value])
    return [versions[version] for version in sorted(versions)], found


def named_rewards(rows: Sequence[Row]) -> Chart:
    """Each named reward by version."""
    labels, values = by_version(rows, "name", "mean")
    names = sorted(values)[:_MOST_COMPARED]
    return Chart(
        "Named rewards by version",
        Axis("version (epoch.step)", "category"),
        Axis("mean, without its weight"),
        tuple(
            Series(name, tuple((text, values[name].get(text)) for text in labels)) for name in names
        ),
    )


def without_signal(signal: Sequence[Row]) -> Chart:
    """The share of groups that teach nothing, by version."""
    found = {version: row for row in signal if (version := version_of(row["version"])) is not None}
    return Chart(
        "Groups without signal",
        Axis("version (epoch.step)", "category"),
        Axis("share of groups (%)", low=0, high=100),
        (
            Series(
                "no rewards that differ",
                tuple(
                    (label(version), 100 * row["flat"] / row["groups"])
                    for version, row in sorted(found.items())
                ),
                "bar",
            ),
        ),
    )


def failures(rows: Sequence[Row]) -> Chart:
    """What went wrong, by version."""
    labels, values = by_version(rows, "failure", "rollouts")
    totals = {text: sum(kind.get(text, 0) for kind in values.values()) for text in labels}
    kinds = sorted(
        (kind for kind in values if kind != "None"), key=lambda kind: -sum(values[kind].values())
    )
    return Chart(
        "Failed rollouts by kind",
        Axis("version (epoch.step)", "category"),
        Axis("share of rollouts (%)", low=0),
        tuple(
            Series(
                kind,
                tuple((text, 100 * values[kind].get(text, 0) / totals[text]) for text in labels),
                "bar",
                stack="failures",
            )
            for kind in kinds[:_MOST_COMPARED]
        ),
        legend=True,
    )


def phases(rows: Sequence[Row]) -> Chart:
    """Where the learner's time went, by version."""
    labels, values = by_version(rows, "metric", "value")
    return Chart(
        "Time of the learner by phase",
        Axis("version (epoch.step)", "category"),
        Axis("seconds", low=0),
        tuple(
            Series(
                name.removeprefix("seconds/"),
                tuple((text, values[name].get(text)) for text in labels),
                "bar",
                stack="phases",
            )
            for name in sorted(values, key=lambda name: -sum(values[name].values()))
        ),
    )


VIEW = View(
    "/runs",
    "Runs",
    "Is it learning?",
    content,
    key="r",
    section="Training",
    wide=True,
)
