"""A chat completion request: what the agent asked, and what the upstream is asked instead.

Fields pass through untouched. vLLM is asked, on top, for token ids, log-probabilities and usage; other upstreams for nothing.
Pure: bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from fulgurite.events import Sampling
from services.gateway.problems import InvalidRequest
from services.gateway.settings import Route

Json = dict[str, Any]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_LONG = 1 << 63


class Wants(msgspec.Struct, frozen=True):
    """What the agent asked for itself, so that it is left in the reply."""

    logprobs: bool
    token_ids: bool
    usage: bool


class ChatRequest(msgspec.Struct, frozen=True):
    """A request whose envelope is sound; the rest of it is the upstream's to judge."""

    body: Json
    alias: str
    stream: bool
    session: str | None
    wants: Wants


def parse_chat(raw: bytes) -> ChatRequest:
    """Raises InvalidRequest for what is no JSON object with a `model`, a list of `messages` and a boolean `stream`."""
    try:
        body: Any = _decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON ({error}). Send a JSON object with `model` and `messages`.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object with `model` and `messages`.")
    fields = cast(Json, body)
    alias = fields.get("model")
    if not isinstance(alias, str) or not alias:
        raise InvalidRequest("`model` must be a string: one of the names that GET /v1/models lists.", param="model")
    if not isinstance(fields.get("messages"), list):
        raise InvalidRequest("`messages` must be a list of chat messages.", param="messages")
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("`stream` must be true or false.", param="stream")
    return ChatRequest(fields, alias, bool(stream), _session(fields), _wants(fields))


def upstream_body(request: ChatRequest, route: Route) -> bytes:
    """The body that is sent on."""
    body = {**request.body, "model": route.model}
    if route.kind == "vllm":
        body["logprobs"] = True
        body["return_token_ids"] = True
        if request.stream:
            body["stream_options"] = {**_mapping(request.body, "stream_options"), "include_usage": True}
    return _encode(body)


def sampling_of(body: Json, defaults: Sampling) -> Sampling:
    """The effective sampling parameters; a field of a wrong type counts as not given (the upstream will refuse it)."""
    return msgspec.structs.replace(
        defaults,
        temperature=_number(body, "temperature", defaults.temperature),
        top_p=_number(body, "top_p", defaults.top_p),
        top_k=int(_number(body, "top_k", defaults.top_k)),
        min_p=_number(body, "min_p", defaults.min_p),
        presence_penalty=_number(body, "presence_penalty", defaults.presence_penalty),
        frequency_penalty=_number(body, "frequency_penalty", defaults.frequency_penalty),
        repetition_penalty=_number(body, "repetition_penalty", defaults.repetition_penalty),
        logit_bias=any(body.get(name) for name in _BIASES),
        grammar=_bound_by_grammar(body),
        seed=_integer(body, "seed"),
        max_tokens=_integer(body, "max_completion_tokens") or _integer(body, "max_tokens"),
    )


_BIASES = ("logit_bias", "bad_words", "allowed_token_ids", "logits_processors", "min_tokens", "use_beam_search")
"""Each makes some tokens likelier or impossible, whatever the model says."""

_GRAMMARS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def _bound_by_grammar(body: Json) -> bool:
    if _mapping(body, "response_format").get("type", "text") != "text":
        return True
    tool_choice = body.get("tool_choice")
    return tool_choice == "required" or isinstance(tool_choice, dict) or any(body.get(name) for name in _GRAMMARS)


def _session(body: Json) -> str | None:
    session = _mapping(body, "metadata").get("session_id")
    return session if isinstance(session, str) and session else None


def _wants(body: Json) -> Wants:
    return Wants(
        logprobs=body.get("logprobs") is True,
        token_ids=body.get("return_token_ids") is True,
        usage=_mapping(body, "stream_options").get("include_usage") is True,
    )


def _mapping(body: Json, name: str) -> Mapping[str, Any]:
    value = body.get(name)
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _number(body: Json, name: str, default: float) -> float:
    value = body.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < _LONG else default


def _integer(body: Json, name: str) -> int | None:
    value = body.get(name)
    return value if isinstance(value, int) and -_LONG <= value < _LONG else None
