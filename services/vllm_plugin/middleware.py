"""Tells in each reply which version of the policy produced it, and on request its tokens. Pure
ASGI; a stream passes chunk by chunk.

Whole replies bear `x-fulgurite-version` (first token) and `x-fulgurite-version-last` (last token).
Streams bear the first as a header, if it is known by then, and the last as a comment, `:
fulgurite-version policy@1.7`, before `data: [DONE]`. Replies that generated nothing bear neither.
The versions are vLLM's own, attached by its engine to the tokens of each step: not what somebody
meant to load, nor what is served now.

A request with `x-fulgurite-tokens: 1` gets token ids and log-probabilities, for APIs that have no
place for them: base64 of little-endian int32 and float32, `-` for none. A stream bears comments, `:
fulgurite-tokens <sequence> <prompt ids> <ids> <log-probabilities>`, each with what is new and
before the events that it belongs to; a whole reply the field `fulgurite_tokens`: `[[prompt ids,
ids, log-probabilities]]`.

A request with `x-fulgurite-expects: policy@1.7` is refused as long as the engine has the weights
that it was started with (503, `x-fulgurite-refused: version`, nothing generated): it has restarted,
and who asks does not know yet. Any other version is answered, since updates and rollbacks may be
under way; `policy@0.0` is the base model itself, and always answered.

With `x-fulgurite-tokens: instead` likewise, and the body's last two fields,
`"logprobs":true,"return_token_ids":true`, are cut off: the same in JSON takes vLLM some objects a
token, and whoever reads it as many. Without this middleware it is answered in JSON.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fulgurite.versions import Version
from services.vllm_plugin.sequences import UNTOUCHED, Sequences, current, follow

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

FIRST, LAST = b"x-fulgurite-version", b"x-fulgurite-version-last"
ASK = b"x-fulgurite-tokens"
ON_TOP, INSTEAD = b"1", b"instead"
IN_BODY = b',"logprobs":true,"return_token_ids":true}'
EXPECTS, REFUSED = b"x-fulgurite-expects", b"x-fulgurite-refused"
BASE = b"@0.0"
FIELD = "fulgurite_tokens"
_DONE = b"data: [DONE]"
_OK, _NOT_READY = 200, 503


class VersionMiddleware:
    """`--middleware services.vllm_plugin.middleware.VersionMiddleware`"""

    def __init__(self, app: App) -> None:
        self._app = app
        self._touched = False
        """Whether the engine was given weights: from then on, until it restarts, it never has its
        first ones under their first name.
        """

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        engine = scope["app"].state.engine_client
        follow(engine)
        expected = next((value for name, value in scope["headers"] if name == EXPECTS), BASE)
        if not expected.endswith(BASE) and not await self._was_touched(engine):
            await _refuse(send, expected)
            return
        asked = next((value for name, value in scope["headers"] if name == ASK), b"")
        sequences = Sequences(wanted=asked in (ON_TOP, INSTEAD))
        if asked == INSTEAD:
            receive = _Body(receive)
        token = current.set(sequences)
        try:
            await self._app(scope, receive, _Reply(send, sequences))
        finally:
            current.reset(token)

    async def _was_touched(self, engine: Any) -> bool:
        if not self._touched:
            self._touched = await engine.get_weight_version() != UNTOUCHED
        return self._touched


async def _refuse(send: Send, expected: bytes) -> None:
    message = (
        f"This engine has just started and is not at {expected.decode('latin-1')} yet. Nothing was "
        "generated; try again shortly."
    )
    body = json.dumps(
        {"error": {"message": message, "type": "server_error", "code": "version_not_loaded"}}
    ).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (REFUSED, b"version"),
        (b"retry-after", b"1"),
    ]
    await send({"type": "http.response.start", "status": _NOT_READY, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Body:
    """A request's body without its last two fields, which ask for what is sent packed in their
    place.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._whole = False

    async def __call__(self) -> Message:
        """The whole body as one message; later ones as they are."""
        message = await self._receive()
        pieces: list[bytes] = []
        while not self._whole and message["type"] == "http.request":
            pieces.append(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._whole:
                body = b"".join(pieces)
                cut = body[: -len(IN_BODY)] + b"}" if body.endswith(IN_BODY) else body
                return {**message, "body": cut}
            message = await self._receive()
        return message


class _Reply:
    """Passes a reply on. The start of a stream waits for its first chunk, because only then the
    first token's version is known.
    """

    def __init__(self, send: Send, sequences: Sequences) -> None:
        self._send = send
        self._sequences = sequences
        self._held: Message | None = None
        self._body = b""
        self._streams = False
        self._between_events = True
        self._told: list[Version] = []
        """Versions that comments have told."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body" and self._streams:
            await self._chunk(message)
        elif message["type"] == "http.response.body" and self._held is not None:
            await self._piece(message)
        else:
            await self._send(message)

    async def _start(self, message: Message) -> None:
        self._streams = any(
            name == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in message["headers"]
        )
        if self._streams or (self._sequences.wanted and message["status"] == _OK):
            self._held = message
        else:
            await self._send(self._with_headers(message))

    async def _piece(self, message: Message) -> None:
        """A piece of a whole reply that gets its tokens: its length changes, so its start waits for
        all of it.
        """
        self._body += message.get("body", b"")
        if message.get("more_body", False) or self._held is None:
            return
        body = with_field(self._body, self._sequences)
        start, self._held = self._with_headers(self._held), None
        headers = [
            (name, str(len(body)).encode() if name == b"content-length" else value)
            for name, value in start["headers"]
        ]
        await self._send({**start, "headers": headers})
        await self._send({**message, "body": body})

    async def _chunk(self, message: Message) -> None:
        if self._held is not None:
            start, self._held = self._held, None
            await self._send(self._with_headers(start))
        body: bytes = message.get("body", b"")
        comments = self._tokens() if self._sequences.wanted and self._between_events else b""
        self._between_events = body.endswith(b"\n\n") if body else self._between_events
        await self._send(
            {
                **message,
                "body": comments + (body if self._sequences.wanted else self._with_version(body)),
            }
        )

    def _tokens(self) -> bytes:
        """What is new, as comments: tokens, and with them their versions, since a stream may have
        no `[DONE]` to tell them at.
        """
        news = self._sequences.news()
        lines = [
            b": fulgurite-tokens %d %b\n\n" % (number, b" ".join(map(_base64, new)))
            for number, new in news
        ]
        for version in (self._sequences.first_and_last() or ()) if lines else ():
            if version not in self._told:
                self._told.append(version)
                lines.append(f": fulgurite-version {version}\n\n".encode())
        return b"".join(lines)

    def _with_headers(self, start: Message) -> Message:
        versions = self._sequences.first_and_last()
        if versions is None:
            return start
        named = zip((FIRST, LAST), versions, strict=True)
        added = [
            (name, str(version).encode())
            for name, version in named
            if not (self._streams and name == LAST)
        ]
        return {**start, "headers": [*start["headers"], *added]}

    def _with_version(self, body: bytes) -> bytes:
        # At an event's start only: inside an event the same text would be content, whose line
        # breaks are escaped.
        at = 0 if body.startswith(_DONE) else body.find(b"\n\n" + _DONE) + 2
        versions = self._sequences.first_and_last()
        if versions is None or (at < 2 and not body.startswith(_DONE)):
            return body
        comment = f": fulgurite-version {versions[1]}\n\n".encode()
        return body[:at] + comment + body[at:]


def with_field(body: bytes, sequences: Sequences) -> bytes:
    """A JSON object with its tokens in a field of their own; anything else as it is."""
    news = [[part.decode() for part in map(_base64, new)] for _, new in sequences.news()]
    text = body.rstrip()
    if not news or not text.startswith(b"{") or not text.endswith(b"}"):
        return body
    comma = b"," if text[1:-1].strip() else b""
    return text[:-1] + comma + f'"{FIELD}":{json.dumps(news)}'.encode() + b"}"


def _base64(packed: bytes) -> bytes:
    return b2a_base64(packed, newline=False) if packed else b"-"
