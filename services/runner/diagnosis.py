"""Decides whether a run is useful, and explains in words why it is not. No I/O.

In training a finished group is useless if none of its actions is trained or waits for the learner.
In mode `val`, and with an expert, it is useless if no rollout has an expected reward, or if all
failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fulgurite.diagnosis.facts import TRAINED, WAITING, Facts
from fulgurite.diagnosis.findings import lines_of
from fulgurite.enums import EpisodeOutcome, Mode
from fulgurite.learning.learners import Learners
from services.runner.options import RunOptions
from services.runner.outcomes import Outcomes
from services.runner.scoreboard import Score, Scoreboard

_TELLING = 8
"""Useless groups in a row before a warning, if earlier ones were useful: a default batch."""


class Diagnosis:
    """Explains one run from its scoreboard and its outcomes."""

    def __init__(
        self,
        options: RunOptions,
        policy: str,
        board: Scoreboard,
        outcomes: Outcomes,
        learners: Learners,
    ) -> None:
        """`policy`: the policy whose versions the run counts."""
        self._options = options
        self._policy = policy
        self._board = board
        self._outcomes = outcomes
        self._learners = learners
        self._done: dict[str, None] = {}
        """Finished groups, in the order in which they finished."""

    def note(self, group_id: str) -> None:
        """Note that something about a group has changed."""
        if group_id not in self._done and self._board.is_done(group_id):
            self._done[group_id] = None

    @property
    def done(self) -> int:
        """How many groups have finished."""
        return len(self._done)

    def useless(self) -> list[str]:
        """The useless groups since the last useful one."""
        found: list[str] = []
        for group_id in reversed(self._done):
            if self._is_of_use(group_id):
                break
            found.append(group_id)
        return found

    def actions(self, groups: Iterable[str] | None = None) -> Counter[str]:
        """Count the outcomes of the actions of some groups, or of all."""
        counted: Counter[str] = Counter()
        for group_id in self._board.groups() if groups is None else groups:
            counted.update(self._outcomes.of_group(group_id, self._board.scores(group_id)))
        return counted

    def warnings(self, ended: int) -> list[str]:
        """What is wrong with the latest groups, the cause first; empty if nothing is.

        `ended`: how many rollouts ended so long ago that their rewards should be there.
        """
        useless = self.useless()
        tells = len(useless) >= min(_TELLING, max(1, self.done))
        return [
            *(self.explain(useless) if tells else self._oversized()),
            *(() if self.done else self._stalled(ended)),
        ]

    def all_unscored(self) -> bool:
        """Whether rewards are expected and none has come."""
        return bool(self._options.rewards) and self._board.recent(1) is None

    def waits_in_vain(self) -> str | None:
        """Why the versions that the run waits for cannot come; None if they may."""
        answered = self._outcomes.policies()
        if self._policy not in answered:
            by = f"by {', '.join(sorted(answered))}" if answered else "by no trained policy"
            return (
                f"the run waits for versions of {self._policy!r} (FULGURITE_POLICY), but its calls "
                f"were answered {by}: check `--model` and FULGURITE_POLICY"
            )
        return (
            None
            if self._learners.train(self._policy)
            else f"no learner has claimed the policy {self._policy!r}: start one"
        )

    def explain(self, groups: Sequence[str]) -> list[str]:
        """Explain why these groups are useless."""
        scores = [score for group_id in groups for score in self._board.scores(group_id)]
        count = f"{len(groups)} groups" if len(groups) > 1 else "group"
        which = (
            f"{'all' if count != 'group' else 'the'} {count}"
            if len(groups) >= self.done
            else f"the last {count}"
        )
        signal = "training signal" if self._trains else "measurement"
        return [f"{which} gave no {signal}", *lines_of(self._facts(groups, scores))]

    @property
    def _trains(self) -> bool:
        """Whether actions are to be trained by reinforcement; an expert's never are."""
        return self._options.mode is Mode.train and self._options.expert is None

    def _is_of_use(self, group_id: str) -> bool:
        scores = self._board.scores(group_id)
        if self._trains:
            counted = self._outcomes.of_group(group_id, scores)
            return counted[TRAINED] + counted[WAITING] > 0
        scored = any(score.reward is not None for score in scores)
        return not all(_has_failed(score) for score in scores) and (
            scored or not self._options.rewards
        )

    def _facts(self, groups: Sequence[str], scores: Sequence[Score]) -> Facts:
        unscored = [score for score in scores if score.reward is None]
        without = (p for p in self._outcomes.policies() if not self._learners.train(p))
        rewards = {score.reward for score in scores if score.reward is not None}
        return Facts(
            rollouts=len(scores),
            failures=Counter(
                str(score.failure or score.outcome) for score in scores if _has_failed(score)
            ),
            unscored=len(unscored) if self._options.rewards else 0,
            reward_errors=Counter(score.error or "no value" for score in unscored),
            is_silent=not any(score.calls for score in scores),
            actions=self.actions(groups) if self._trains else {},
            rewards=tuple(rewards),
            policies_without_learner=tuple(sorted(without)),
            max_staleness=self._learners.config(self._policy).max_staleness,
        )

    def _stalled(self, ended: int) -> list[str]:
        """What the first group waits for, once agents have ended."""
        if not ended:
            return []
        return lines_of(
            Facts(
                without_episode=max(0, ended - self._board.closed()),
                without_reward=self._board.unpaid(),
            )
        )

    def _oversized(self) -> list[str]:
        if not self._trains:
            return []
        count, total = self._outcomes.oversized()
        return lines_of(
            Facts(
                oversized_rollouts=count,
                rollouts_with_actions=total,
                max_row_tokens=self._learners.config(self._policy).max_row_tokens,
            )
        )


def _has_failed(score: Score) -> bool:
    return score.closed and score.outcome is not EpisodeOutcome.finished
