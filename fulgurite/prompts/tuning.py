"""Folds `prompt.updates` into the state of one tuning: its candidates, their scores, what it spent.

It is all that a tuning knows, so that one which was killed goes on where the log ends. A task is
scored once for each version and stage: what is in the log is not run again.

Who tunes again and again compares another best candidate each time. So the verdicts on the same
validation tasks share the 5% that may be wrong: the k-th one gets 6/(π k)² of it, which adds up to
all of it however many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from fulgurite.enums import PromptKind, TuningStage
from fulgurite.events import Event, PromptCost, PromptScore, PromptTuning, PromptUpdate
from fulgurite.ids import derive_id
from fulgurite.prompts.history import PromptHistory

NOTHING = PromptCost(calls=0, prompt_tokens=0, completion_tokens=0)
"""The cost of no call."""

_ERROR = 0.05
"""Probability that any verdict on the same validation tasks is wrong."""

EDITS = ("system", "prefix", "sections", "demonstrations", "tools")
"""The fields of an update that change requests."""


class Budget(msgspec.Struct, frozen=True):
    """What a tuning may spend; None: any amount."""

    calls: int | None = None
    money: float | None = None


def edits_of(prompt: PromptUpdate | None) -> dict[str, object]:
    """What a version changes, by field; empty for none."""
    fields = {} if prompt is None else msgspec.structs.asdict(prompt)
    return {name: fields[name] for name in EDITS if fields.get(name)}


def add_costs(one: PromptCost, other: PromptCost) -> PromptCost:
    """The sum; its money is that of what has a price."""
    amounts = [cost.money for cost in (one, other) if cost.money is not None]
    return PromptCost(
        calls=one.calls + other.calls,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        money=sum(amounts) if amounts else None,
    )


def error_of(verdict: int) -> float:
    """How probable it may be that the verdict of this number, counted from 1, is wrong."""
    return _ERROR * 6 / (math.pi * verdict) ** 2


class TuningState:
    """The fold. Apply every event of the topic, in log order."""

    def __init__(self, alias: str, tuning: str) -> None:
        self.history = PromptHistory()
        self.started: PromptTuning | None = None
        """How it began; None before that."""
        self.refused: list[PromptUpdate] = []
        self.decided: PromptUpdate | None = None
        """The candidate that it proposed or put in force last."""
        self.spent = NOTHING
        self.rollouts = 0
        """Rollouts that were scored."""
        self._alias = alias
        self._tuning = tuning
        self._scores: dict[tuple[str | None, TuningStage], dict[str, PromptScore]] = {}
        self._seen: set[str] = set()
        self._baselines: dict[str, str | None] = {}
        """Of all tunings of the alias."""
        self._compared: dict[tuple[str, str | None], set[str]] = {}
        """By tuning and candidate, the tasks on which it was compared, in log order."""

    def apply(self, event: Event | None) -> None:
        """Apply the next event; those of other tunings only tell which versions there are."""
        self.history.apply(event)
        if not isinstance(event, PromptTuning | PromptScore | PromptUpdate):
            return
        self._apply_verdict(event)
        is_own = (event.alias, event.tuning) == (self._alias, self._tuning)
        if not is_own or event.event_id in self._seen:
            return
        self._seen.add(event.event_id)
        if isinstance(event, PromptTuning):
            self.started = self.started or event
        elif isinstance(event, PromptScore):
            self._apply_score(event)
        else:
            self._apply_update(event)

    def candidates(self) -> list[PromptUpdate]:
        """The candidates, in the order in which they were made."""
        return [one for one in self.history.versions(self._alias) if one.tuning == self._tuning]

    def same_edits(self, edits: Mapping[str, object]) -> PromptUpdate | None:
        """The candidate, or the baseline, that changes the same; None if there is none."""
        known = [self.baseline(), *self.candidates()]
        return next((one for one in known if one is not None and edits_of(one) == edits), None)

    def baseline(self) -> PromptUpdate | None:
        """The version that candidates are compared with; None for what the agent sends."""
        version = self.started.baseline if self.started is not None else None
        return self.history.find(self._alias, version)

    def written_after(self, reflection: str) -> PromptUpdate | None:
        """What a model wrote in reply to the prompt with this hash; None before it did."""
        known = [*self.candidates(), *self.refused]
        return next((one for one in known if one.reflection == reflection), None)

    def scores(self, version: str | None, stage: TuningStage) -> Mapping[str, PromptScore]:
        """The scores of a version by task."""
        return self._scores.get((version, stage), {})

    def rewards(self, version: str | None, stage: TuningStage) -> dict[str, tuple[float, ...]]:
        """The rewards of a version by task."""
        return {task: score.rewards for task, score in self.scores(version, stage).items()}

    def missing(self, version: str | None, stage: TuningStage, tasks: Sequence[str]) -> list[str]:
        """The tasks without a score of the version."""
        known = self.scores(version, stage)
        return [task for task in tasks if task not in known]

    def mean(self, version: str | None, tasks: Sequence[str]) -> float | None:
        """The mean over the validation tasks' mean rewards; None until all of them are scored.

        A task none of whose rollouts has a reward does not count.
        """
        if self.missing(version, TuningStage.validation, tasks):
            return None
        rewards = self.rewards(version, TuningStage.validation)
        means = [sum(rewards[task]) / len(rewards[task]) for task in tasks if rewards[task]]
        return sum(means) / len(means) if means else None

    def best(self, tasks: Sequence[str]) -> PromptUpdate | None:
        """The candidate with the highest mean on the validation tasks, of equal ones the first."""
        found = [
            (mean, candidate)
            for candidate in self.candidates()
            if (mean := self.mean(candidate.version, tasks)) is not None
        ]
        return max(found, key=lambda one: one[0])[1] if found else None

    def verdict_number(self, version: str | None, tasks: Sequence[str]) -> int:
        """The place of a compared candidate among those that were compared with a baseline on any
        of these tasks, by all tunings of the alias; counted from 1.
        """
        wanted = set(tasks)
        compared = [one for one, known in self._compared.items() if known & wanted]
        return compared.index((self._tuning, version)) + 1

    def allows(self, budget: Budget, rollouts: int) -> bool:
        """Whether the budget has room for so many more rollouts, at the cost of those so far.

        Before the first one, a rollout is taken for one call.
        """
        share = rollouts / self.rollouts if self.rollouts else 0.0
        calls = self.spent.calls + (self.spent.calls * share if self.rollouts else rollouts)
        money = (self.spent.money or 0.0) * (1 + share)
        return (budget.calls is None or calls <= budget.calls) and (
            budget.money is None or money <= budget.money
        )

    def _apply_verdict(self, event: PromptTuning | PromptScore | PromptUpdate) -> None:
        if event.alias != self._alias:
            return
        if isinstance(event, PromptTuning):
            self._baselines.setdefault(event.tuning, event.baseline)
        elif isinstance(event, PromptScore) and self._is_of_candidate(event):
            self._compared.setdefault((event.tuning, event.version), set()).add(event.task)

    def _is_of_candidate(self, event: PromptScore) -> bool:
        """Whether a score is of a comparison, and not of its baseline."""
        is_compared = event.stage is TuningStage.comparison
        return is_compared and event.version != self._baselines.get(event.tuning)

    def _apply_score(self, event: PromptScore) -> None:
        self._scores.setdefault((event.version, event.stage), {}).setdefault(event.task, event)
        self.spent = add_costs(self.spent, event.cost)
        self.rollouts += len(event.rewards) + event.unscored

    def _apply_update(self, event: PromptUpdate) -> None:
        if event.cost is not None:
            self.spent = add_costs(self.spent, event.cost)
        if event.kind is PromptKind.refused:
            self.refused.append(event)
        elif event.kind in (PromptKind.proposed, PromptKind.promoted):
            self.decided = event


def score_id(tuning: str, version: str | None, stage: TuningStage, task: str) -> str:
    """The id of a score: one for a task, version and stage."""
    return derive_id("prompt-score", tuning, version or "", str(stage), task)
