"""OpenAI's completions, the API before chat: `POST /v1/completions`.

In addition, vLLM is asked for token ids, log-probabilities and usage. It is not where the prompt is
echoed, since asking for ids would change the text. Several prompts in one request pass through and
are recorded without the prompts' ids, since a call has one prompt.
"""

from __future__ import annotations

from typing import cast

from fulgurite.events import Sampling
from fulgurite.ids import public_completion
from services.gateway.dialects.capture import Json, encode
from services.gateway.dialects.chat import session_of, wants, with_usage
from services.gateway.dialects.choices import AS_IT_IS, ChoiceCapture, ChoicesCapture
from services.gateway.dialects.dialect import ApiRequest, mapping, parse_envelope, text
from services.gateway.dialects.numbers import KINDS, coerce_numbers
from services.gateway.dialects.openai_errors import OpenAIErrors
from services.gateway.dialects.sampling import sampling_of
from services.gateway.errors import InvalidRequest
from services.gateway.upstream.route import Route

_KINDS = {**KINDS, "logprobs": int}


class Completions(OpenAIErrors):
    """See Dialect."""

    api = "completions"
    path = "/v1/completions"

    def parse(self, raw: bytes) -> ApiRequest:
        """Parse a request. Raises InvalidRequest unless it is a JSON object with a `model`, a
        `prompt` and a boolean `stream`.
        """
        body, alias, stream = parse_envelope(raw, "`model` and `prompt`")
        coerce_numbers(body, _KINDS)
        if not isinstance(body.get("prompt"), str | list) and body.get("prompt_embeds") is None:
            raise InvalidRequest(
                "`prompt` must be a text, a list of texts, or token ids.", param="prompt"
            )
        return ApiRequest(body, alias, stream, session_of(body), user=text(body, "user"))

    def sampling(self, request: ApiRequest, defaults: Sampling) -> Sampling:
        """See Dialect."""
        return sampling_of(request.body, defaults, "max_tokens")

    def upstream_body(self, request: ApiRequest, route: Route, call_id: str) -> bytes:
        """See Dialect."""
        body = {**request.body, "model": route.model}
        if route.kind == "vllm":
            if not body.get("echo"):
                body["logprobs"] = 0 if body.get("logprobs") is None else body["logprobs"]
                body["return_token_ids"] = True
            if request.stream:
                body["stream_options"] = with_usage(request.body)
        return encode(body)

    def upstream_headers(self, request: ApiRequest, route: Route) -> dict[str, str]:
        """None: the body asks for everything."""
        return {}

    def capture(self, request: ApiRequest, route: Route, call_id: str) -> CompletionsCapture:
        """See Dialect."""
        public = public_completion(call_id, "cmpl-")
        if route.kind != "vllm":
            return CompletionsCapture(public, None, AS_IT_IS)
        return CompletionsCapture(
            public,
            route.alias,
            wants(request.body, logprobs=request.body.get("logprobs") is not None),
        )


class CompletionsCapture(ChoicesCapture):
    """A completion: texts, each with its own prompt's ids."""

    _prompts_differ = False

    def parse_prompt(self, holder: Json) -> None:
        """See ChoicesCapture. A prompt that only some choices share is not recorded."""
        before = self.prompt_token_ids
        super().parse_prompt(holder)
        self._prompts_differ = self._prompts_differ or (
            before is not None and self.prompt_token_ids != before
        )
        if self._prompts_differ:
            self.prompt_token_ids = None

    def _parse_choice(self, choice: ChoiceCapture, part: Json) -> bool:
        self._parse_delta(choice, part)
        return isinstance(part.get("text"), str)

    def _parse_delta(self, choice: ChoiceCapture, part: Json) -> bool:
        self.parse_prompt(part)
        text = part.get("text")
        choice.add(part, _logprobs(part), has_content=bool(text))
        if text is not None and not isinstance(text, str):
            self.count_unread()
        choice.message["text"] = choice.message.get("text", "") + (
            text if isinstance(text, str) else ""
        )
        return bool(text) or part.get("finish_reason") is not None


def _logprobs(part: Json) -> list[float] | None:
    values = mapping(part, "logprobs").get("token_logprobs")
    return cast("list[float]", values) if isinstance(values, list) else None
