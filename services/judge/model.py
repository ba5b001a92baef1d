"""Asks an OpenAI-compatible model for scores, with a bounded number of retries and a time limit.

Every failure is a `JudgeFailed`. With a plain API key the gateway records each question as a
rollout of its own with mode `live`: it is in no declared group, gets no reward and is not trained.
With a rollout's key the question would become part of that rollout, so such a key is refused.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from services.judge.errors import BadVerdict, JudgeRefused, JudgeUnreachable, PassingFailure
from services.judge.prompt import Question, Score
from services.judge.settings import JudgeSettings

ROLLOUT_KEY_PREFIX = "fg-"
_HEALING = frozenset({408, 409, 425, 429})
_LONGEST_ERROR = 300


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]


class JudgeModel:
    """The client of one judging model. Use it in an `async with`."""

    def __init__(self, model: str, agent: str, settings: JudgeSettings) -> None:
        """`agent`: the role under which the calls are recorded.

        Raises ValueError for a rollout's key, and if the gateway needs a key and none is set.
        """
        key = settings.key()
        if key.startswith(ROLLOUT_KEY_PREFIX):
            raise ValueError(
                f"{settings.key_variable} is a rollout's key ({ROLLOUT_KEY_PREFIX}...): the "
                "judge's calls would become part of that rollout. Set it to a plain key of the "
                "gateway."
            )
        self._model = model
        self._settings = settings
        self._url = settings.url + "/chat/completions"
        self._headers = {"x-fulgurite-agent": agent} | (
            {"authorization": f"Bearer {key}"} if key else {}
        )
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s)
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def scores(self, question: Question) -> list[Score]:
        """Return scores in the order of the trajectories. Raises JudgeFailed."""
        wait_s = self._settings.retry_wait_s
        for _ in range(self._settings.retries):
            try:
                return question.answered(await self._ask(question))
            except PassingFailure:
                await asyncio.sleep(wait_s)
                wait_s *= 2
        return question.answered(await self._ask(question))

    async def _ask(self, question: Question) -> str:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": question.messages,
            "response_format": question.response_format(),
            "max_tokens": self._settings.max_tokens,
        }
        if self._settings.temperature is not None:
            body["temperature"] = self._settings.temperature
        status, answer = await self._post(body)
        if status != 200:
            raise _refusal(status, answer, self._settings.key_variable)
        return _text_of(answer)

    async def _post(self, body: dict[str, Any]) -> tuple[int, bytes]:
        assert self._session is not None
        try:
            # Following a redirect could send the key to another server.
            async with self._session.post(
                self._url, json=body, headers=self._headers, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except TimeoutError as error:
            raise JudgeUnreachable(
                f"no answer within {self._settings.timeout_s:g} s (FULGURITE_JUDGE_TIMEOUT_S)"
            ) from error
        except aiohttp.ClientError as error:
            raise JudgeUnreachable(f"{self._url}: {type(error).__name__}") from error


def _refusal(status: int, answer: bytes, key_variable: str) -> JudgeRefused | JudgeUnreachable:
    if status in (401, 403):
        # The body is left out: it may repeat the key.
        return JudgeRefused(
            f"status {status}: the server does not accept the key in {key_variable}"
        )
    text = " ".join(answer.decode("utf-8", "replace").split())[:_LONGEST_ERROR]
    kind = JudgeUnreachable if status in _HEALING or status >= 500 else JudgeRefused
    return kind(f"status {status}: {text}")


def _text_of(answer: bytes) -> str:
    try:
        choice = msgspec.json.decode(answer, type=_Reply).choices[0]
    except (msgspec.DecodeError, IndexError, UnicodeError) as error:
        raise BadVerdict("the server's answer is not a chat completion") from error
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise JudgeRefused(
            (choice.message.refusal or "the answer was withheld by a content filter")[
                :_LONGEST_ERROR
            ]
        )
    if choice.finish_reason == "length":
        raise BadVerdict("the answer was cut at its length limit: raise FULGURITE_JUDGE_MAX_TOKENS")
    return choice.message.content or ""
