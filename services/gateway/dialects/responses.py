"""OpenAI's responses: `POST /v1/responses`.

vLLM is given our id, so that `previous_response_id` finds the response where its store is on; another upstream's own id becomes part of
ours, and is taken out of it again on the way back. `background` is refused: an answer fetched later would pass the log by.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from fulgurite.events import Sampling
from fulgurite.ids import CompletionRef, MalformedId, parse_completion, public_completion
from services.gateway.capture import Json, encode
from services.gateway.dialect import ApiRequest, mapping, parse_envelope, text
from services.gateway.dialects.chat import session_of
from services.gateway.dialects.openai_errors import OpenAIErrors
from services.gateway.dialects.packed import asking
from services.gateway.dialects.responses_capture import ResponsesCapture
from services.gateway.dialects.sampling import sampling_of
from services.gateway.problems import GatewayError, InvalidRequest
from services.gateway.settings import Route

PREFIX = "resp_"


class Responses(OpenAIErrors):
    """See Dialect."""

    api = "responses"
    path = "/v1/responses"

    def parse(self, raw: bytes) -> ApiRequest:
        """Raises InvalidRequest for what is no JSON object with a `model`, an `input` and a boolean `stream`, and for `background`."""
        body, alias, stream = parse_envelope(raw, "`model` and `input`")
        given = body.get("input")
        if not isinstance(given, str | list) and not mapping(body, "prompt"):
            raise InvalidRequest("`input` must be a text or a list of items.", param="input")
        if body.get("background"):
            raise InvalidRequest("`background` is not supported: the answer would not be recorded. Leave it out.", param="background")
        before = _previous(body)
        return ApiRequest(
            body,
            alias,
            stream,
            session_of(body) or _conversation(body),
            items=_items(body),
            user=text(body, "user") or text(body, "safety_identifier"),
            continues=before.completion_id if before else None,
        )

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """See Dialect."""
        sampling = sampling_of(request.body, defaults, "max_output_tokens")
        formatted = mapping(mapping(request.body, "text"), "format").get("type", "text") != "text"
        return msgspec.structs.replace(sampling, grammar=sampling.grammar or formatted)

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """See Dialect."""
        body = {**request.body, "model": route.model}
        if route.kind == "vllm":
            body["request_id"] = public_completion(call_id, PREFIX)
        elif (before := _previous(request.body)) is not None and before.upstream_id is not None:
            body["previous_response_id"] = before.upstream_id
        return encode(body)

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """See Dialect."""
        return asking() if route.kind == "vllm" else {}

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> ResponsesCapture:
        """See Dialect."""
        ours = route.kind == "vllm"
        return ResponsesCapture(call_id, PREFIX, route.alias if ours else None, request.body.get("previous_response_id"), keeps_id=not ours)

    def error_event(self, problem: GatewayError) -> bytes:
        """An `error` event of this API; official clients raise it for its `error` field."""
        error: Json = msgspec.json.decode(problem.body())["error"]
        event = {"type": "error", "code": error["code"], "message": error["message"], "param": error["param"], "sequence_number": 0}
        return b"event: error\ndata: " + encode({**event, "error": error}) + b"\n\n"


def _items(body: Json) -> list[Any] | None:
    """The conversation, where the request holds all of it."""
    given = body.get("input")
    if body.get("previous_response_id") or body.get("conversation") or given is None:
        return None
    return cast("list[Any]", given) if isinstance(given, list) else [{"role": "user", "content": given}]


def _conversation(body: Json) -> str | None:
    """OpenAI's own name for a conversation that it keeps: an id, or an object with one."""
    return text(body, "conversation") or text(mapping(body, "conversation"), "id")


def _previous(body: Json) -> CompletionRef | None:
    try:
        return parse_completion(text(body, "previous_response_id") or "")
    except MalformedId:
        return None
