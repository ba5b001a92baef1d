"""The effective sampling parameters of a request, under OpenAI's and vLLM's names for them."""

from __future__ import annotations

from typing import Any

import msgspec

from fulgurite.events import Sampling
from services.gateway.capture import Json
from services.gateway.dialect import mapping

_LONG = 1 << 63

_NUMBERS = frozenset({"temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"})

_BIASES = frozenset({"logit_bias", "bad_words", "allowed_token_ids", "logits_processors", "min_tokens", "use_beam_search"})
"""Each makes some tokens likelier or impossible, whatever the model says."""

_GRAMMARS = frozenset({"structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"})

_ASKED = _NUMBERS | _BIASES | _GRAMMARS | {"response_format", "tool_choice", "seed"}
"""All that is looked at, but for the limits."""


def sampling_of(body: Json, defaults: Sampling, *limits: str) -> Sampling:
    """A field of a wrong type counts as not given (the upstream will refuse it). `limits` are the fields that bound the answer's length."""
    asked = _ASKED.intersection(body)
    given: dict[str, Any] = {name: _number(body, name, getattr(defaults, name)) for name in asked & _NUMBERS}
    if "top_k" in given:
        given["top_k"] = int(given["top_k"])
    if not asked <= _NUMBERS:
        given |= {"logit_bias": _any_of(body, _BIASES), "grammar": _bound_by_grammar(body), "seed": _integer(body, "seed")}
    return msgspec.structs.replace(defaults, **given, max_tokens=_first_integer(body, limits))


def _first_integer(body: Json, names: tuple[str, ...]) -> int | None:
    for name in names:
        if value := _integer(body, name):
            return value
    return None


def _bound_by_grammar(body: Json) -> bool:
    if mapping(body, "response_format").get("type", "text") != "text":
        return True
    tool_choice = body.get("tool_choice")
    return tool_choice == "required" or isinstance(tool_choice, dict) or _any_of(body, _GRAMMARS)


def _any_of(body: Json, names: frozenset[str]) -> bool:
    return not names.isdisjoint(body) and any(body.get(name) for name in names)


def _number(body: Json, name: str, default: float) -> float:
    value = body.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < _LONG else default


def _integer(body: Json, name: str) -> int | None:
    value = body.get(name)
    return value if isinstance(value, int) and -_LONG <= value < _LONG else None
