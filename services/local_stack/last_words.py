"""Why a process ended, in a line, from the end of its log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

_READ_BYTES = 1 << 16
_LONGEST = 600
_ERRORS = frozenset({"error", "critical", "exception"})
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Invalid|Unavailable|Missing|Exit)(?::|$)")
_COMPLAINT = re.compile(r"(?i)\b(?:error|fatal|critical)\b")
_ADVERT = "For further information visit"
"""The end of pydantic's messages."""


def last_words(log: Path, since: int = 0) -> str:
    """The last error that was logged, else the last exception, complaint or other line that is not
    JSON; empty if there is none. `since`: where the log ended when the process began.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(since, size - _READ_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    # A line of JSON that is no error says nothing of an end.
    others = [line for line in lines if line.strip() and not line.startswith("{")]
    return (
        _logged(lines) or _raised(others) or _complaint(others) or "".join(others[-1:]).strip()
    )[:_LONGEST]


def _logged(lines: Sequence[str]) -> str:
    """`event: error`, of our own JSON lines."""
    for line in reversed(lines):
        if not line.startswith("{"):
            continue
        try:
            entry = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            continue
        if entry.get("level") in _ERRORS:
            raised = str(entry.get("exception", "")).strip().splitlines()
            return ": ".join(
                str(part)
                for part in (entry.get("event"), entry.get("error"), _raised(raised))
                if part
            )
    return ""


def _raised(lines: Sequence[str]) -> str:
    """The last line of a traceback, and what a message of several lines goes on with."""
    for number in range(len(lines) - 1, -1, -1):
        if _RAISED.match(lines[number]):
            rest = [line.strip() for line in lines[number:] if _ADVERT not in line]
            return " ".join(rest[:4])
    return ""


def _complaint(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if _COMPLAINT.search(line)), "")
