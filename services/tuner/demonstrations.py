"""Searches sets of demonstrations: the method for models that are too small to reflect.

The examples are conversations of training tasks that earned most, from the log and from rollouts of
the version in force. Which of them a candidate shows is chosen by a tree-structured Parzen
estimator (Bergstra et al. 2011) over its slots.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import optuna

from fulgurite.enums import TuningStage
from fulgurite.events import PromptUpdate
from fulgurite.prompts.examples import EMPTY, Example, choose_pool, chosen, join_examples, slots_of
from fulgurite.prompts.tuning import edits_of
from services.tuner.errors import CannotTune
from services.tuner.plan import Plan
from services.tuner.rollouts import RecordedRollouts, example_of
from services.tuner.scoring import Scorer
from services.tuner.tuning_log import TuningLog

_REPEATS = 50
"""So many sets in a row that are known already mean that there are hardly others."""
_RANDOM = 10
"""Sets that are drawn at random before the estimator chooses."""


def search_demonstrations(
    plan: Plan,
    log: TuningLog,
    scorer: Scorer,
    recorded: RecordedRollouts,
    warn: Callable[[str], None],
) -> None:
    """Score sets of demonstrations until the plan's limits are reached, or all sets are known.

    `warn` is told of the second.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pool = _gather(plan, log, scorer, recorded)
    keys = [task.key for task in plan.validation]
    _require_room(plan, log, keys)
    space = _space(plan, pool)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(
            seed=plan.seed + len(log.state.candidates()),
            n_startup_trials=min(_RANDOM, max(1, plan.candidates // 2)),
        ),
    )
    # First all slots with the best examples.
    best = {name: slot for slot, name in enumerate(space)}
    study.enqueue_trial(best)
    _add_known_trials(study, space, plan, log, scorer, pool)
    repeats, chance = 0, random.Random(plan.seed + len(log.state.candidates()))
    while repeats < _REPEATS and _may_go_on(plan, log):
        if repeats:
            # The estimator likes what it knows: try any other set.
            study.enqueue_trial({name: chance.randrange(EMPTY, len(pool)) for name in space})
        trial = study.ask(space)
        slots = [trial.params[name] for name in space]
        candidate, is_new = _candidate(plan, log, chosen(pool, slots))
        version = None if candidate is None else candidate.version
        repeats = 0 if is_new else repeats + 1
        scorer.score(version, TuningStage.validation, plan.validation)
        mean = log.state.mean(version, keys)
        if mean is None:
            raise CannotTune(
                f"no rollout of {version or 'what the agent sends'} has a reward: look at the "
                "reward function, and at `fulgurite diagnose`"
            )
        study.tell(trial, mean)
    if repeats >= _REPEATS:
        warn(
            "the search ends before its limits: nearly all sets of the examples that were found "
            f"({len(pool)}) have been tried. Give more training tasks, a larger -n, a lower "
            "--least-reward, or episodes of the log with --since"
        )


def _gather(
    plan: Plan, log: TuningLog, scorer: Scorer, recorded: RecordedRollouts
) -> tuple[Example, ...]:
    """The examples to choose from. Runs the training tasks as long as there are too few, and the
    budget has room for them and for a first candidate.
    """
    baseline = log.state.baseline()
    version = None if baseline is None else baseline.version
    found = recorded.examples()
    pool = choose_pool(found, plan.guard, plan.pool, plan.least_reward)
    is_short = False
    for start in range(0, len(plan.train), plan.pool):
        if len(pool) >= plan.pool:
            break
        tasks = plan.train[start : start + plan.pool]
        missing = log.state.missing(version, TuningStage.training, [task.key for task in tasks])
        needed = plan.n * (len(missing) + len(plan.validation)) + _candidate_rollouts(plan)
        # What is in the log costs nothing.
        if missing and not log.state.allows(plan.budget, needed):
            is_short = True
            break
        scores = scorer.score(version, TuningStage.training, tasks)
        for task, outcome in zip(tasks, scorer.outcomes(scores), strict=True):
            made = (example_of(one, task.key, log.alias, log.role) for one in outcome.rollouts)
            found += [example for example in made if example is not None]
        pool = choose_pool(found, plan.guard, plan.pool, plan.least_reward)
    if not pool and is_short:
        raise CannotTune(
            "the budget has no room for training tasks beside what a first candidate and its "
            "comparison need, and no example was found without: give a larger --max-calls or "
            "--max-money, fewer validation tasks, or episodes of the log with --since"
        )
    if not pool:
        raise CannotTune(
            f"no rollout of the {len(plan.train)} training tasks earned {plan.least_reward:g} and "
            "can be shown as a conversation: give more tasks, a lower --least-reward, or episodes "
            "of the log with --since"
        )
    return pool


def _require_room(plan: Plan, log: TuningLog, keys: Sequence[str]) -> None:
    """Raise CannotTune if the budget has no room for the baseline and a first candidate."""
    baseline = log.state.baseline()
    version = None if baseline is None else baseline.version
    missing = log.state.missing(version, TuningStage.validation, keys)
    needed = plan.n * len(missing) + _candidate_rollouts(plan)
    if missing and not log.state.allows(plan.budget, needed):
        raise CannotTune(
            f"the budget has no room for the {needed} rollouts that the prompt in force, a first "
            f"candidate and their comparison need on {len(keys)} validation tasks: give a larger "
            "--max-calls or --max-money, or fewer validation tasks"
        )


def _space(plan: Plan, pool: Sequence[Example]) -> dict[str, optuna.distributions.BaseDistribution]:
    choices = range(EMPTY, len(pool))
    count = min(plan.slots, len(pool))
    return {
        f"slot {slot}": optuna.distributions.CategoricalDistribution(tuple(choices))
        for slot in range(count)
    }


def _add_known_trials(
    study: optuna.Study,
    space: dict[str, optuna.distributions.BaseDistribution],
    plan: Plan,
    log: TuningLog,
    scorer: Scorer,
    pool: Sequence[Example],
) -> None:
    """Score the baseline and what an earlier process left, and tell the study of them."""
    keys = [task.key for task in plan.validation]
    for one in (log.state.baseline(), *log.state.candidates()):
        version = None if one is None else one.version
        scorer.score(version, TuningStage.validation, plan.validation)
        is_candidate = one is not None and one.tuning == log.tuning
        slots = slots_of(one.examples if is_candidate else (), pool, len(space)) if one else None
        if one is None or not is_candidate:
            slots = (EMPTY,) * len(space)
        mean = log.state.mean(version, keys)
        if slots is not None and mean is not None:
            params = dict(zip(space, slots, strict=True))
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=space, value=mean)
            )


def _candidate(
    plan: Plan, log: TuningLog, examples: Sequence[Example]
) -> tuple[PromptUpdate | None, bool]:
    """The version with these examples, written if there is none yet, and whether it was."""
    baseline = log.state.baseline()
    if not examples:
        return baseline, False
    edits = {**edits_of(baseline), "demonstrations": join_examples(examples)}
    known = log.state.same_edits(edits)
    if known is not None:
        return known, False
    rollouts = tuple(example.rollout_id for example in examples)
    reason = f"{len(examples)} examples that earned {min(e.reward for e in examples):g} or more"
    parent = None if baseline is None else baseline.version
    return log.write_candidate(edits, parent=parent, reason=reason, examples=rollouts), True


def _may_go_on(plan: Plan, log: TuningLog) -> bool:
    return len(log.state.candidates()) < plan.candidates and log.state.allows(
        plan.budget, _candidate_rollouts(plan)
    )


def _candidate_rollouts(plan: Plan) -> int:
    """Rollouts that score a candidate and compare the best one."""
    return plan.n * len(plan.validation) + plan.comparing
