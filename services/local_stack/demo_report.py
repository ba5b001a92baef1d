"""The report of a demo run: its values, its chart as PNG and its last screen."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from fulgurite.learning.intervals import Estimate
from services.local_stack.samples import Sample
from services.runner.progress import bar
from services.runner.scoreboard import CurvePoint

_BAR = 40

Interval = tuple[float | None, float | None]
"""Bounds; None where the rewards were too equal to tell."""


class LedgerReport(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger's balance at the end of the run."""

    actions: int
    terms: dict[str, int]
    remainder: int


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each phase."""

    install: float
    warm_start: float
    start: float
    train: float
    evaluate: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`. Rewards are means over held-out tasks; `*_interval` their 95% intervals."""

    title: str
    seed: int
    control: bool
    reward_before: float
    reward_before_interval: Interval
    reward_after: float
    reward_after_interval: Interval
    greedy_before: float
    greedy_before_interval: Interval
    greedy_after: float
    greedy_after_interval: Interval
    components_before: dict[str, float]
    components_after: dict[str, float]
    """Means of the reward's parts, sampled, held out."""
    held_out: int
    updates: int
    version: str
    first_rollout_to_last_update_s: float
    idle_share: float | None
    """Share of that time in which no call was in flight and no step was running; None without an
    update.
    """
    curve: list[CurvePoint]
    updated_at_s: list[float]
    rollouts: dict[str, int]
    calls: int
    trajectories: int
    ledger: LedgerReport
    phases: Phases
    peak_memory_mib: int
    samples: tuple[Sample, ...] = ()
    """The highest-rewarded sampled answers after training."""


class Scores(msgspec.Struct, frozen=True):
    """Held-out scores at one time."""

    sampled: Estimate
    greedy: Estimate
    components: dict[str, float]
    """Of the sampled answers."""
    run_id: str
    """Of the sampled answers."""


def draw_chart(report: Report, path: Path) -> None:
    """The learning curve as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=130)  # pyright: ignore[reportUnknownMemberType]
    steps = list(range(len(report.curve)))
    rewards = [point.reward for point in report.curve]
    axes.plot(steps, rewards, marker="o", label="training")  # pyright: ignore[reportUnknownMemberType]
    ends = [0, report.updates]
    for label, values, marker in (
        ("held out, sampled", [report.reward_before, report.reward_after], "s"),
        ("held out, greedy", [report.greedy_before, report.greedy_after], "^"),
    ):
        axes.plot(ends, values, marker=marker, linestyle=":", label=label)  # pyright: ignore[reportUnknownMemberType]
    kind = ", rewards permuted (control)" if report.control else ""
    axes.set(
        xlabel="updates",
        ylabel="mean reward",
        ylim=(-0.02, 1.02),
        title=f"{report.title}, seed {report.seed}{kind}",
    )  # pyright: ignore[reportUnknownMemberType]
    axes.set_xticks(range(report.updates + 1))  # pyright: ignore[reportUnknownMemberType]
    axes.grid(alpha=0.3)  # pyright: ignore[reportUnknownMemberType]
    axes.legend()  # pyright: ignore[reportUnknownMemberType]
    figure.tight_layout()
    figure.savefig(path)  # pyright: ignore[reportUnknownMemberType]
    pyplot.close(figure)


def show(report: Report, console: Console, places: dict[str, Path]) -> None:
    """The last screen."""
    console.rule("learning curve (training tasks, sampled)")
    for point in report.curve:
        console.print(
            f"{point.version:>14}  {bar(point.reward, _BAR)}  {point.reward:.2f}",
            highlight=False,
            markup=False,
        )
    console.rule(f"held-out tasks (n = {report.held_out})")
    table = Table("", "before", "after", box=None, padding=(0, 3, 0, 0))
    table.add_row(
        "sampled",
        _scored(report.reward_before, report.reward_before_interval),
        _scored(report.reward_after, report.reward_after_interval),
    )
    table.add_row(
        "greedy",
        _scored(report.greedy_before, report.greedy_before_interval),
        _scored(report.greedy_after, report.greedy_after_interval),
    )
    for name, mean in report.components_before.items():
        table.add_row(
            f"  {name}, sampled", f"{mean:.3f}", f"{report.components_after.get(name, 0.0):.3f}"
        )
    console.print(table)
    console.rule("ledger: what became of every action")
    ledger = Table(show_header=False, box=None, padding=(0, 3, 0, 0))
    ledger.add_row("actions in llm.calls", str(report.ledger.actions))
    for term, count in sorted(report.ledger.terms.items()):
        ledger.add_row(f"  {term}", str(count))
    ledger.add_row("remainder", str(report.ledger.remainder))
    console.print(ledger)
    console.rule("where and how long")
    phases = report.phases
    facts = Table(show_header=False, box=None, padding=(0, 3, 0, 0))
    facts.add_row(
        "updates",
        f"{report.updates}, now {report.version}; first rollout to last update "
        f"{report.first_rollout_to_last_update_s:.0f} s{_idle(report.idle_share)}",
    )
    facts.add_row("recorded", f"{report.calls} calls, {report.trajectories} trajectories")
    facts.add_row(
        "seconds",
        f"install {phases.install:.0f}, warm start {phases.warm_start:.0f}, "
        f"start {phases.start:.0f}, train {phases.train:.0f}, evaluate {phases.evaluate:.0f}",
    )
    facts.add_row("memory", f"{report.peak_memory_mib} MiB at most, all processes together")
    for name, place in places.items():
        facts.add_row(name, str(place))
    console.print(facts)


def _idle(share: float | None) -> str:
    return "" if share is None else f", {share:.0%} of it idle"


def _scored(mean: float, interval: Interval) -> str:
    low, high = interval
    return (
        f"{mean:.3f}  (no interval)"
        if low is None or high is None
        else f"{mean:.3f}  [{low:.3f}, {high:.3f}]"
    )
