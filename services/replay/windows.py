"""Parses and prints points in time for the command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from services.common.runtime import clock
from services.replay.errors import BadArgument

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_datetime(text: str) -> int:
    """Parse ISO 8601 into Unix milliseconds; UTC without an offset. Raises BadArgument."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadArgument(
            f"{text!r} is not an ISO date and time such as 2026-01-31T12:00:00+00:00"
        ) from error
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def parse_window(since: str) -> int | None:
    """Parse what `parse_since` does, or `all`, which is None. Raises BadArgument."""
    return None if since == "all" else parse_since(since)


def parse_since(text: str | None, now_ms: int | None = None) -> int | None:
    """Parse `90s`, `30m`, `24h`, `7d` before now, or ISO 8601, into Unix milliseconds.

    None stays None: the beginning. Raises BadArgument.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None:
        try:
            return parse_datetime(text)
        except BadArgument as error:
            raise BadArgument(
                f"{text!r} is neither a span such as 90s, 30m, 24h or 7d nor an ISO date such "
                "as 2026-01-31T12:00"
            ) from error
    now = clock.now_ms() if now_ms is None else now_ms
    return max(0, now - int(min(float(match[1]) * _UNITS[match[2]] * 1000, now)))


def shown(time_ms: int) -> str:
    """Print a time for people: UTC, to the second."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
