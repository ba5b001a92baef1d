"""A gateway in this process whose upstream sends the bytes that a test gives it, and whose log is a
list.

All but the sockets is real: the endpoint, its dialect, the recorder, and the codec that the log's
events must pass.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.types import Message

from fulgurite.avro.codec import Codec
from fulgurite.events import Event, LlmCall
from fulgurite.topics import Topic
from services.common.kafka.delivery import Delivery
from services.common.kafka.settings import KafkaSettings
from services.gateway.context import GatewayContext, make_context
from services.gateway.dialects.registry import DIALECTS
from services.gateway.http.endpoint import Endpoint
from services.gateway.settings import GatewaySettings
from services.gateway.upstream.client import UpstreamClient, UpstreamReply
from services.gateway.upstream.route import Route
from tests.services.gateway.memory_producer import MemoryProducer

KEY, OTHER_KEY = "a-plain-key-of-an-agent", "another-plain-key"
NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1")
SSE, JSON = "text/event-stream", "application/json"
REPLY = json.dumps(
    {
        "id": "u1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi"},
                "finish_reason": "stop",
            }
        ],
    }
).encode()
"""A complete answer to a chat."""
_CODEC = Codec()
_UPSTREAMS = {
    "odd": {"base_url": "http://127.0.0.1:9", "kind": "openai", "model": "m"},
    "oddv": {"base_url": "http://127.0.0.1:9", "kind": "vllm", "model": "m", "policy": "policy"},
}


class ScriptedReply(UpstreamReply):
    """An answer of status 200 that comes in these pieces."""

    def __init__(self, pieces: Sequence[bytes], headers: Mapping[str, str]) -> None:
        self._pieces = iter(pieces)
        self._headers = headers

    def close(self) -> None:
        pass

    def header(self, name: str) -> str | None:
        return self._headers.get(name)

    async def piece(self) -> bytes:
        """An empty piece would be the end."""
        return next(filter(None, self._pieces), b"")


class ScriptedUpstream(UpstreamClient):
    """Answers every request with what it was given last, or raises it."""

    def __init__(self) -> None:
        self.pieces: Sequence[bytes] = ()
        self.headers: Mapping[str, str] = {}
        self.error: Exception | None = None
        self.asked: list[tuple[str, Any]] = []
        """Backend and body of each request."""
        self.was_asked = asyncio.Event()

    async def post(
        self,
        route: Route,
        path: str,
        body: bytes,
        call_id: str,
        traceparent: str | None,
        extra: Mapping[str, str],
    ) -> UpstreamReply:
        self.asked.append((route.backend, msgspec.json.decode(body)))
        self.was_asked.set()
        if self.error is not None:
            raise self.error
        return ScriptedReply(self.pieces, self.headers)


class CodecProducer(MemoryProducer):
    """A log that takes what its readers can read, and keeps it as they read it."""

    def submit(
        self, topic: Topic, key: str, event: Event, traceparent: str | None = None
    ) -> concurrent.futures.Future[Delivery]:
        return super().submit(topic, key, _CODEC.decode(_CODEC.encode(event)), traceparent)


class Answer(msgspec.Struct):
    """What came of a call."""

    status: int
    headers: dict[str, str]
    body: bytes
    calls: list[LlmCall]
    """The events of it."""

    @property
    def call(self) -> LlmCall:
        """The one event."""
        assert len(self.calls) == 1, self.calls
        return self.calls[0]

    @property
    def message(self) -> Any:
        """The message of its first choice."""
        return msgspec.json.decode(self.call.choices[0].message or "")

    @property
    def events(self) -> list[Any]:
        """A stream's data as the agent reads it; `[DONE]` is a text."""
        data = [
            line[6:]
            for line in self.body.decode("utf-8", "replace").split("\n")
            if line.startswith("data: ")
        ]
        return [said if said == "[DONE]" else read(said) for said in data]


def read(text: str) -> Any:
    """As an agent in Python does."""
    import json

    return json.loads(text)


class Gateway:
    """Asks it."""

    def __init__(
        self, context: GatewayContext, upstream: ScriptedUpstream, producer: CodecProducer
    ) -> None:
        self.metrics = context.metrics
        self.policies = context.policies.view
        self.prompts = context.prompts.history
        self.upstream = upstream
        self._producer = producer
        self._endpoints = {dialect.path: Endpoint(context, dialect) for dialect in DIALECTS}

    async def answer(
        self,
        path: str,
        pieces: Sequence[bytes] | Exception,
        *,
        headers: Mapping[str, str] | None = None,
        asked_with: Mapping[str, str] | None = None,
        key: str = KEY,
        **body: Any,
    ) -> Answer:
        """The answer to a request when the upstream sends this, with these `headers`.

        `asked_with`: headers of the request.
        """
        upstream, sent = self.upstream, list[Message]()
        upstream.error = pieces if isinstance(pieces, Exception) else None
        upstream.pieces = () if isinstance(pieces, Exception) else pieces
        upstream.headers = {"content-type": SSE if body.get("stream") else JSON} | dict(
            headers or {}
        )
        request = [{"type": "http.request", "body": msgspec.json.encode(body), "more_body": False}]

        async def receive() -> Message:
            if not request:
                await asyncio.Event().wait()
            return request.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        before = len(self._producer.log)
        named = [
            (b"authorization", f"Bearer {key}".encode()),
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in (asked_with or {}).items()),
        ]
        await self._endpoints[path](
            {"type": "http", "method": "POST", "path": path, "headers": named, "path_params": {}},
            receive,
            send,
        )
        assert not sent[-1].get("more_body", False), "the reply has no end"
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        calls = [event for _, event in self._producer.log[before:] if isinstance(event, LlmCall)]
        return Answer(
            sent[0]["status"], told, b"".join(message["body"] for message in sent[1:]), calls
        )

    def forget(self) -> None:
        """Leave what was recorded so far."""
        self._producer.log.clear()

    def unread(self) -> float:
        """Parts of answers that were not understood, so far."""
        return (
            self.metrics.registry.get_sample_value("fulgurite_gateway_unread_chunks_total") or 0.0
        )


@asynccontextmanager
async def running(folder: Path, **changes: Any) -> AsyncGenerator[Gateway]:
    """A gateway that is there within this context. `changes`: further settings."""
    settings = GatewaySettings.model_validate(
        {
            "api_keys": f"{KEY},{OTHER_KEY}",
            "signing_keys": "k1:0123456789abcdef0123456789abcdef",
            "upstreams": _UPSTREAMS,
            "data_dir": folder,
            **changes,
        }
    )
    producer, upstream = CodecProducer(), ScriptedUpstream()
    context = make_context(settings, NOWHERE, _CODEC, producer, upstream)
    try:
        yield Gateway(context, upstream, producer)
    finally:
        context.responses.close()
        await context.recorder.close()
