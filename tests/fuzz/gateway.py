"""The whole gateway within this process: its log is a list, its upstream answers at once. A request
costs a millisecond.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import msgspec
from starlette.types import Message, Scope

from fulgurite.avro.codec import Codec
from fulgurite.events import Event, LlmCall
from fulgurite.topics import Topic
from services.common.kafka.delivery import Delivery
from services.common.kafka.settings import KafkaSettings
from services.gateway import app as gateway_app
from services.gateway import context
from services.gateway.errors import UpstreamRejected
from services.gateway.http.error_handlers import on_unexpected_error
from services.gateway.http.front_door import FrontDoor
from services.gateway.recording import recorder, rollout_search
from services.gateway.settings import GatewaySettings
from services.gateway.upstream import followed_topics
from services.gateway.upstream.route import Route
from tests.integration.stub_answers import Script
from tests.integration.stub_items import Embeddings
from tests.integration.stub_upstream import APIS
from tests.services.gateway.memory_producer import MemoryProducer

ADMIN, PLAIN = "the-admin-key", "a-plain-key"
SIGNING = "k1:0123456789abcdef0123456789abcdef"
_MOST_CHOICES = 16
NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1")


class CheckedLog(MemoryProducer):
    """Takes what the schemas take."""

    def __init__(self) -> None:
        super().__init__()
        self._codec = Codec()

    def submit(self, topic: Topic, key: str, event: Event, traceparent: str | None = None) -> Any:
        """See EventProducer."""
        self._codec.encode(event)
        key.encode()
        (traceparent or "").encode()
        return super().submit(topic, key, event)

    async def publish(
        self,
        topic: Topic,
        key: str,
        event: Event,
        traceparent: str | None = None,
        timeout_s: float | None = None,
    ) -> Delivery:
        """See EventProducer."""
        return self.submit(topic, key, event, traceparent).result()


class ListSearch:
    """Searches a log that is a list, as `LogSearch` does Kafka's."""

    def __init__(self, log: CheckedLog) -> None:
        self._log = log

    def newest_first(self, topic: Topic, group_id: str, _deadline: float) -> Iterator[list[Event]]:
        """See LogSearch."""
        yield [
            event
            for key, event in self._log.log
            if key == group_id and isinstance(event, topic.carries)
        ]


class Reply:
    """An upstream's answer."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def close(self) -> None:
        """See UpstreamReply."""

    def header(self, _name: str) -> str | None:
        """See UpstreamReply."""
        return None

    async def read(self) -> bytes:
        """See UpstreamReply."""
        return b"".join(self._pieces)

    async def pieces(self) -> AsyncGenerator[bytes]:
        """See UpstreamReply."""
        for piece in self._pieces:
            yield piece


class Upstream:
    """Answers what makes sense to it, and refuses the rest."""

    async def post(
        self,
        route: Route,
        path: str,
        body: bytes,
        _call: str,
        _trace: str | None,
        headers: Mapping[str, str],
    ) -> Reply:
        """See UpstreamClient."""
        asked, api, script = json.loads(body), APIS[path], Script(vllm=route.kind == "vllm")
        try:
            if not 1 <= (asked.get("n") or 1) <= _MOST_CHOICES:
                raise ValueError("no such `n`")
            if asked.get("stream") and not isinstance(api, Embeddings):
                return Reply([*api.events(asked, headers, script), api.done])
            return Reply([msgspec.json.encode(api.whole(asked, headers, script))])
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise UpstreamRejected(
                route.backend, 400, json.dumps({"error": {"message": repr(error)}}).encode()
            ) from error

    async def reachable(self, _route: Route) -> bool:
        """See UpstreamClient."""
        return True

    async def close(self) -> None:
        """See UpstreamClient."""


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class InProcess:
    """The gateway, as uvicorn would call it."""

    def __init__(self, app: FrontDoor, log: CheckedLog) -> None:
        self._app = app
        self.log = log

    def calls(self) -> list[LlmCall]:
        """All that was recorded of calls."""
        return [event for _, event in self.log.log if isinstance(event, LlmCall)]

    async def ask(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        pieces: int = 1,
    ) -> Answer:
        """One request, whose body comes in so many pieces."""
        step = -(-len(body) // pieces) or 1
        parts = [body[at : at + step] for at in range(0, len(body), step)] or [b""]
        incoming: list[Message] = [
            {"type": "http.request", "body": part, "more_body": number < len(parts) - 1}
            for number, part in enumerate(parts)
        ]
        sent: list[Message] = []

        async def receive() -> Message:
            return incoming.pop(0) if incoming else await asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("utf-8", "replace"),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        await self._app(scope, receive, send)
        assert sent, f"{method} {path}: no answer"
        named = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in sent[0]["headers"]
        }
        assert not sent[-1].get("more_body", False), f"{method} {path}: the answer does not end"
        return Answer(
            sent[0]["status"], named, b"".join(message.get("body", b"") for message in sent[1:])
        )


@asynccontextmanager
async def in_process(folder: Path, **settings: Any) -> AsyncGenerator[InProcess]:
    """A gateway with small bounds, so that inputs reach them."""
    log = CheckedLog()
    given = {
        "signing_keys": SIGNING,
        "admin_key": ADMIN,
        "api_keys": PLAIN,
        "data_dir": folder,
        "aliases": "policy=policy,writer=policy",
        "upstreams": {"other": {"base_url": "http://other", "kind": "openai"}},
        "max_body_bytes": 64 * 1024,
        "max_rest_body_bytes": 16 * 1024,
        "max_body_values": 2000,
        "key_statuses_per_minute": 0,
        "heartbeat_s": 3600.0,
    }
    quiet = MagicMock()
    quiet.return_value.find.return_value = None
    stand_ins: list[tuple[object, str, Any]] = [
        (context, "EventProducer", MagicMock(return_value=log)),
        (context, "UpstreamClient", MagicMock(return_value=Upstream())),
        (context, "CallSearch", quiet),
        (rollout_search, "open_search", MagicMock(return_value=nullcontext(ListSearch(log)))),
        (gateway_app, "tune_gc", MagicMock()),
        (followed_topics, "TopicTail", _nothing_followed()),
        (recorder, "admin_client", MagicMock()),
    ]
    async with AsyncExitStack() as stack:
        for target, name, stand_in in stand_ins:
            stack.enter_context(patch.object(target, name, stand_in))
        app = gateway_app.create_app(GatewaySettings.model_validate(given | settings), NOWHERE)
        await stack.enter_async_context(app.router.lifespan_context(app))
        yield InProcess(FrontDoor(app, app.state.hot, on_unexpected_error), log)


def _nothing_followed() -> MagicMock:
    tail = MagicMock()
    tail.return_value.caught_up = asyncio.Event()
    tail.return_value.caught_up.set()
    return tail
