"""OpenAI's chat completions: `POST /v1/chat/completions`.

Fields pass through unchanged. In addition, vLLM is asked for token ids, log-probabilities and
usage; other upstreams are not.
"""

from __future__ import annotations

from typing import Any, cast

from fulgurite.events import Sampling
from services.gateway.dialects.capture import Json, encode
from services.gateway.dialects.chat_capture import ChatCapture
from services.gateway.dialects.choices import AS_IT_IS, Wants
from services.gateway.dialects.dialect import ApiRequest, mapping, parse_envelope, text
from services.gateway.dialects.numbers import KINDS, coerce_numbers
from services.gateway.dialects.openai_errors import OpenAIErrors
from services.gateway.dialects.packed import IN_BODY, asking
from services.gateway.dialects.sampling import sampling_of
from services.gateway.errors import InvalidRequest
from services.gateway.upstream.route import Route

_KINDS = {**KINDS, "logprobs": bool}
_OWN = ("logprobs", "top_logprobs", "return_token_ids", "use_beam_search")
"""Fields for which the plug-in's packed tokens are not used: the agent sees tokens in vLLM's own
form, or there is more than one sequence.
"""


class Chat(OpenAIErrors):
    """See Dialect."""

    api = "chat.completions"
    path = "/v1/chat/completions"

    def parse(self, raw: bytes) -> ApiRequest:
        """Parse a request. Raises InvalidRequest unless it is a JSON object with a `model`, a list
        of `messages` and a boolean `stream`.
        """
        body, alias, stream = parse_envelope(raw, "`model` and `messages`")
        coerce_numbers(body, _KINDS)
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise InvalidRequest("`messages` must be a list of chat messages.", param="messages")
        return ApiRequest(
            body,
            alias,
            stream,
            session_of(body),
            items=cast("list[Any]", messages),
            user=text(body, "user"),
        )

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """See Dialect."""
        return sampling_of(request.body, defaults, "max_completion_tokens", "max_tokens")

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """See Dialect."""
        body = {**request.body, "model": route.model}
        if route.kind == "vllm":
            if request.stream:
                body["stream_options"] = with_usage(request.body)
            for name in IN_BODY:
                body.pop(name, None)
            # Last, where the plug-in finds them.
            body |= IN_BODY
        return encode(body)

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """Whether the plug-in may send the tokens of one answer packed: the agent must not ask for
        them itself.
        """
        own = request.body
        packs = (
            route.kind == "vllm"
            and own.get("n", 1) in (None, 1)
            and not any(own.get(name) for name in _OWN)
        )
        return asking(instead=True) if packs else {}

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> ChatCapture:
        """See Dialect."""
        if route.kind != "vllm":
            return ChatCapture(call_id, None, AS_IT_IS)
        return ChatCapture(
            call_id, route.alias, wants(request.body, logprobs=request.body.get("logprobs") is True)
        )


def wants(body: Json, *, logprobs: bool) -> Wants:
    """What the agent asked for itself."""
    return Wants(
        logprobs=logprobs,
        token_ids=body.get("return_token_ids") is True,
        usage=mapping(body, "stream_options").get("include_usage") is True,
    )


def with_usage(body: Json) -> Json:
    """A stream's options, with usage asked for on top."""
    return {**mapping(body, "stream_options"), "include_usage": True}


def session_of(body: Json) -> str | None:
    """`metadata.session_id`."""
    return text(mapping(body, "metadata"), "session_id")
