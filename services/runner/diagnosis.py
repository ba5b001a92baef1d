"""Whether a run is of any use, and in words why not: no I/O.

A group is of no use if it is done and, in training, none of its actions is trained or waits for the
learner; else if none of its rollouts has a reward though one is awaited, or if all of them failed.
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
    NO_POLICY: "the model name is served by an upstream that is not trained: see "
    "FULGURITE_ALIASES and `fulgurite run --model`",
    NO_LEARNER: "no learner trains this policy: start one with that FULGURITE_POLICY, or route "
    "the model name to one that is trained",
}
_TELLING = 8
"""Groups in a row that are worth a warning where others before them were of use: a batch of the
learner's default size.
"""
_KINDS = 3
"""Failures and reasons that are named, the most frequent first."""


class Diagnosis:
    """Of one run; looks at what its scoreboard and its outcomes know."""

    def __init__(
        self,
        options: RunOptions,
        policy: str,
        board: Scoreboard,
        outcomes: Outcomes,
        learners: Learners,
    ) -> None:
        """`policy`: the one whose versions the run counts."""
        self._options = options
        self._policy = policy
        self._board = board
        self._outcomes = outcomes
        self._learners = learners
        self._done: dict[str, None] = {}
        """Groups, in the order in which they were done."""

    def note(self, group_id: str) -> None:
        """Something was heard of a group."""
        if group_id not in self._done and self._board.is_done(group_id):
            self._done[group_id] = None

    @property
    def done(self) -> int:
        """Groups that are done."""
        return len(self._done)

    def useless(self) -> list[str]:
        """The last groups in a row that were of no use."""
        found: list[str] = []
        for group_id in reversed(self._done):
            if self._is_of_use(group_id):
                break
            found.append(group_id)
        return found

    def actions(self, groups: Iterable[str] | None = None) -> Counter[str]:
        """What became of the actions of some groups, or of all."""
        counted: Counter[str] = Counter()
        for group_id in self._board.groups() if groups is None else groups:
            counted.update(self._outcomes.of_group(group_id, self._board.scores(group_id)))
        return counted

    def warnings(self, ended: int) -> list[str]:
        """What is wrong with the latest groups, the cause first; empty if nothing is.

        `ended`: rollouts whose agent ended so long ago that their rewards should be there; 0 where
        none has.
        """
        useless = self.useless()
        tells = len(useless) >= min(_TELLING, max(1, self.done))
        return [
            *(self.explain(useless) if tells else self._oversized()),
            *(() if self.done else self._stalled(ended)),
        ]

    def all_unscored(self) -> bool:
        """Whether rewards are awaited and none has come."""
        return bool(self._options.rewards) and self._board.recent(1) is None

    def waits_in_vain(self) -> str | None:
        """Why no version will come that the run counts; None if one may."""
        answered = self._outcomes.policies()
        if self._policy not in answered:
            by = f"by {', '.join(sorted(answered))}" if answered else "by no policy that is trained"
            return (
                f"calls were answered {by}, and the run waits for versions of "
                f"{self._policy!r} "
                "(FULGURITE_POLICY)"
            )
        return (
            None
            if self._learners.train(self._policy)
            else f"no learner has claimed the policy {self._policy!r}"
        )

    def explain(self, groups: Sequence[str]) -> list[str]:
        """Why these groups are of no use."""
        scores = [score for group_id in groups for score in self._board.scores(group_id)]
        count = f"{len(groups)} groups" if len(groups) > 1 else "group"
        which = (
            f"{'all' if count != 'group' else 'the'} {count}"
            if len(groups) >= self.done
            else f"the last {count}"
        )
        lines = [f"{which} {'taught' if self._trains else 'measured'} nothing"]
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
                "no call of theirs was recorded: does the agent use OPENAI_BASE_URL and "
                "OPENAI_API_KEY?"
            )
        return [*lines, *(self._untrained(groups, scores) if self._trains else ())]

    @property
    def _trains(self) -> bool:
        return self._options.mode is Mode.train

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
                " (all rewards "
                f"equal{f', {values.pop():g} everywhere' if len(values) == 1 else ''})"
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
                "running (`fulgurite status`)?"
            )
        if unpaid:
            lines.append(
                f"{unpaid} rollouts have ended and wait for a reward; a function that returns "
                "None gives none, "
                "and its group then waits until its deadline"
            )
        return lines

    def _oversized(self) -> list[str]:
        count, total = self._outcomes.oversized()
        if not self._trains or not count:
            return []
        limit = self._learners.config(self._policy).max_row_tokens
        return [
            f"{count} of {total} rollouts have rows longer than "
            f"FULGURITE_MAX_ROW_TOKENS={limit}: not trained (oversized)"
        ]


def _has_failed(score: Score) -> bool:
    return score.closed and score.outcome is not EpisodeOutcome.finished


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common(_KINDS))
