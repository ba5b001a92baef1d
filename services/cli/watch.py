"""Defines the command `fulgurite watch`: shows a run while it goes on, from the log."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import Annotated, Self

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS, EPISODES, POLICY_UPDATES, TRAINING_LEDGER
from fulgurite.untrusted_json import encoded
from services.cli.errors import report_errors
from services.cli.watch_state import RECENT, RolloutState, Sample, WatchedRun, WatchState
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.log_follower import LogFollower
from services.common.kafka.reachability import answering
from services.common.kafka.settings import KafkaSettings
from services.common.runtime.escaping import escaped_json
from services.common.runtime.interrupts import interrupts_noted
from services.common.runtime.terminal import make_console, plain
from services.replay.errors import NotFound
from services.replay.timeline import shortened
from services.replay.windows import parse_since
from services.runner.progress import bar
from services.runner.scoreboard import CurvePoint

_TOPICS = (AGENT_STATUS, EPISODES, AGENT_REWARDS, TRAINING_LEDGER)
_POLL_S = 0.2
_LIVE_EVERY_S = 0.5
_PLAIN_EVERY_S = 10.0
_CURVE = 12
"""Versions of the curve that are shown, the newest."""

_STYLES = {
    RolloutState.rolling_out: "cyan",
    RolloutState.waiting: "blue",
    RolloutState.trained: "green",
    RolloutState.stale: "yellow",
    RolloutState.without_signal: "magenta",
    RolloutState.errored: "red",
    RolloutState.left_out: "dim",
}


def watch(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Id of a run, as `fulgurite run` prints it. Without it, the run that was declared "
            "last, or where none has an id, all declared groups.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Begin with records from this time on: an age (90s, 30m, 24h, 7d), or an ISO time "
            "in UTC.",
        ),
    ] = "24h",
    once: Annotated[bool, typer.Option("--once", help="Print how it stands, and stop.")] = False,
    every: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Seconds between lines without a terminal."),
    ] = _PLAIN_EVERY_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead.")] = False,
) -> None:
    """Watch a run: what its rollouts are doing, its curve, and its newest samples, until stopped.

    Rollouts are rolling out, waiting (for a reward, their group or the learner), trained, stale,
    without signal, errored, or left out for another reason. Without a terminal it prints a line
    every --every seconds when something has changed. Exits 1 if there is no such run, 2 if the log
    cannot be read.

    Example: `fulgurite watch --since 1h`
    """
    with report_errors("watch"), suppress(KeyboardInterrupt), interrupts_noted() as stop:
        kafka, codec = answering(KafkaSettings()), make_codec()
        since_ms = parse_since(since)
        state = WatchState()
        with (
            LogFollower(kafka, codec, [POLICY_UPDATES], newest=0) as updates,
            LogFollower(kafka, codec, _TOPICS, since_ms=since_ms) as follower,
        ):
            # All of them: the policy's newest version may be old. They are read once `updates` has
            # its place, so that none comes between.
            for record in read_all(kafka, POLICY_UPDATES, codec):
                state.add(record.event)
            for _, record in follower.records(stop, once=True):
                state.add(record.event)
            if run is not None and run not in state:
                raise NotFound(
                    f"no group of the run {run!r} was declared since {since}: give an earlier "
                    "--since, or see `fulgurite rollouts list`"
                )
            screen = _Screen(make_console(), as_json=as_json)
            if once:
                screen.show(state.shown(run or state.newest_run))
                return
            pause_s = _LIVE_EVERY_S if screen.is_live else every
            with screen:
                has_changed, due = True, 0.0
                while not stop.is_set():
                    if has_changed and time.monotonic() >= due:
                        screen.show(state.shown(run or state.newest_run))
                        has_changed, due = False, time.monotonic() + pause_s
                    for _, record in (*follower.poll(_POLL_S), *updates.poll(0)):
                        state.add(record.event)
                        has_changed = True


class _Screen:
    """Shows a run again and again: in place on a terminal, else as lines.

    Use it in a `with` block to draw in place.
    """

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self.is_live = console.is_terminal and not as_json
        self._console = console
        self._as_json = as_json
        self._samples: set[Sample] = set()
        """Those that were printed."""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Begin to draw in place, on a terminal."""
        if self.is_live:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Leave the last picture there."""
        if self._live is not None:
            self._live.stop()

    def show(self, run: WatchedRun) -> None:
        """Show how it stands."""
        if self._as_json:
            print(escaped_json(encoded(run).decode()), flush=True)
        elif self._live is not None:
            self._live.update(render(run, self._console.width), refresh=True)
        elif self.is_live:
            self._console.print(render(run, self._console.width))
        else:
            self._print_lines(run)

    def _print_lines(self, run: WatchedRun) -> None:
        """Print the status, and samples that were not printed."""
        self._console.print(status_line(run))
        for sample in run.samples:
            if sample not in self._samples:
                reward = "no reward yet" if sample.reward is None else f"reward {sample.reward:g}"
                said = plain(shortened(sample.answer, 100))
                self._console.print(f"  {plain(sample.rollout_id)}: {said} ({reward})")
        self._samples = set(run.samples)


def status_line(run: WatchedRun) -> Text:
    """Write the run in one line."""
    line = Text(f"{run.run_id or 'all declared groups'}: " if run.rollouts else "")
    if not run.rollouts:
        line.append("no rollout was declared yet: start one with `fulgurite run`")
        return line
    line.append(f"{run.rollouts} rollouts")
    for state, count in run.states.items():
        if count:
            line.append("  ")
            line.append(f"{count} {state}", style=_STYLES[RolloutState(state)])
    for mode, scores in run.scores.items():
        if scores.reward is not None:
            line.append(f"  reward {scores.reward:.3f} ({mode}, last {RECENT})")
    if run.version is not None:
        line.append(f"  {run.version}")
    return line


def render(run: WatchedRun, width: int) -> RenderableType:
    """Draw status, curve and samples."""
    parts: list[RenderableType] = [status_line(run)]
    parts += [
        _curve(mode, scores.curve[-_CURVE:]) for mode, scores in run.scores.items() if scores.curve
    ]
    if run.samples:
        text = max(16, (width - 44) // 2)
        table = Table("rollout", "reward", "task", "last answer", title="newest samples", box=None)
        for sample in reversed(run.samples):
            table.add_row(
                plain(sample.rollout_id[-14:]),
                "–" if sample.reward is None else f"{sample.reward:.3g}",
                plain(shortened(sample.task, text)),
                plain(shortened(sample.answer, text)),
            )
        parts.append(table)
    return Group(*parts)


def _curve(mode: str, points: list[CurvePoint]) -> Table:
    title = f"reward by version ({mode})"
    table = Table("version", "mean reward", "", "rollouts", title=title, box=None)
    low = min(0.0, *(point.reward for point in points))
    high = max(1.0, *(point.reward for point in points))
    for point in points:
        share = (point.reward - low) / (high - low)
        table.add_row(plain(point.version), f"{point.reward:.3f}", bar(share), str(point.rollouts))
    return table
