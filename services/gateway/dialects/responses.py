"""OpenAI's responses: `POST /v1/responses`.

The upstream is asked without state: `previous_response_id` is read from the log before
(`recorded_responses`), and references to other state are refused. vLLM is given our id; another
upstream's own id becomes part of ours.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from fulgurite.events import Sampling
from fulgurite.ids import public_completion
from services.gateway.dialects.capture import encode
from services.gateway.dialects.chat import session_of
from services.gateway.dialects.dialect import (
    ApiRequest,
    Unkept,
    mapping,
    parse_envelope,
    refuse_unkept,
    text,
)
from services.gateway.dialects.numbers import coerce_numbers
from services.gateway.dialects.openai_errors import OpenAIErrors, openai_error
from services.gateway.dialects.packed import asking
from services.gateway.dialects.response_items import checked, items_of, references, with_items
from services.gateway.dialects.responses_capture import ResponsesCapture
from services.gateway.dialects.sampling import sampling_of
from services.gateway.errors import GatewayError, InvalidRequest
from services.gateway.upstream.route import Route

PREFIX = "resp_"
_UNKEPT = (
    Unkept("conversation", "send the complete conversation in `input`, or `previous_response_id`."),
    Unkept("background", "the answer would not be recorded. Leave it out."),
    Unkept(
        "context_management",
        "nothing is taken out of a conversation here. Leave it out, and send what the model "
        "should see in `input`.",
    ),
)
_PREVIOUS = "previous_response_id"


class Responses(OpenAIErrors):
    """See Dialect."""

    api = "responses"
    path = "/v1/responses"

    def parse(self, raw: bytes) -> ApiRequest:
        """Parse a request. Raises InvalidRequest unless it is a JSON object with a `model`, an
        `input` and a boolean `stream`, or if it asks for state that is not kept.
        """
        body, alias, stream = parse_envelope(raw, "`model` and `input`")
        coerce_numbers(body)
        given = body.get("input")
        if not isinstance(given, str | list) and not mapping(body, "prompt"):
            raise InvalidRequest("`input` must be a text or a list of items.", param="input")
        refuse_unkept(body, _UNKEPT)
        before = body.get(_PREVIOUS)
        if before is not None and not isinstance(before, str):
            raise InvalidRequest(
                f"`{_PREVIOUS}` must be a string: the `id` of a response.", param=_PREVIOUS
            )
        items = None
        if not before and given is not None:
            items = items_of(cast("str | list[Any]", given))
        referred = references(items or [])
        return ApiRequest(
            body,
            alias,
            stream,
            session_of(body),
            items=None if items is None or referred else checked([], items),
            user=text(body, "user") or text(body, "safety_identifier"),
            continues=before or None,
            references=referred,
        )

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """See Dialect."""
        sampling = sampling_of(request.body, defaults, "max_output_tokens")
        formatted = mapping(mapping(request.body, "text"), "format").get("type", "text") != "text"
        return msgspec.structs.replace(sampling, grammar=sampling.grammar or formatted)

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """See Dialect. Raises InvalidRequest for a stored prompt: vLLM would ignore it."""
        body = {**request.body, "model": route.model}
        if route.kind == "vllm":
            if request.body.get("prompt") is not None:
                raise InvalidRequest(
                    "`prompt` is not supported: no prompts are stored here. Send its text as "
                    "`instructions`.",
                    param="prompt",
                )
            body["request_id"] = public_completion(call_id, PREFIX)
        return encode(body)

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """See Dialect."""
        return asking() if route.kind == "vllm" else {}

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> ResponsesCapture:
        """See Dialect."""
        ours = route.kind == "vllm"
        return ResponsesCapture(
            call_id, PREFIX, route.alias if ours else None, request.continues, keeps_id=not ours
        )

    def error_event(self, problem: GatewayError) -> bytes:
        """An `error` event of this API; official clients raise it for its `error` field."""
        error = openai_error(problem)
        event = {
            "type": "error",
            "code": error["code"],
            "message": error["message"],
            "param": error["param"],
            "sequence_number": 0,
        }
        return b"event: error\ndata: " + encode({**event, "error": error}) + b"\n\n"


def referring(request: ApiRequest, found: list[Any]) -> ApiRequest:
    """The request with the items of `found` that its input refers to in their place. Raises
    InvalidRequest for a reference to none of them.
    """
    items = checked([], with_items(found, request.body["input"]))
    return msgspec.structs.replace(
        request, body={**request.body, "input": items}, items=items, references=()
    )


def following(request: ApiRequest, before: list[Any]) -> ApiRequest:
    """The request with the conversation that it continues in front of its own input, and without
    `previous_response_id`. Raises InvalidRequest.
    """
    given = request.body.get("input")
    items = [*before, *checked(before, items_of(given) if given is not None else [])]
    body = {name: value for name, value in request.body.items() if name != _PREVIOUS}
    return msgspec.structs.replace(request, body={**body, "input": items}, items=items)
