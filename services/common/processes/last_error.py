"""Find the last error in a log: why the process that wrote it ended, in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

_READ_BYTES = 1 << 16
_MAX_CHARACTERS = 600
_ERRORS = frozenset({"error", "critical", "exception"})
_EXCEPTION_LINE = re.compile(
    r"[A-Za-z_][\w.]*(?:Error|Exception|Invalid|Unavailable|Missing|Exit)(?::|$)"
)
_ERROR_LINE = re.compile(r"(?i)\b(?:error|fatal|critical)\b")
_PYDANTIC_LINK = "For further information visit"
"""The end of pydantic's messages."""


def last_error(log: Path, since: int = 0) -> str:
    """The last error that was logged in JSON, else the last exception, line with the word "error"
    or other line that is not JSON; empty if there is none. `since`: where the log ended when the
    process began, in bytes.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(since, size - _READ_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    # A line of JSON that is no error does not explain an end.
    others = [line for line in lines if line.strip() and not line.startswith("{")]
    last_line = others[-1].strip() if others else ""
    found = _logged_error(lines) or _last_exception(others) or _last_error_line(others) or last_line
    return found[:_MAX_CHARACTERS]


def _logged_error(lines: Sequence[str]) -> str:
    """`event: error: exception`, of our own JSON lines."""
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
                for part in (entry.get("event"), entry.get("error"), _last_exception(raised))
                if part
            )
    return ""


def _last_exception(lines: Sequence[str]) -> str:
    """The last line of a traceback, with up to three more lines of its message."""
    for number in range(len(lines) - 1, -1, -1):
        if _EXCEPTION_LINE.match(lines[number]):
            rest = [line.strip() for line in lines[number:] if _PYDANTIC_LINK not in line]
            return " ".join(rest[:4])
    return ""


def _last_error_line(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if _ERROR_LINE.search(line)), "")
