"""Tells in each reply which version of the policy produced it. Pure ASGI; a stream passes through chunk by chunk.

Whole replies bear `x-fulgurite-version` (first token) and `x-fulgurite-version-last` (last token). Streams bear the first as a header and
the last as a comment, `: fulgurite-version policy@1.7`, before `data: [DONE]`. Replies that generated nothing bear neither.
The versions are vLLM's own, attached by its engine to the tokens of each step: not what somebody meant to load, nor what is served now.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from fulgurite.versions import MalformedVersion, Version, base_version, parse_version

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

FIRST, LAST = b"x-fulgurite-version", b"x-fulgurite-version-last"
_DONE = b"data: [DONE]"
_UNTOUCHED = "default"
"""What vLLM calls the weights that it was started with."""


class Spans:
    """The sequences that one HTTP request has the engine generate, and the versions that the engine reports for them."""

    def __init__(self) -> None:
        self._states: list[Any] = []

    def add(self, state: Any) -> None:
        """A `RequestState` of vLLM: its `weight_version_starts` lists (version, first token) as tokens arrive."""
        self._states.append(state)

    def first_and_last(self) -> tuple[Version, Version] | None:
        """None as long as there is no token."""
        labels = [label for state in self._states for label, _ in state.weight_version_starts]
        versions = sorted(_version(label) for label in labels)
        return (versions[0], versions[-1]) if versions else None


_current: ContextVar[Spans | None] = ContextVar("fulgurite_spans", default=None)


def _version(label: str) -> Version:
    if label == _UNTOUCHED:
        return base_version(os.environ.get("FULGURITE_POLICY", "policy"))
    try:
        return parse_version(label)
    except MalformedVersion:
        # Loaded by someone else, under a name of theirs: no version of ours, and older than any.
        return Version(label, -1, -1)


def follow(engine: Any) -> None:
    """Have the engine's output processor note each sequence in the spans of the request that asked for it. Idempotent."""
    processor = engine.output_processor
    if getattr(processor, "_fulgurite", False):
        return
    add_request = processor.add_request

    def adding(request: Any, *args: Any, **kwargs: Any) -> None:
        add_request(request, *args, **kwargs)
        spans, state = _current.get(), processor.request_states.get(request.request_id)
        if spans is not None and state is not None:
            spans.add(state)

    processor.add_request = adding
    processor._fulgurite = True


class VersionMiddleware:
    """`--middleware services.vllm_plugin.middleware.VersionMiddleware`"""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        follow(scope["app"].state.engine_client)
        spans = Spans()
        token = _current.set(spans)
        try:
            await self._app(scope, receive, _Reply(send, spans))
        finally:
            _current.reset(token)


class _Reply:
    """Passes a reply on. The start of a stream waits for its first chunk, because only then the first token's version is known."""

    def __init__(self, send: Send, spans: Spans) -> None:
        self._send = send
        self._spans = spans
        self._held: Message | None = None
        self._streams = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._streams = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in message["headers"])
            if self._streams:
                self._held = message
            else:
                await self._send(self._with_headers(message))
            return
        if message["type"] != "http.response.body" or not self._streams:
            await self._send(message)
            return
        if self._held is not None:
            start, self._held = self._held, None
            await self._send(self._with_headers(start))
        await self._send(self._with_comment(message))

    def _with_headers(self, start: Message) -> Message:
        versions = self._spans.first_and_last()
        if versions is None:
            return start
        named = zip((FIRST, LAST), versions, strict=True)
        added = [(name, str(version).encode()) for name, version in named if not (self._streams and name == LAST)]
        return {**start, "headers": [*start["headers"], *added]}

    def _with_comment(self, message: Message) -> Message:
        body: bytes = message.get("body", b"")
        # At an event's start only: inside an event the same text would be content, whose line breaks are escaped.
        at = 0 if body.startswith(_DONE) else body.find(b"\n\n" + _DONE) + 2
        versions = self._spans.first_and_last()
        if versions is None or (at < 2 and not body.startswith(_DONE)):
            return message
        comment = f": fulgurite-version {versions[1]}\n\n".encode()
        return {**message, "body": body[:at] + comment + body[at:]}
