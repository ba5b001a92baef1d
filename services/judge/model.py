"""Asks a chat model for scores. Every failure is a `JudgeFailed`."""

from __future__ import annotations

from typing import Any

from services.common.chat.errors import ChatRefused, ChatUnreachable, ChatUnreadable
from services.common.chat.model import ChatModel
from services.judge.errors import BadVerdict, JudgeRefused, JudgeUnreachable, PassingFailure
from services.judge.prompt import Question, Score
from services.judge.settings import JudgeSettings


class JudgeModel(ChatModel):
    """The client of one judging model. Use it in an `async with`."""

    def __init__(self, model: str, agent: str, settings: JudgeSettings) -> None:
        """`agent`: the role under which the calls are recorded.

        Raises ValueError for a rollout's key, and if the gateway needs a key and none is set.
        """
        super().__init__(model, agent, settings)
        temperature = settings.temperature
        self._sampling: dict[str, Any] = {} if temperature is None else {"temperature": temperature}

    async def scores(self, question: Question) -> list[Score]:
        """Return scores in the order of the trajectories. Raises JudgeFailed."""
        return await self.retry(lambda: self._scores_once(question), PassingFailure)

    async def _scores_once(self, question: Question) -> list[Score]:
        try:
            answer = await self.ask(
                question.messages, response_format=question.response_format(), **self._sampling
            )
        except ChatRefused as error:
            raise JudgeRefused(str(error)) from error
        except ChatUnreachable as error:
            raise JudgeUnreachable(str(error)) from error
        except ChatUnreadable as error:
            raise BadVerdict(str(error)) from error
        if answer.is_cut:
            raise BadVerdict(
                "the answer was cut at its length limit: raise FULGURITE_JUDGE_MAX_TOKENS"
            )
        return question.answered(answer.text)
