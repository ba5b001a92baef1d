"""What the dialects' tests share: routes, and reading a dialect's own bytes."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from fulgurite.ids import completion_of, mint_group, rollout_of
from fulgurite.tokens import pack_ids, pack_logprobs
from services.gateway.dialects.capture import Capture
from services.gateway.dialects.dialect import ApiRequest, Dialect
from services.gateway.http.sse_relay import StreamRelay
from services.gateway.settings import SamplingDefaults
from services.gateway.upstream.route import Route

VLLM = Route("policy", "vllm", "http://x", "vllm", "served", "policy", None)
OTHER = Route("gpt", "gpt", "http://x", "openai", "gpt-5", None, "sk-upstream")
DEFAULTS = SamplingDefaults().sampling()
CALL = completion_of(rollout_of(mint_group(1, b"0123456789"), 0, b"secret"), 0, b"12345", b"secret")
CORE = CALL.removeprefix("chatcmpl-")


def ask(dialect: Dialect, **fields: Any) -> ApiRequest:
    """A parsed request."""
    return dialect.parse(msgspec.json.encode({"model": "policy", **fields}))


def sent(dialect: Dialect, request: ApiRequest, route: Route) -> dict[str, Any]:
    """What the upstream is asked."""
    return msgspec.json.decode(dialect.upstream_body(request, route, CALL))


def passed(capture: Capture, reply: dict[str, Any]) -> dict[str, Any]:
    """A whole reply, as the agent gets it."""
    body = capture.parse_reply(reply)
    assert body is not None
    return msgspec.json.decode(body)


def event(data: dict[str, Any]) -> bytes:
    """A named event, as Anthropic's API and OpenAI's responses have them."""
    return f"event: {data['type']}\ndata: ".encode() + msgspec.json.encode(data)


def play(capture: Capture, events: list[bytes]) -> tuple[list[str], list[str]]:
    """Types of the events that leave at once, and of those that are held."""
    relay = StreamRelay(capture)
    left = b"".join(out for one in events if (out := relay.relay_event(one)) is not None)
    return types(left), types(b"".join(relay.held))


def types(text: bytes) -> list[str]:
    """The types of events."""
    found = [
        msgspec.json.decode(line[6:])["type"]
        for line in text.split(b"\n")
        if line.startswith(b"data: ")
    ]
    assert found == [line[7:].decode() for line in text.split(b"\n") if line.startswith(b"event: ")]
    return found


def tokens(prompt: list[int], ids: list[int], logprobs: list[float], sequence: int = 0) -> bytes:
    """The plug-in's comment."""
    return b": fulgurite-tokens %d %b" % (sequence, b" ".join(packed(prompt, ids, logprobs)))


def packed(prompt: list[int], ids: list[int], logprobs: list[float]) -> list[bytes]:
    """As the plug-in packs them."""
    parts = (pack_ids(prompt), pack_ids(ids), pack_logprobs(logprobs))
    return [base64.b64encode(part) if part else b"-" for part in parts]
