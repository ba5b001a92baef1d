"""Turns a judge's answer about a group into one reward for every trajectory: a score, or an error.

A reward's id derives from the judge's name, model and rubric and from the revisions of all episodes
that were compared. So a judge that is asked again about the same group repeats the same events. The
explanation is in the reward's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from fulgurite.events import AgentReward
from fulgurite.ids import derive_id
from services.common.runtime.error_text import clean
from services.judge.errors import JudgeFailed, NothingSaid, TooFewTrajectories
from services.judge.groups import JudgedAttempt
from services.judge.prompt import Question, Score, digest, question

ScoreOrFailure = Score | JudgeFailed


class Asked(Protocol):
    """A model that answers questions."""

    async def scores(self, question: Question) -> list[Score]:
        """Return scores in the order of the trajectories. Raises JudgeFailed."""
        ...


class GroupJudge:
    """Scores the trajectories of a group by comparing them; with `live`, each by itself."""

    def __init__(
        self, name: str, model: str, rubric: str, max_characters: int, *, live: bool = False
    ) -> None:
        """`live`: of live traffic. Its rewards count only where no other does."""
        self.name = name
        self.source = f"judge:{model}@{digest(rubric, compares=not live)}"
        self.is_live = live
        self._rubric = rubric
        self._max_characters = max_characters

    async def judge(self, attempts: Sequence[JudgedAttempt], asked: Asked) -> list[AgentReward]:
        """Return the rewards of a group. A failing model or server gives rewards with an error."""
        answered = [one for one in attempts if one.messages]
        results: dict[str, ScoreOrFailure] = {
            one.episode.rollout_id: NothingSaid("the attempt has no answered call")
            for one in attempts
        }
        for one, result in zip(answered, await self._compared(answered, asked), strict=True):
            results[one.episode.rollout_id] = result
        return [self._reward(one, attempts, results[one.episode.rollout_id]) for one in attempts]

    async def _compared(
        self, answered: Sequence[JudgedAttempt], asked: Asked
    ) -> Sequence[ScoreOrFailure]:
        if self.is_live:
            return [await self._scored(one, asked) for one in answered]
        if len(answered) < 2:
            return [
                TooFewTrajectories(
                    f"a judge compares, and this group has {len(answered)} to be judged"
                )
            ] * len(answered)
        try:
            return await asked.scores(
                question([one.messages for one in answered], self._rubric, self._max_characters)
            )
        except JudgeFailed as error:
            return [error] * len(answered)

    async def _scored(self, one: JudgedAttempt, asked: Asked) -> ScoreOrFailure:
        try:
            (found,) = await asked.scores(
                question([one.messages], self._rubric, self._max_characters)
            )
        except JudgeFailed as error:
            return error
        return found

    def _reward(
        self, one: JudgedAttempt, attempts: Sequence[JudgedAttempt], result: ScoreOrFailure
    ) -> AgentReward:
        compared = sorted(other.episode.event_id for other in attempts)
        failed = isinstance(result, JudgeFailed)
        return AgentReward(
            event_id=derive_id("reward", self.name, self.source, *compared, one.episode.event_id),
            # A later comparison, of more trajectories or of later revisions, must win over an
            # earlier one.
            event_time=max(other.episode.event_time for other in attempts) + len(attempts),
            group_id=one.episode.group_id,
            rollout_id=one.episode.rollout_id,
            attempt=one.episode.attempt,
            name=self.name,
            value=None if failed else result.score,
            final=True,
            source=self.source,
            error=clean(result.text()) if failed else None,
            metadata=None
            if failed
            else json.dumps({"explanation": clean(result.explanation)}, ensure_ascii=False),
            subject=one.episode.subject,
            fallback=self.is_live,
        )
