"""Shows a run: one live line on a terminal, plain lines elsewhere, or JSON lines for programs.

JSON lines are objects with the field `event`: `rollout`, `update`, `warning`, `progress` (at most
once a second), `summary`, and `error` if the run cannot continue.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fulgurite.versions import Version
from services.runner.rollout import Attempt
from services.runner.run import Run
from services.runner.scoreboard import CurvePoint
from services.runner.summary import Summary

RECENT = 48
"""How many rollouts the reward of the live line averages: one default batch, eight groups of six.
"""

_EVERY_S = 1.0
_PLAIN_EVERY_S = 30.0
"""Seconds between lines where there is no terminal."""


def describe(run: Run) -> str:
    """Return the live line: share done, step, reward, version, rollouts per second."""
    reward = run.board.recent(RECENT)
    total = f"/{run.options.updates}" if run.options.updates is not None else ""
    parts = [
        *([bar(run.share)] if run.share is not None else []),
        *([f"step {run.updates}{total}"] if run.options.waits_for_learner else []),
        f"reward {reward:.2f}" if reward is not None else "reward –",
        str(run.pace.served),
        f"{run.ended / max(run.seconds, 1e-3):.1f} rollouts/s",
        f"{run.running} running, {run.ended} ended, {run.groups} groups",
        f"{run.seconds:.0f} s",
    ]
    return "  ".join(parts)


def bar(share: float, width: int = 20) -> str:
    """Draw a share from 0 to 1 as a bar of `width` characters."""
    filled = round(share * width)
    return "█" * filled + "·" * (width - filled)


class JsonWatcher:
    """Writes JSON lines."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._next = 0.0

    def on_change(self, run: Run) -> None:
        """Write at most one line a second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY_S
        self._write_event(
            "progress",
            step=run.updates,
            reward=run.board.recent(RECENT),
            version=str(run.pace.served),
            groups=run.groups,
            running=run.running,
            ended=run.ended,
            seconds=round(run.seconds, 2),
        )

    def on_attempt(self, attempt: Attempt) -> None:
        """Write a line for an attempt."""
        self._write_event(
            "rollout",
            rollout_id=attempt.grant.rollout_id,
            attempt=attempt.grant.attempt,
            status=attempt.exit_class.kind.value,
            failure=attempt.exit_class.failure,
            message=attempt.exit_class.message,
            exit_code=attempt.exit_code,
            seconds=round(attempt.seconds, 3),
            output=attempt.output,
        )

    def on_update(self, version: Version, point: CurvePoint | None) -> None:
        """One line an update."""
        self._write_event("update", version=str(version), before=msgspec.to_builtins(point))

    def on_warning(self, text: str) -> None:
        """Write a line for a warning."""
        self._write_event("warning", text=text)

    def finish(self, summary: Summary) -> None:
        """Write the summary, which only `error` may follow."""
        self._write_event("summary", **msgspec.to_builtins(summary))

    def _write_event(self, event: str, **values: Any) -> None:
        self._write(json.dumps({"event": event, **values}))


class TerminalWatcher:
    """Shows a live line; without a terminal, a line every 30 seconds.

    Updates, warnings and the first failure of each kind get lines of their own.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(
            console=console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._next = 0.0 if console.is_terminal else time.monotonic() + _PLAIN_EVERY_S
        self._failures: set[str] = set()

    def __enter__(self) -> TerminalWatcher:
        if self._console.is_terminal:
            self._live.start(refresh=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_change(self, run: Run) -> None:
        """Update the live line; without a terminal, write one twice a minute."""
        if time.monotonic() < self._next:
            return
        line = f"{self._title}  {describe(run)}"
        if self._console.is_terminal:
            self._next = time.monotonic() + _EVERY_S / 4
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        else:
            self._next = time.monotonic() + _PLAIN_EVERY_S
            self._console.print(Text(line), soft_wrap=True)

    def on_attempt(self, attempt: Attempt) -> None:
        """Show the first failure of each kind."""
        kind = attempt.exit_class.failure
        if kind is not None and kind.value not in self._failures:
            self._failures.add(kind.value)
            self._console.print(
                f"first {kind.value}, rollout {attempt.grant.rollout_id}: "
                f"{attempt.exit_class.message}",
                markup=False,
                style="yellow",
            )

    def on_warning(self, text: str) -> None:
        """Show a warning of one or more lines."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def on_update(self, version: Version, point: CurvePoint | None) -> None:
        """One line an update."""
        before = (
            f"  reward {point.reward:.3f} over {point.rollouts} rollouts of "
            f"{point.version}{_aside(point.components)}"
            if point
            else ""
        )
        self._console.print(f"{version} is served{before}", markup=False, highlight=False)

    def finish(self, summary: Summary) -> None:
        """Show the summary as a table."""
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for title, value in _rows(summary):
            table.add_row(title, Text(value))
        self._console.print(table)
        if summary.interrupted:
            self._console.print("stopped; all agent processes have ended")
        if summary.problem:
            self._console.print(Text(summary.problem, style="red"), soft_wrap=True)
        elif summary.warnings:
            self.on_warning("\n".join(summary.warnings))


def _rows(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "run", summary.run_id
    yield "reward", str(summary.reward or "none")
    if summary.components:
        yield "by name", _listed(summary.components)
    yield "rollouts", ", ".join(f"{count} {name}" for name, count in summary.counts.items())
    if summary.actions:
        yield (
            "actions",
            ", ".join(
                f"{count} {word}" for word, count in sorted(summary.actions.items(), key=_by_count)
            ),
        )
    yield "version", f"{summary.version} after {summary.updates} updates"
    yield "time", f"{summary.seconds:.1f} s"


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _listed(components: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {mean:.3f}" for name, mean in components.items())


def _aside(components: Mapping[str, float]) -> str:
    return f" ({_listed(components)})" if components else ""
