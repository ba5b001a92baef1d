"""Decides whether a run is useful, and explains in words why it is not. No I/O.

In training a finished group is useless if none of its actions is trained or waits for the learner.
In mode `val`, and with an expert, it is useless if no rollout has an expected reward, or if all
failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fulgurite.enums import EpisodeOutcome, FilterReason, Mode
from fulgurite.ledger.remedies import REMEDIES
from services.runner.learners import Learners
from services.runner.options import RunOptions
from services.runner.outcomes import NO_LEARNER, NO_POLICY, TRAINED, WAITING, Outcomes
from services.runner.scoreboard import Score, Scoreboard

_REMEDIES = {
    **{str(reason): words for reason, words in REMEDIES.items()},
    NO_POLICY: "the model name is served by an upstream that is not trained: check "
    "FULGURITE_ALIASES, and `--model` of `fulgurite run`",
    NO_LEARNER: "no learner trains this policy: start one with this name in FULGURITE_POLICY, or "
    "route the model name to a policy that is trained",
}
_TELLING = 8
"""Useless groups in a row before a warning, if earlier ones were useful: a default batch."""
_KINDS = 3
"""How many kinds of failures, errors and reasons are listed, the most frequent first."""


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
        lines = [f"{which} gave no {signal}"]
        failed = [score for score in scores if _has_failed(score)]
        if failed:
            kinds = _counted(str(score.failure or score.outcome) for score in failed)
            lines.append(f"{len(failed)} of {len(scores)} rollouts failed: {kinds}")
        unscored = [score for score in scores if score.reward is None]
        if self._options.rewards and unscored:
            errors = Counter(score.error or "no value" for score in unscored)
            first = ", ".join(
                f"{count} x {' '.join(error.split())[:200]}"
                for error, count in errors.most_common(_KINDS)
            )
            lines.append(f"{len(unscored)} of {len(scores)} rollouts have no reward: {first}")
        if not any(score.calls for score in scores):
            lines.append(
                "their agents made no call that was recorded: does the agent use OPENAI_BASE_URL "
                "and OPENAI_API_KEY?"
            )
        return [*lines, *(self._untrained(groups, scores) if self._trains else ())]

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

    def _untrained(self, groups: Sequence[str], scores: Sequence[Score]) -> list[str]:
        counted = self.actions(groups)
        total = sum(counted.values())
        if not total:
            return []
        listed = ", ".join(f"{count} {word}" for word, count in counted.most_common())
        reasons = [word for word, _ in counted.most_common() if word not in (TRAINED, WAITING)][
            :_KINDS
        ]
        explained = (
            f"{word}{self._detail(word, scores)}: "
            f"{_REMEDIES.get(word, 'see docs/reference/ledger.md')}"
            for word in reasons
        )
        return [f"{counted[TRAINED]} of {total} actions trained: {listed}", *explained]

    def _detail(self, word: str, scores: Sequence[Score]) -> str:
        if word == FilterReason.no_signal:
            values = {score.reward for score in scores if score.reward is not None}
            return (
                f" (all rewards are {values.pop():g})"
                if len(values) == 1
                else " (all rewards of each group are equal)"
            )
        if word == NO_LEARNER:
            policies = [p for p in self._outcomes.policies() if not self._learners.train(p)]
            return f" ({', '.join(sorted(policies))})"
        return ""

    def _stalled(self, ended: int) -> list[str]:
        """What the first group waits for, once agents have ended."""
        if not ended:
            return []
        unpaid = self._board.unpaid()
        unclosed = ended - self._board.closed()
        lines: list[str] = []
        if unclosed > 0:
            lines.append(
                f"{unclosed} rollouts have ended and have no episode yet: is the aggregator "
                "running? See `fulgurite status`."
            )
        if unpaid:
            lines.append(
                f"{unpaid} rollouts have ended and wait for a reward. A function that returns None "
                "gives no reward; the group then waits until its deadline."
            )
        return lines

    def _oversized(self) -> list[str]:
        count, total = self._outcomes.oversized()
        if not self._trains or not count:
            return []
        limit = self._learners.config(self._policy).max_row_tokens
        return [
            f"{count} of {total} rollouts have rows longer than batch.max_row_tokens = {limit}, "
            "which are not trained (oversized): raise it for the learner, or keep conversations "
            "shorter"
        ]


def _has_failed(score: Score) -> bool:
    return score.closed and score.outcome is not EpisodeOutcome.finished


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common(_KINDS))
