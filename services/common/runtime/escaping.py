"""Escapes characters that a terminal would interpret, for consoles and logs.

Control characters (escape sequences, titles, links), characters that change the direction of
writing, invisible ones and lone surrogates are written as `\\x1b`, `\\u202e`, `\\U000e0041`.
Newlines and tabs stay.
"""

from __future__ import annotations

import re

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def escaped(text: str) -> str:
    """Replace each character that a terminal would interpret or hide by its code."""
    return _OBEYED.sub(_code, text) if _OBEYED.search(text) else text


def escaped_json(text: str) -> str:
    """Escape such characters in a JSON document, without changing its meaning."""
    return _OBEYED.sub(_json_code, text)


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )


def _json_code(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
