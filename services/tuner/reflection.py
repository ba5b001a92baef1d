"""Asks the reflection model, and works out what an answer cost."""

from __future__ import annotations

import asyncio

from fulgurite.cost.prices import Price
from fulgurite.events import PromptCost
from services.common.chat.errors import ChatPassingFailure, ChatRefused
from services.common.chat.model import ChatAnswer, ChatModel
from services.tuner.errors import ReflectionFailed
from services.tuner.settings import TunerSettings

AGENT = "tuner"
"""The role under which the gateway records the questions."""
_MILLION = 1e6


class ReflectionModel:
    """The client of one model. For threads without an event loop."""

    def __init__(self, model: str, settings: TunerSettings, price: Price | None) -> None:
        """Raises ValueError for a rollout's key, and if the gateway needs a key and none is set."""
        self._model = model
        self._price = price
        self._chat = ChatModel(model, AGENT, settings)

    def ask(self, prompt: str) -> tuple[str, PromptCost]:
        """The answer's text and its cost. Raises ReflectionFailed."""
        try:
            answer = asyncio.run(self._ask(prompt))
        except ChatRefused as error:
            raise ReflectionFailed(
                f"the reflection model {self._model!r} refused: {error}. Check --reflection-model, "
                "FULGURITE_TUNER_BASE_URL and FULGURITE_TUNER_API_KEY"
            ) from error
        except ChatPassingFailure as error:
            raise ReflectionFailed(
                f"the reflection model {self._model!r} gave no answer: {error}"
            ) from error
        return answer.text, self._cost(answer)

    async def _ask(self, prompt: str) -> ChatAnswer:
        async with self._chat as chat:
            return await chat.retry(lambda: chat.ask([{"role": "user", "content": prompt}]))

    def _cost(self, answer: ChatAnswer) -> PromptCost:
        usage, price = answer.usage, self._price
        money = None
        if price is not None:
            money = (
                usage.prompt_tokens * price.input + usage.completion_tokens * price.output
            ) / _MILLION
        return PromptCost(
            calls=1,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            money=money,
        )
