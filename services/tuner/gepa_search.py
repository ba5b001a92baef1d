"""Evolves the system prompt by reflection (GEPA, Agrawal et al. 2025, arXiv 2507.19457).

The library chooses parents by their Pareto front and writes the question to the reflection model.
It is given the seed, and everything that is random or paid for is read from the log where it was
logged: scores, and what the model wrote in reply to a question. So a tuning that was killed runs
through what it had done without asking anybody, and goes on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gepa.api import optimize  # pyright: ignore[reportUnknownVariableType]
from gepa.core.adapter import EvaluationBatch, GEPAAdapter

from fulgurite.calls.transcript import text_of
from fulgurite.enums import TuningStage
from fulgurite.episodes.view import EpisodeView
from fulgurite.events import PromptCost, PromptScore, PromptUpdate
from fulgurite.prompts.tuning import edits_of
from fulgurite.untrusted_json import Json, called_functions, encoded
from services.common.runtime import logs
from services.tuner.errors import CannotTune, TunerError
from services.tuner.plan import Plan
from services.tuner.reflection import ReflectionModel
from services.tuner.rollouts import GroupOutcome, TuningTask, sent_system_prompt
from services.tuner.scoring import Scorer
from services.tuner.tuning_log import TuningLog

SYSTEM = "system"
"""The one text that is evolved."""
_REFUSED = -1e9
"""Score of a text that is not tried: less than any reward, and no infinity, which sums to none."""
_IDLE = 20
"""So many steps in a row without a new candidate mean that the model has no other idea."""

logger = logs.get(__name__)

Candidate = dict[str, str]


class _Trace:
    """What is shown of a task's rollouts."""

    def __init__(self, task: TuningTask, score: PromptScore, outcome: GroupOutcome) -> None:
        self.task = task
        self.score = score
        self.outcome = outcome


def search_by_reflection(
    plan: Plan, log: TuningLog, scorer: Scorer, model: ReflectionModel
) -> None:
    """Evolve the system prompt until the plan's limits are reached.

    Raises CannotTune, also if the text to begin with copies a task; ReflectionFailed.
    """
    adapter = _Adapter(plan, log, scorer, model, _first_text(plan, log, scorer))
    optimize(
        seed_candidate={SYSTEM: adapter.first},
        trainset=list(plan.train),
        valset=list(plan.validation),
        adapter=adapter,
        reflection_lm=adapter.reflect,
        reflection_minibatch_size=min(plan.minibatch, len(plan.train)),
        # A reward may be larger than 1, so that no score is known to be perfect.
        skip_perfect_score=False,
        stop_callbacks=adapter.shall_stop,
        logger=_Logger(),
        seed=plan.seed,
        track_best_outputs=False,
    )
    # The library goes on after a failed reflection, and would end with nothing proposed.
    if adapter.failure is not None:
        raise adapter.failure


def _first_text(plan: Plan, log: TuningLog, scorer: Scorer) -> str:
    """The system prompt to begin with."""
    baseline = log.state.baseline()
    if plan.start is not None:
        overlap = plan.guard.find([plan.start])
        if overlap is not None:
            raise CannotTune(
                f"the text of --start copies a task: {overlap}. No candidate may quote the tasks: "
                "take these words out of it, or the task out of its file"
            )
        return plan.start
    if baseline is not None and baseline.system is not None:
        return baseline.system
    if baseline is not None and (baseline.prefix is not None or baseline.sections):
        raise CannotTune(
            f"{baseline.version} edits a part of the system prompt, and GEPA writes all of it: "
            "give the whole text with --start FILE"
        )
    version = None if baseline is None else baseline.version
    first = plan.train[:1]
    (outcome,) = scorer.outcomes(scorer.score(version, TuningStage.training, first))
    text = sent_system_prompt(outcome, log.alias, log.role)
    if not text.strip():
        raise CannotTune(
            f"the agent sends no system prompt to {log.alias}: give one to begin with, --start FILE"
        )
    return text


class _Adapter(GEPAAdapter[TuningTask, _Trace, None]):
    """What the library knows of Fulgurite. `propose_new_texts` stays undeclared, as the class
    inherits it: with one of its own, the library would not use its proposer.
    """

    def __init__(
        self, plan: Plan, log: TuningLog, scorer: Scorer, model: ReflectionModel, first: str
    ) -> None:
        self.first = first
        self.failure: TunerError | None = None
        self._plan = plan
        self._log = log
        self._scorer = scorer
        self._model = model
        self._train = {task.key for task in plan.train}
        self._asked: tuple[str, PromptCost] | None = None
        """Hash and cost of the question whose answer is evaluated next."""
        self._times: Counter[str] = Counter()
        self._parent: str | None = None
        self._tried: set[str | None] = set()
        """Versions that this process evaluated: what is only in the log is run through again."""
        self._idle = 0

    def evaluate(
        self, batch: list[TuningTask], candidate: Candidate, capture_traces: bool = False
    ) -> EvaluationBatch[_Trace, None]:
        """Score a text on tasks, which are all for training or all for validation."""
        is_known, version = self._version_of(candidate[SYSTEM])
        if not is_known:
            return EvaluationBatch([None] * len(batch), [_REFUSED] * len(batch), [])
        if version not in self._tried:
            self._tried.add(version)
            self._idle = 0
        is_training = batch[0].key in self._train
        stage = TuningStage.training if is_training else TuningStage.validation
        scores = self._scorer.score(version, stage, batch)
        traces = None
        if capture_traces:
            outcomes = self._scorer.outcomes(scores)
            traces = [_Trace(*one) for one in zip(batch, scores, outcomes, strict=True)]
            self._parent = version
        # A task without a reward counts as nothing earned.
        means = [sum(one.rewards) / len(one.rewards) if one.rewards else 0.0 for one in scores]
        return EvaluationBatch([None] * len(batch), means, traces)

    def make_reflective_dataset(
        self,
        candidate: Candidate,
        eval_batch: EvaluationBatch[_Trace, None],
        components_to_update: list[str],
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What the reflection model reads: of each task, its worst rollout."""
        del candidate
        records = [_record(trace) for trace in eval_batch.trajectories or ()]
        return dict.fromkeys(components_to_update, records)

    def reflect(self, prompt: str | list[dict[str, Any]]) -> str:
        """The model's answer to a question of the library, from the log if it was asked before."""
        text = prompt if isinstance(prompt, str) else encoded(prompt).decode()
        # The same question is asked again for another idea.
        self._times[text] += 1
        asked = hashlib.sha256(f"{self._times[text]}\0{text}".encode()).hexdigest()[:32]
        known = self._log.state.written_after(asked)
        if known is not None:
            self._asked = None
            return f"```\n{known.system}\n```"
        if self.failure is not None:
            raise self.failure
        try:
            answer, cost = self._model.ask(text)
        except TunerError as error:
            self.failure = error
            raise
        self._asked = asked, cost
        return answer

    def shall_stop(self, gepa_state: object) -> bool:
        """Whether a limit is reached, or nothing new comes."""
        del gepa_state
        plan, known = self._plan, self._log.state
        baseline = known.baseline()
        tried = self._tried - {None if baseline is None else baseline.version}
        self._idle += 1
        tasks = 2 * plan.minibatch + len(plan.validation)
        return (
            self.failure is not None
            or self._idle > _IDLE
            or len(tried) >= plan.candidates
            or not known.allows(plan.budget, plan.n * tasks + plan.comparing)
        )

    def _version_of(self, text: str) -> tuple[bool, str | None]:
        """Whether the text may be tried, and its version, which is written if it is new."""
        baseline = self._log.state.baseline()
        before = None if baseline is None else baseline.version
        asked, self._asked = self._asked, None
        if text == self.first and self._plan.start is None:
            self._refuse(text, f"{before or 'the agent'} says the same", asked)
            return True, before
        edits = _edits(baseline, text)
        known = self._log.state.same_edits(edits)
        if known is not None:
            self._refuse(text, f"{known.version} says the same", asked)
            return True, known.version
        why_not = self._why_not(text)
        if why_not is not None:
            self._refuse(text, why_not, asked)
            return False, None
        reflection, cost = asked or (None, None)
        written = self._log.write_candidate(
            edits,
            parent=self._parent if reflection else before,
            reason="written by reflection" if reflection else "given to begin with",
            reflection=reflection,
            cost=cost,
        )
        return True, written.version

    def _refuse(self, text: str, reason: str, asked: tuple[str, PromptCost] | None) -> None:
        """Log what a model wrote, if it has just done so: it is not asked the same again."""
        if asked is not None:
            self._log.write_refused(
                {SYSTEM: text},
                parent=self._parent,
                reason=reason,
                reflection=asked[0],
                cost=asked[1],
            )

    def _why_not(self, text: str) -> str | None:
        if not text.strip():
            return "the reflection model wrote nothing"
        overlap = self._plan.guard.find([text])
        return None if overlap is None else f"it copies a task: {overlap}"


def _edits(baseline: PromptUpdate | None, text: str) -> dict[str, object]:
    """The baseline's edits with another system prompt, which replaces prefix and sections."""
    kept = {
        name: value
        for name, value in edits_of(baseline).items()
        if name in ("demonstrations", "tools")
    }
    return {SYSTEM: text, **kept}


def _record(trace: _Trace) -> dict[str, Any]:
    shown = {name: value for name, value in trace.task.task.items() if name != "reference"}
    rollouts = sorted(
        trace.outcome.rollouts,
        key=lambda one: (one.reward if one.reward is not None else -1e9, one.rollout_id),
    )
    said = ""
    if rollouts and rollouts[0].episode is not None:
        said = "\n".join(map(_line, EpisodeView(rollouts[0].episode).messages[1:]))
    problems = {one.problem for one in rollouts if one.problem}
    feedback = [
        f"Rewards: {', '.join(f'{reward:g}' for reward in trace.score.rewards) or 'none'}.",
        *sorted(problems),
    ]
    if "reference" in trace.task.task:
        feedback.append(f"Reference: {encoded(trace.task.task['reference']).decode()}")
    return {
        "Inputs": encoded(shown).decode(),
        "Generated Outputs": said or "nothing",
        "Feedback": "\n".join(feedback),
    }


def _line(message: Json) -> str:
    calls = [f"{one.get('name')}({one.get('arguments')})" for one in called_functions(message)]
    return f"{message.get('role', 'assistant')}: {' '.join([text_of(message), *calls]).strip()}"


class _Logger:
    """The library's lines, as debug messages."""

    def log(self, message: str) -> None:
        """Log a line."""
        logger.debug(message)
