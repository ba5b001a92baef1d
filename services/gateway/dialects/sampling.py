"""The effective sampling parameters of a request, under OpenAI's and vLLM's names for them."""

from __future__ import annotations

from typing import Any

import msgspec

from fulgurite.events import Sampling
from services.common.runtime.gateway_fields import DICTATE
from services.gateway.dialects.capture import Json
from services.gateway.dialects.dialect import mapping

_LEAST_TEMPERATURE = 0.01
"""vLLM samples with this temperature where a request asks for one between 0 and it."""

_NUMBERS = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    }
)

_BIASES = frozenset(
    {
        "logit_bias",
        "bad_words",
        "allowed_token_ids",
        "logits_processors",
        "min_tokens",
        "use_beam_search",
        "thinking_token_budget",
        "watermarking",
        "vllm_xargs",
        DICTATE,
    }
)
"""Fields that make some tokens likelier or impossible, whatever the model's distribution is."""

_GRAMMARS = frozenset(
    {"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}
)

_ASKED = _NUMBERS | _BIASES | _GRAMMARS | {"response_format", "tool_choice", "seed"}
"""All fields that are read here, without the limits."""


def sampling_of(body: Json, defaults: Sampling, *limits: str) -> Sampling:
    """The sampling of a body whose numbers were coerced (`numbers`). `limits` are the fields that
    limit the answer's length.
    """
    asked = _ASKED.intersection(body)
    given: dict[str, Any] = {
        name: body[name] for name in asked & _NUMBERS if body[name] is not None
    }
    for name in given.keys() - {"top_k"}:
        given[name] = float(given[name])
    if 0 < given.get("temperature", 0) < _LEAST_TEMPERATURE:
        given["temperature"] = _LEAST_TEMPERATURE
    if not asked <= _NUMBERS:
        given |= {
            "logit_bias": _any_of(body, _BIASES),
            "grammar": _bound_by_grammar(body),
            "seed": body.get("seed"),
        }
    return msgspec.structs.replace(defaults, **given, max_tokens=_first(body, limits))


def _first(body: Json, names: tuple[str, ...]) -> int | None:
    for name in names:
        if value := body.get(name):
            return value
    return None


def _bound_by_grammar(body: Json) -> bool:
    if mapping(body, "response_format").get("type", "text") != "text":
        return True
    tool_choice = body.get("tool_choice")
    return tool_choice == "required" or isinstance(tool_choice, dict) or _any_of(body, _GRAMMARS)


def _any_of(body: Json, names: frozenset[str]) -> bool:
    return not names.isdisjoint(body) and any(body.get(name) for name in names)
