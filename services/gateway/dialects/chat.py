"""OpenAI's chat completions: `POST /v1/chat/completions`.

Fields pass through untouched. vLLM is asked, on top, for token ids, log-probabilities and usage; other upstreams for nothing.
"""

from __future__ import annotations

from typing import Any, cast

from fulgurite.events import Sampling
from services.gateway.capture import Json, encode
from services.gateway.dialect import ApiRequest, mapping, parse_envelope, text
from services.gateway.dialects.chat_capture import ChatCapture
from services.gateway.dialects.choices import AS_IT_IS, Wants
from services.gateway.dialects.openai_errors import OpenAIErrors
from services.gateway.dialects.sampling import sampling_of
from services.gateway.problems import InvalidRequest
from services.gateway.settings import Route


class Chat(OpenAIErrors):
    """See Dialect."""

    api = "chat.completions"
    path = "/v1/chat/completions"

    def parse(self, raw: bytes) -> ApiRequest:
        """Raises InvalidRequest for what is no JSON object with a `model`, a list of `messages` and a boolean `stream`."""
        body, alias, stream = parse_envelope(raw, "`model` and `messages`")
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise InvalidRequest("`messages` must be a list of chat messages.", param="messages")
        return ApiRequest(body, alias, stream, session_of(body), items=cast("list[Any]", messages), user=text(body, "user"))

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """See Dialect."""
        return sampling_of(request.body, defaults, "max_completion_tokens", "max_tokens")

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """See Dialect."""
        body = {**request.body, "model": route.model}
        if route.kind == "vllm":
            body["logprobs"] = True
            body["return_token_ids"] = True
            if request.stream:
                body["stream_options"] = {**mapping(request.body, "stream_options"), "include_usage": True}
        return encode(body)

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """None: all that is asked for is asked in the body."""
        return {}

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> ChatCapture:
        """See Dialect."""
        if route.kind != "vllm":
            return ChatCapture(call_id, None, AS_IT_IS)
        return ChatCapture(call_id, route.alias, wants(request.body, logprobs=request.body.get("logprobs") is True))


def wants(body: Json, *, logprobs: bool) -> Wants:
    """What the agent asked for itself."""
    return Wants(
        logprobs=logprobs,
        token_ids=body.get("return_token_ids") is True,
        usage=mapping(body, "stream_options").get("include_usage") is True,
    )


def session_of(body: Json) -> str | None:
    """`metadata.session_id`."""
    return text(mapping(body, "metadata"), "session_id")
