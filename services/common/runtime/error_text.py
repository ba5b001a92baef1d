"""Errors and values of unknown origin as text that fits into an event."""

from __future__ import annotations

_LONGEST_TEXT = 4000
"""Characters of an error's text that are kept: it becomes part of an event."""
_LONGEST_VALUE = 200


def text_of(error: BaseException) -> str:
    """Kind and text of whatever was raised, fit for an event: cut, and UTF-8. Never raises."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a user's exception may raise anything when it is asked
        text = "(its text cannot be read)"
    return clean(f"{type(error).__name__}: {text}")


def repr_of(value: object) -> str:
    """A value of unknown origin, fit for a message. Never raises."""
    try:
        text = repr(value)
    except BaseException:  # noqa: BLE001 - as above; of a number with thousands of digits Python's own raises
        text = "(cannot be shown)"
    return clean(text, _LONGEST_VALUE)


def clean(text: str, longest: int = _LONGEST_TEXT) -> str:
    """The text, cut, with lone surrogates escaped."""
    cut = text if len(text) <= longest else f"{text[:longest]}... (cut: {len(text)} characters)"
    return cut.encode("utf-8", "backslashreplace").decode()
