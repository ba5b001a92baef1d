"""Shows how a tuning goes: its candidates with their scores, and the verdict."""

from __future__ import annotations

import threading

import msgspec
from rich.table import Column, Table

from fulgurite.enums import PromptKind, TuningStage
from fulgurite.events import PromptScore, PromptTuning
from fulgurite.learning.intervals import estimate
from fulgurite.prompts.tuning import TuningState
from fulgurite.untrusted_json import encoded
from fulgurite.versions import Version
from services.cli.output import print_table
from services.common.runtime.terminal import make_console, plain
from services.runner.rollout import Attempt
from services.runner.run import Run
from services.runner.scoreboard import CurvePoint
from services.tuner.verdict import Verdict


class TuneReport:
    """A line for each version that is scored, and warnings of the runner; a table at the end."""

    def __init__(self, tuning: str, *, as_json: bool) -> None:
        self._tuning = tuning
        self._as_json = as_json
        self._console = make_console(stderr=True)
        self._lock = threading.Lock()
        self._tasks = 0
        self._rewards: dict[tuple[str | None, TuningStage], list[tuple[float, ...]]] = {}

    def begin(self, started: PromptTuning, state: TuningState) -> None:
        """Say what is tuned, and what the log has of it already."""
        self._tasks = started.validation_tasks
        baseline = started.baseline or "what the agent sends"
        self._line(
            f"{self._tuning}: {started.method} for {started.alias}, compared with {baseline}; "
            f"{started.train_tasks} training and {started.validation_tasks} validation tasks"
        )
        if state.rollouts:
            self._line(
                f"goes on: {len(state.candidates())} candidates, {state.rollouts} rollouts and "
                f"{state.spent.calls} calls are in the log"
            )

    def on_score(self, score: PromptScore) -> None:
        """Print a version's mean once this process scored it on all validation tasks."""
        if self._as_json:
            _print_line({"event": "score", **msgspec.to_builtins(score)})
        found = self._rewards.setdefault((score.version, score.stage), [])
        found.append(score.rewards)
        if score.stage is not TuningStage.training and len(found) == self._tasks:
            mean = estimate(found)
            version = score.version or "as sent"
            self._line(f"{version}, {score.stage}: {mean or 'no reward'}")

    def finish(self, verdict: Verdict, state: TuningState) -> None:
        """Print all candidates and the verdict."""
        if self._as_json:
            _print_line({"event": "verdict", **_as_json(verdict, state)})
            return
        table = Table(
            Column("version", no_wrap=True),
            Column("parent", no_wrap=True),
            "mean reward [95%], validation",
            Column("rollouts", justify="right"),
            "why",
        )
        rows = [(verdict.baseline, None, "in force at the start")]
        rows += [(one.version, one.parent, one.reason) for one in state.candidates()]
        for version, parent, why in rows:
            scores = list(state.scores(version, TuningStage.validation).values())
            mean = estimate([score.rewards for score in scores])
            count = sum(len(score.rewards) + score.unscored for score in scores)
            cells = (version or "none", parent or "none", str(mean or "none"), str(count), why)
            table.add_row(*map(plain, cells))
        print_table(table)
        console = make_console()
        for refused in state.refused:
            console.print(plain(f"refused: {refused.reason}"))
        for line in (_cost_line(state), *_verdict_lines(verdict, state)):
            console.print(plain(line))

    def on_change(self, run: Run) -> None:
        """Nothing to show."""

    def on_attempt(self, attempt: Attempt) -> None:
        """Nothing to show."""

    def on_update(self, version: Version, point: CurvePoint | None) -> None:
        """Say that the policy changed: scores before and after are of different models."""
        del point
        self._line(f"the policy is {version} now: scores before were another version's")

    def on_warning(self, text: str) -> None:
        """Print a warning of the runner or of the search."""
        self._line(text)

    def _line(self, text: str) -> None:
        with self._lock:
            self._console.print(plain(text))


def _print_line(found: object) -> None:
    print(encoded(found).decode(), flush=True)


def _cost_line(state: TuningState) -> str:
    spent = state.spent
    money = "" if spent.money is None else f", {spent.money:.4f} in money"
    return (
        f"{state.rollouts} rollouts, {spent.calls} calls, {spent.prompt_tokens} prompt and "
        f"{spent.completion_tokens} generated tokens{money}"
    )


def _verdict_lines(verdict: Verdict, state: TuningState) -> list[str]:
    candidate, decision = verdict.candidate, verdict.decision
    if decision is None or candidate is None:
        return [f"nothing is proposed: {verdict.why_not}"]
    if decision.kind is PromptKind.promoted:
        return [f"{candidate.version} is in force: {decision.reason}"]
    started = state.started
    alias = started.alias if started is not None else ""
    return [
        f"{candidate.version} is proposed ({verdict.why_not}): {decision.reason}",
        f"put it in force with: fulgurite prompts promote --alias {alias} {candidate.version}",
    ]


def _as_json(verdict: Verdict, state: TuningState) -> dict[str, object]:
    decision = verdict.decision
    return {
        "baseline": verdict.baseline,
        "candidate": verdict.candidate.version if verdict.candidate is not None else None,
        "difference": verdict.difference,
        "verdict_number": verdict.number,
        "decision": None if decision is None else str(decision.kind),
        "why_not": verdict.why_not,
        "candidates": len(state.candidates()),
        "rollouts": state.rollouts,
        "cost": state.spent,
        "refused": [refused.reason for refused in state.refused],
    }
