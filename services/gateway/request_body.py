"""Limits of request bodies, and their JSON. A body is checked before it can cost memory, time, or
the stack of those who read the log.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple

import msgspec
import numpy as np

from fulgurite.untrusted_json import is_deeper
from services.gateway.errors import BodyTooLarge, InvalidRequest

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DEPTH = 128
"""Depth of arrays and objects. vLLM's own parser ends at 200; readers of the log have less stack
than the gateway.
"""

_PIECE = 1 << 20
_QUOTE, _COMMA, _ARRAY, _OBJECT = b'",[{'
_HINTS = (
    (
        re.compile(rb"\\u[dD][89a-fA-F]"),
        " A \\ud800 to \\udfff must come in pairs: half a character cannot be sent.",
    ),
    (
        re.compile(rb"[:,\[]\s*-?(NaN|Infinity)"),
        " NaN and Infinity are no numbers of JSON's: numbers are finite.",
    ),
)

_decode = msgspec.json.Decoder().decode


class BodyLimits(NamedTuple):
    """The limits of a body."""

    size: int
    """Bytes, as sent and once inflated."""
    size_setting: str
    values: int
    """Arrays, objects and commas outside of texts."""
    timeout_s: float
    """Seconds for all of it to arrive."""


async def check_limits(body: bytes, limits: BodyLimits) -> None:
    """Raise BodyTooLarge for a body over one of its limits."""
    if len(body) > limits.size:
        raise too_large(limits)
    if await has_more_values(body, limits.values):
        raise BodyTooLarge(
            f"The body has more than {limits.values:,} arrays, objects and commas outside of "
            "texts. Send less, or raise FULGURITE_MAX_BODY_VALUES.",
            code="too_many_values",
        )


def too_large(limits: BodyLimits) -> BodyTooLarge:
    """The error of a body of too many bytes."""
    return BodyTooLarge(
        f"The body is over the limit of {limits.size} bytes. Send less, or raise "
        f"{limits.size_setting}."
    )


def decode_body(raw: bytes, needs: str) -> Any:
    """The value. `needs` says what should have been sent. Raises InvalidRequest."""
    try:
        value = _decode(raw)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid UTF-8. Send a JSON object with {needs}, in UTF-8."
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    except msgspec.DecodeError as error:
        hints = "".join(hint for pattern, hint in _HINTS if pattern.search(raw))
        raise InvalidRequest(
            f"The body is not valid JSON ({error}). Send a JSON object with {needs}.{hints}"
        ) from error
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    return value


async def has_more_values(raw: bytes, limit: int) -> bool:
    """Whether the JSON has more values than the limit, counted by its arrays, objects and commas.
    Builds none of them.
    """
    if len(raw) <= limit or raw.count(b",") + raw.count(b"[") + raw.count(b"{") <= limit:
        return False
    # Commas within texts do not count.
    return await asyncio.to_thread(_values_outside_texts, raw, limit) > limit


def _values_outside_texts(raw: bytes, limit: int) -> int:
    """Count until the limit is passed."""
    unescaped = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    found, within = 0, False
    for start in range(0, len(unescaped), _PIECE):
        piece = np.frombuffer(unescaped, np.uint8, min(_PIECE, len(unescaped) - start), start)
        texts = np.logical_xor.accumulate(piece == _QUOTE) ^ within
        marks = (piece == _COMMA) | (piece == _ARRAY) | (piece == _OBJECT)
        found += int(np.count_nonzero(marks & ~texts))
        within = bool(texts[-1])
        if found > limit:
            break
    return found


def _too_deep() -> InvalidRequest:
    return InvalidRequest(
        f"The body is nested too deeply: more than {MAX_DEPTH} arrays and objects within one "
        "another. Send a flatter body.",
        code="too_deep",
    )
