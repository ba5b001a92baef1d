"""Turns foreign errors and values into text that fits into an event."""

from __future__ import annotations

_LONGEST_TEXT = 4000
"""Longest text of an error in an event, in characters."""
_LONGEST_VALUE = 200


def text_of(error: BaseException) -> str:
    """Return `NAME: TEXT` of an error, shortened and valid UTF-8. Never raises."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a user's exception may raise anything when it is asked
        text = "(its text cannot be read)"
    return clean(f"{type(error).__name__}: {text}")


def repr_of(value: object) -> str:
    """Return the `repr` of a value, shortened and valid UTF-8. Never raises."""
    try:
        text = repr(value)
    except BaseException:  # noqa: BLE001 - as above; of a number with thousands of digits Python's own raises
        text = "(cannot be shown)"
    return clean(text, _LONGEST_VALUE)


def clean(text: str, longest: int = _LONGEST_TEXT) -> str:
    """Shorten a text, and escape unpaired surrogates."""
    cut = text if len(text) <= longest else f"{text[:longest]}... (cut: {len(text)} characters)"
    return cut.encode("utf-8", "backslashreplace").decode()
