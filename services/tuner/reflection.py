"""Asks the reflection model, an OpenAI-compatible chat, with a bounded number of retries.

With a plain key the gateway records each question as a rollout of its own of the role `tuner`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec

from fulgurite.cost.prices import Price
from fulgurite.events import PromptCost
from services.tuner.errors import ReflectionFailed
from services.tuner.settings import TunerSettings

AGENT = "tuner"
_HEALING = frozenset({408, 409, 425, 429})
_LONGEST_ERROR = 300
_MILLION = 1e6


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Passing(Exception):
    """A failure that may pass."""


class ReflectionModel:
    """The client of one model. For threads without an event loop."""

    def __init__(self, model: str, settings: TunerSettings, price: Price | None) -> None:
        """Raises ValueError if the gateway needs a key and none is set."""
        key = settings.key()
        self._model = model
        self._settings = settings
        self._price = price
        self._url = settings.url + "/chat/completions"
        self._headers = {"x-fulgurite-agent": AGENT} | (
            {"authorization": f"Bearer {key}"} if key else {}
        )

    def ask(self, prompt: str) -> tuple[str, PromptCost]:
        """The answer's text and its cost. Raises ReflectionFailed."""
        return asyncio.run(self._ask(prompt))

    async def _ask(self, prompt: str) -> tuple[str, PromptCost]:
        wait_s, problem = self._settings.retry_wait_s, ""
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for attempt in range(self._settings.retries + 1):
                try:
                    return self._read(await self._post(session, prompt))
                except _Passing as error:
                    problem = str(error)
                if attempt < self._settings.retries:
                    await asyncio.sleep(wait_s)
                    wait_s *= 2
        raise ReflectionFailed(f"the reflection model {self._model!r} gave no answer: {problem}")

    async def _post(self, session: aiohttp.ClientSession, prompt: str) -> bytes:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._settings.max_tokens,
        }
        try:
            # Following a redirect could send the key to another server.
            async with session.post(
                self._url, json=body, headers=self._headers, allow_redirects=False
            ) as response:
                answer = await response.read()
        except TimeoutError as error:
            raise _Passing(
                f"nothing within {self._settings.timeout_s:g} s (FULGURITE_TUNER_TIMEOUT_S)"
            ) from error
        except aiohttp.ClientError as error:
            raise _Passing(f"{self._url}: {type(error).__name__}") from error
        if response.status == 200:
            return answer
        text = f"{self._url}: {response.status} {answer[:_LONGEST_ERROR].decode(errors='replace')}"
        if response.status >= 500 or response.status in _HEALING:
            raise _Passing(text)
        raise ReflectionFailed(
            f"the reflection model {self._model!r} refused: {text}. Check --reflection-model, "
            "FULGURITE_TUNER_BASE_URL and FULGURITE_TUNER_API_KEY"
        )

    def _read(self, answer: bytes) -> tuple[str, PromptCost]:
        try:
            reply = msgspec.json.decode(answer, type=_Reply)
        except msgspec.DecodeError as error:
            raise _Passing(f"{self._url}: not a chat completion ({error})") from error
        text = reply.choices[0].message.content if reply.choices else None
        usage, price = reply.usage or _Usage(), self._price
        money = None
        if price is not None:
            money = (
                usage.prompt_tokens * price.input + usage.completion_tokens * price.output
            ) / _MILLION
        return text or "", PromptCost(
            calls=1,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            money=money,
        )
