"""Read JSON and text from upstreams whatever the bytes are, and write it whatever the values are.

A value has three forms: as it was read, as the agent gets it (`encoded` of
`fulgurite.untrusted_json`), and as it is recorded. They differ only where a character is escaped as
two halves (`\ud83c` and `\udf0d`), which an upstream may send in two chunks. The agent gets each
half as it came, the log the character, and U+FFFD for a half that stays alone.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from fulgurite.untrusted_json import parsed

UNREADABLE = (ValueError, RecursionError)
"""All that reading raises: msgspec's DecodeError and UnicodeError are ValueErrors."""

_decode = msgspec.json.Decoder().decode


def decode(data: bytes) -> Any:
    """Decode JSON. Raises ValueError unless it is in UTF-8, without half characters and with finite
    numbers.
    """
    try:
        return _decode(data)
    except RecursionError as error:
        raise ValueError("nested too deep to be read") from error


def decode_leniently(data: bytes) -> tuple[Any, bool]:
    """Decode JSON, with U+FFFD for bytes that are not UTF-8; and whether all of them were UTF-8.
    Raises ValueError for anything but JSON.
    """
    try:
        return parsed(data.decode()), True
    except UnicodeDecodeError:
        return parsed(data.decode("utf-8", "replace")), False


def recorded(value: Any) -> str:
    """The value as JSON for the log: in UTF-8, whatever its texts and numbers are."""
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, OverflowError):
        return joined(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def joined(text: str) -> str:
    """The text with the two halves of a character joined, and U+FFFD for each half that stays
    alone.
    """
    return (
        text
        if text.isascii()
        else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    )
