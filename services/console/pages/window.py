"""The window of time that a view looks at, as a filter in its address."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.console.pages.blocks import Field
from services.console.pages.formats import time_of
from services.console.pages.reading import Asked

_HOURS = {"1h": 1, "24h": 24, "7d": 7 * 24}
_MINUTE_MS = 60_000
_EVER = "all"
_TEXTS = {"1h": "last hour", "24h": "last 24 hours", "7d": "last 7 days", _EVER: "all"}


def window(asked: Asked, default: str = "7d") -> str:
    """The window that the address asks for: `1h`, `24h`, `7d` or `all`."""
    return asked.address.choice("since", _TEXTS, default)


def since(asked: Asked, default: str = "7d") -> datetime:
    """When the window begins; for `all` the beginning of time."""
    hours = _HOURS.get(window(asked, default))
    return time_of(0) if hours is None else minutes_ago(asked, 60 * hours)


def minutes_ago(asked: Asked, minutes: int) -> datetime:
    """A time before now, at a full minute: pages that are drawn within it ask the same."""
    return time_of(asked.now_ms - asked.now_ms % _MINUTE_MS) - timedelta(minutes=minutes)


def window_field(asked: Asked, default: str = "7d") -> Field:
    """The field that chooses the window."""
    return Field("since", "Time", window(asked, default), tuple(_TEXTS.items()))


def choice_field(name: str, label: str, value: str | None, choices: list[str]) -> Field:
    """A field that chooses one of a few values, or none of them."""
    kept = [value] if value is not None and value not in choices else []
    texts = (("", "all"), *((one, one) for one in [*choices, *kept]))
    return Field(name, label, value or "", texts)
