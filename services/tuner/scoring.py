"""Scores versions on tasks. What the log has is not run again; each score is logged as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed

from fulgurite.cost.prices import Prices
from fulgurite.enums import TuningStage
from fulgurite.events import PromptScore
from fulgurite.prompts.history import AS_SENT
from services.tuner.errors import CannotTune
from services.tuner.rollouts import (
    AgentRunner,
    GroupOutcome,
    RecordedRollouts,
    TuningTask,
    calls_of,
    cost_of,
)
from services.tuner.tuning_log import TuningLog

Watch = Callable[[PromptScore], None]
"""Called with each new score."""


class Scorer:
    """Runs the agent where a score is missing."""

    def __init__(
        self,
        log: TuningLog,
        runner: AgentRunner,
        recorded: RecordedRollouts,
        prices: Prices | None,
        watch: Watch,
        *,
        needs_price: bool = False,
    ) -> None:
        """`needs_price`: calls without a price are an error, as their money is bounded."""
        self._log = log
        self._runner = runner
        self._recorded = recorded
        self._prices = prices
        self._watch = watch
        self._needs_price = needs_price
        self._outcomes: dict[str, GroupOutcome] = {}

    def score(
        self, version: str | None, stage: TuningStage, tasks: Sequence[TuningTask]
    ) -> list[PromptScore]:
        """The scores of a version on tasks, in their order."""
        keys = [task.key for task in tasks]
        # A batch may have a task twice.
        missing = {
            task.key: task
            for task in tasks
            if task.key not in self._log.state.scores(version, stage)
        }
        running = {self._runner.submit(task, version or AS_SENT): task for task in missing.values()}
        for done in as_completed(running):
            self._add(version, stage, running[done], done)
        scores = self._log.state.scores(version, stage)
        return [scores[key] for key in keys]

    def outcomes(self, scores: Sequence[PromptScore]) -> list[GroupOutcome]:
        """The rollouts behind scores. Those of an earlier process are read from the log; without
        rollouts, where it no longer has them.
        """
        lacking = {one.group_id for one in scores} - self._outcomes.keys()
        if lacking:
            self._outcomes |= self._recorded.groups(lacking)
        return [
            self._outcomes.get(one.group_id) or GroupOutcome(one.group_id, ()) for one in scores
        ]

    def _add(
        self,
        version: str | None,
        stage: TuningStage,
        task: TuningTask,
        done: Future[GroupOutcome],
    ) -> None:
        outcome = done.result()
        self._check_served(version, outcome)
        cost = cost_of(outcome, self._prices)
        if self._needs_price and cost.calls and cost.money is None:
            raise CannotTune(
                f"the price file has no price for {self._log.alias} or the backend that answers "
                "it, so --max-money cannot be held: add one"
            )
        rewards = [one.reward for one in outcome.rollouts if one.reward is not None]
        if stage is TuningStage.training:
            self._outcomes[outcome.group_id] = outcome
        self._watch(
            self._log.write_score(
                version,
                stage,
                task.key,
                outcome.group_id,
                tuple(rewards),
                len(outcome.rollouts) - len(rewards),
                cost,
            )
        )

    def _check_served(self, version: str | None, outcome: GroupOutcome) -> None:
        """Raise CannotTune if calls were served with another version."""
        log = self._log
        served = {
            call.prompt_version
            for rollout in outcome.rollouts
            for call in calls_of(rollout, log.alias, log.role)
        }
        if served and version not in served:
            raise CannotTune(
                f"{version or 'what the agent sends'} does not fit the requests for {log.alias} "
                f"(group {outcome.group_id}): they were served with "
                f"{', '.join(sorted(one or 'none' for one in served))}. A version needs a chat, "
                "and each section that it fills"
            )
