"""OpenAI's embeddings: `POST /v1/embeddings`. Recorded without the vectors."""

from __future__ import annotations

from fulgurite.ids import public_completion
from services.gateway.dialects.chat import session_of
from services.gateway.dialects.dialect import ApiRequest, parse_envelope, text
from services.gateway.dialects.openai_errors import OpenAIErrors
from services.gateway.dialects.plain import PlainCapture, PlainDialect
from services.gateway.errors import InvalidRequest
from services.gateway.upstream.route import Route


class Embeddings(OpenAIErrors, PlainDialect):
    """See Dialect."""

    api = "embeddings"
    path = "/v1/embeddings"

    def parse(self, raw: bytes) -> ApiRequest:
        """Parse a request. Raises InvalidRequest unless it is a JSON object with a `model` and an
        `input` (or `messages`, which vLLM accepts instead).
        """
        body, alias, _ = parse_envelope(raw, "`model` and `input`")
        if not isinstance(body.get("input"), str | list) and not isinstance(
            body.get("messages"), list
        ):
            raise InvalidRequest(
                "`input` must be a text, a list of texts, or token ids.", param="input"
            )
        return ApiRequest(
            body, alias, stream=False, session=session_of(body), user=text(body, "user")
        )

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> PlainCapture:
        """See Dialect."""
        public = public_completion(call_id, "embd-")
        return PlainCapture(
            public, route.alias if route.kind == "vllm" else None, known_by="data", bulk="data"
        )
