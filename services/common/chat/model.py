"""Asks an OpenAI-compatible chat model, with a time limit.

With a plain API key the gateway records each question as a rollout of its own with mode `live`: it
is in no declared group, gets no reward and is not trained. With a rollout's key the question would
become part of that rollout, so such a key is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from fulgurite.ids import ROLLOUT_KEY_PREFIX
from services.common.chat.errors import (
    ChatPassingFailure,
    ChatRefused,
    ChatUnreachable,
    ChatUnreadable,
)
from services.common.chat.settings import ChatSettings

_HEALING = frozenset({408, 409, 425, 429})
_LONGEST_ERROR = 300

_T = TypeVar("_T")


class ChatUsage(msgspec.Struct, frozen=True):
    """Tokens of a question and its answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatAnswer(msgspec.Struct, frozen=True):
    """What the model said."""

    text: str
    is_cut: bool
    """Whether it ended at its length limit."""
    usage: ChatUsage


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    usage: ChatUsage | None = None


class ChatModel:
    """The client of one model. Use it in an `async with`."""

    def __init__(self, model: str, agent: str, settings: ChatSettings) -> None:
        """`agent`: the role under which the calls are recorded.

        Raises ValueError for a rollout's key, and if the gateway needs a key and none is set.
        """
        key = settings.key()
        if key.startswith(ROLLOUT_KEY_PREFIX):
            raise ValueError(
                f"{settings.key_variable} is a rollout's key ({ROLLOUT_KEY_PREFIX}...): the calls "
                f"of the {agent} would become part of that rollout. Set it to a plain key of the "
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

    async def ask(self, messages: Sequence[dict[str, Any]], **parameters: Any) -> ChatAnswer:
        """Ask once; `parameters` are further fields of the request.

        Raises ChatRefused, ChatUnreachable, ChatUnreadable.
        """
        status, answer = await self._post(
            {
                "model": self._model,
                "messages": messages,
                "max_tokens": self._settings.max_tokens,
                **parameters,
            }
        )
        if status != 200:
            raise _failure(status, answer, self._settings.key_variable)
        return _read(answer)

    async def retry(
        self, ask: Callable[[], Awaitable[_T]], passing: type[Exception] = ChatPassingFailure
    ) -> _T:
        """Call `ask` until it raises no `passing` error or has no retry left, with longer and
        longer waits. Raises what `ask` raises.
        """
        wait_s = self._settings.retry_wait_s
        for _ in range(self._settings.retries):
            try:
                return await ask()
            except passing:
                await asyncio.sleep(wait_s)
                wait_s *= 2
        return await ask()

    async def _post(self, body: dict[str, Any]) -> tuple[int, bytes]:
        assert self._session is not None
        try:
            # Following a redirect could send the key to another server.
            async with self._session.post(
                self._url, json=body, headers=self._headers, allow_redirects=False
            ) as response:
                return response.status, await response.read()
        except TimeoutError as error:
            raise ChatUnreachable(
                f"no answer within {self._settings.timeout_s:g} s "
                f"({self._settings.variable('timeout_s')})"
            ) from error
        except aiohttp.ClientError as error:
            raise ChatUnreachable(f"{self._url}: {type(error).__name__}") from error


def _failure(status: int, answer: bytes, key_variable: str) -> ChatRefused | ChatUnreachable:
    if status in (401, 403):
        # The body is left out: it may repeat the key.
        return ChatRefused(f"status {status}: the server does not accept the key in {key_variable}")
    text = " ".join(answer.decode("utf-8", "replace").split())[:_LONGEST_ERROR]
    kind = ChatUnreachable if status in _HEALING or status >= 500 else ChatRefused
    return kind(f"status {status}: {text}")


def _read(answer: bytes) -> ChatAnswer:
    try:
        reply = msgspec.json.decode(answer, type=_Reply)
        choice = reply.choices[0]
    except (msgspec.DecodeError, IndexError, UnicodeError) as error:
        raise ChatUnreadable("the server's answer is not a chat completion") from error
    if choice.message.refusal or choice.finish_reason == "content_filter":
        reason = choice.message.refusal or "the answer was withheld by a content filter"
        raise ChatRefused(reason[:_LONGEST_ERROR])
    return ChatAnswer(
        text=choice.message.content or "",
        is_cut=choice.finish_reason == "length",
        usage=reply.usage or ChatUsage(),
    )
