"""What a judge makes of a group: one reward for every trajectory, a score or the reason why there
is none.

A verdict's id derives from the judge's name, model and rubric and from the revisions of all
episodes that were compared: asked again about the same group, a judge repeats the same events. The
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

Verdict = Score | JudgeFailed


class Asked(Protocol):
    """Who answers questions."""

    async def scores(self, question: Question) -> list[Score]:
        """In the order of the trajectories. Raises JudgeFailed."""
        ...


class GroupJudge:
    """Ranks groups."""

    def __init__(self, name: str, model: str, rubric: str, max_characters: int) -> None:
        self.name = name
        self.source = f"judge:{model}@{digest(rubric)}"
        self._rubric = rubric
        self._max_characters = max_characters

    async def judge(self, attempts: Sequence[JudgedAttempt], asked: Asked) -> list[AgentReward]:
        """The rewards of a group. Never raises for what a model or its server does."""
        speakers = [one for one in attempts if one.messages]
        verdicts: dict[str, Verdict] = {
            one.episode.rollout_id: NothingSaid("the attempt has no answered call")
            for one in attempts
        }
        for one, verdict in zip(speakers, await self._compared(speakers, asked), strict=True):
            verdicts[one.episode.rollout_id] = verdict
        return [self._reward(one, attempts, verdicts[one.episode.rollout_id]) for one in attempts]

    async def _compared(self, speakers: Sequence[JudgedAttempt], asked: Asked) -> Sequence[Verdict]:
        if len(speakers) < 2:
            return [
                TooFewTrajectories(
                    f"a judge compares, and this group has {len(speakers)} to be judged"
                )
            ] * len(speakers)
        try:
            return await asked.scores(
                question([one.messages for one in speakers], self._rubric, self._max_characters)
            )
        except JudgeFailed as error:
            return [error] * len(speakers)

    def _reward(
        self, one: JudgedAttempt, attempts: Sequence[JudgedAttempt], verdict: Verdict
    ) -> AgentReward:
        compared = sorted(other.episode.event_id for other in attempts)
        failed = isinstance(verdict, JudgeFailed)
        return AgentReward(
            event_id=derive_id("reward", self.name, self.source, *compared, one.episode.event_id),
            # A verdict on more of the group, or on later revisions, has to outweigh the one before
            # it.
            event_time=max(other.episode.event_time for other in attempts) + len(attempts),
            group_id=one.episode.group_id,
            rollout_id=one.episode.rollout_id,
            attempt=one.episode.attempt,
            name=self.name,
            value=None if failed else verdict.score,
            final=True,
            source=self.source,
            error=clean(verdict.text()) if failed else None,
            metadata=None
            if failed
            else json.dumps({"explanation": clean(verdict.explanation)}, ensure_ascii=False),
            subject=one.episode.subject,
        )
