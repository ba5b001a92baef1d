"""Numbers that agents send as text, or as another type: coerced as vLLM coerces them, or refused.

vLLM reads `"0"`, `true` and `5.0` as numbers (pydantic's lax mode). The coerced value is put into
the body, so that every upstream is sent what the event records. What the log cannot hold, or no
upstream reads, is refused before anything is generated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from services.gateway.dialects.capture import Json
from services.gateway.errors import InvalidRequest

Kinds = Mapping[str, type]

KINDS: Kinds = {
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "length_penalty",
        ),
        float,
    ),
    **dict.fromkeys(
        (
            "top_k",
            "n",
            "best_of",
            "max_tokens",
            "max_completion_tokens",
            "max_output_tokens",
            "min_tokens",
            "seed",
            "top_logprobs",
            "prompt_logprobs",
        ),
        int,
    ),
    **dict.fromkeys(
        ("use_beam_search", "ignore_eos", "return_token_ids", "echo", "watermarking"), bool
    ),
}
"""Kinds of the fields that say how an answer is sampled, how long it may be, and what the gateway
also asks for.
"""

_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (float, int, bool)}
_CALLED = {float: "a finite number", int: "a whole number", bool: "true or false"}
_LONG = 1 << 63
_INT = 1 << 31
_SHOWN = 60


def coerce_numbers(body: Json, kinds: Kinds = KINDS) -> None:
    """Replace each value of another type by the number that it stands for. Raises
    InvalidRequest.
    """
    for name in kinds.keys() & body.keys():
        value, kind = body[name], kinds[name]
        if value is None or type(value) is kind is not int:
            continue
        # An integer is a valid float: it stays as it is.
        if type(value) is not int or kind is bool:
            value = body[name] = _read(name, value, kind)
        if type(value) is int:
            _check_range(name, value, kind)


def _read(name: str, value: Any, kind: type) -> Any:
    try:
        found = _ADAPTERS[kind].validate_python(value)
    except ValidationError:
        raise _refusal(name, value, kind) from None
    if kind is float and not math.isfinite(found):
        raise _refusal(name, value, kind)
    return found


def _check_range(name: str, value: int, kind: type) -> None:
    limit = _INT if kind is int and name != "seed" else _LONG
    if not -limit <= value < limit:
        raise InvalidRequest(f"`{name}` must lie between {-limit} and {limit - 1}.", param=name)


def _refusal(name: str, value: Any, kind: type) -> InvalidRequest:
    text = repr(value)
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return InvalidRequest(f"`{name}` must be {_CALLED[kind]}, not {shown}.", param=name)
