"""Compares the best candidate with the version in force, and proposes it or puts it in force."""

from __future__ import annotations

import msgspec

from fulgurite.enums import PromptKind, TuningStage
from fulgurite.events import PromptUpdate
from fulgurite.learning.evaluation import Difference, compare_on_tasks
from fulgurite.prompts.tuning import error_of
from services.tuner.plan import Method, Plan
from services.tuner.scoring import Scorer
from services.tuner.tuning_log import TuningLog

_UNSCORED = {
    Method.demonstrations: "no candidate was scored on all validation tasks: give a larger budget",
    Method.gepa: "no candidate was scored on all validation tasks: none earned more than its "
    "parent on its minibatch, or the budget ended before. Give a larger --minibatch, a larger "
    "budget, or another --reflection-model",
}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a tuning."""

    baseline: str | None
    candidate: PromptUpdate | None
    """The best one; None if none was scored."""
    difference: Difference | None
    """Candidate less baseline, on new rollouts of the validation tasks."""
    number: int | None
    """Place among the verdicts on these tasks, by which its interval is wider; None without a
    comparison.
    """
    why_not: str | None
    """Why the candidate is not put in force."""
    decision: PromptUpdate | None
    """The event that proposes it or puts it in force."""


def decide(plan: Plan, log: TuningLog, scorer: Scorer) -> Verdict:
    """Compare the best candidate with the baseline on new rollouts, and act on it.

    The scores by which it was chosen are not used again: the best of many is lucky, too.
    """
    keys = [task.key for task in plan.validation]
    baseline = log.state.baseline()
    version = None if baseline is None else baseline.version
    best = log.state.best(keys)
    scorer.score(version, TuningStage.validation, plan.validation)
    before = log.state.mean(version, keys)
    after = None if best is None else log.state.mean(best.version, keys)
    if best is None or before is None or after is None or after <= before:
        why_not = (
            _UNSCORED[plan.method]
            if best is None or before is None or after is None
            else f"no candidate earned more on the validation tasks: {after:.3f}, and {before:.3f} "
            "before"
        )
        return Verdict(
            baseline=version,
            candidate=best,
            difference=None,
            number=None,
            why_not=why_not,
            decision=None,
        )
    for one in (version, best.version):
        scorer.score(one, TuningStage.comparison, plan.validation)
    # Others may have tuned on the same tasks meanwhile.
    log.reload()
    number = log.state.verdict_number(best.version, keys)
    difference = compare_on_tasks(
        log.state.rewards(version, TuningStage.comparison),
        log.state.rewards(best.version, TuningStage.comparison),
        error_of(number),
    )
    why_not = _why_not_better(difference, number)
    if difference is None or why_not is not None:
        return Verdict(
            baseline=version,
            candidate=best,
            difference=difference,
            number=number,
            why_not=why_not,
            decision=None,
        )
    why_not = _why_not_promoted(plan, log, version, best)
    kind = PromptKind.promoted if why_not is None else PromptKind.proposed
    against = version or "what the agent sends"
    reason = f"{difference.estimate} against {against} on validation tasks, {_confidence(number)}"
    return Verdict(
        baseline=version,
        candidate=best,
        difference=difference,
        number=number,
        why_not=why_not,
        decision=log.decide(kind, best, reason),
    )


def _why_not_better(difference: Difference | None, number: int) -> str | None:
    if difference is None:
        return "no validation task has rewards of both"
    low = difference.estimate.low
    # The same gain on every task has no interval, and signs tell.
    is_sure = difference.p <= error_of(number) if low is None else low > 0
    if is_sure and difference.estimate.mean > 0:
        return None
    return f"it is not better, {_confidence(number)}: {difference.estimate}"


def _confidence(number: int) -> str:
    return f"with {1 - error_of(number):.2%} confidence as verdict {number} on these tasks"


def _why_not_promoted(
    plan: Plan, log: TuningLog, baseline: str | None, best: PromptUpdate
) -> str | None:
    if not plan.promote:
        return "--promote was not given"
    current = log.in_force()
    version = None if current is None else current.version
    if version not in (baseline, best.version):
        return (
            f"{version or 'no version'} was put in force meanwhile, and it was compared with "
            f"{baseline or 'what the agent sends'}"
        )
    return None
