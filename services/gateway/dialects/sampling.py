"""The effective sampling parameters of a request, under OpenAI's and vLLM's names for them."""

from __future__ import annotations

import msgspec

from fulgurite.events import Sampling
from services.gateway.capture import Json
from services.gateway.dialect import mapping

_LONG = 1 << 63

_BIASES = ("logit_bias", "bad_words", "allowed_token_ids", "logits_processors", "min_tokens", "use_beam_search")
"""Each makes some tokens likelier or impossible, whatever the model says."""

_GRAMMARS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def sampling_of(body: Json, defaults: Sampling, *limits: str) -> Sampling:
    """A field of a wrong type counts as not given (the upstream will refuse it). `limits` are the fields that bound the answer's length."""
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
        max_tokens=next(filter(None, (_integer(body, name) for name in limits)), None),
    )


def _bound_by_grammar(body: Json) -> bool:
    if mapping(body, "response_format").get("type", "text") != "text":
        return True
    tool_choice = body.get("tool_choice")
    return tool_choice == "required" or isinstance(tool_choice, dict) or any(body.get(name) for name in _GRAMMARS)


def _number(body: Json, name: str, default: float) -> float:
    value = body.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < _LONG else default


def _integer(body: Json, name: str) -> int | None:
    value = body.get(name)
    return value if isinstance(value, int) and -_LONG <= value < _LONG else None
