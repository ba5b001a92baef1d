"""A stream passed through: each server-sent event leaves as it comes, except completion markers.

What a capture `marks` (a choice's finish reason, the event that says that all is done, and what belongs to them) is held; the rest goes
on. What is held leaves when the call is in the log. Pure.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import msgspec

from services.gateway.capture import Capture, Json

VERSION_COMMENT = b": fulgurite-version "
_DONE = b"[DONE]"


class EventSplitter:
    """Bytes as they arrive → whole events, without their closing blank line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events completed by this piece."""
        text = self._rest + data if self._rest else data
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        *events, self._rest = text.split(b"\n\n")
        return events

    def rest(self) -> bytes:
        """What was left unfinished when the stream ended."""
        return self._rest


class StreamRelay:
    """Decides for each event: now, later or never."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.held: list[bytes] = []
        self.error: bytes | None = None
        """The upstream's own error event, if it sent one within its stream."""

    def take(self, event: bytes) -> bytes | None:
        """An event from upstream → what may leave now."""
        parsed = _parse(event, self._capture)
        if parsed.data is None:
            return parsed.others
        if parsed.data == _DONE:
            self.held.append(b"data: [DONE]\n\n")
            return parsed.others
        chunk = _decode(parsed.data)
        if chunk is None:
            return (parsed.others or b"") + event + b"\n\n"
        marks = self._capture.marks(chunk)
        passed = self._capture.take_chunk(chunk)
        if passed is None:
            return parsed.others
        out = parsed.name + b"data: " + passed + b"\n\n"
        if self._capture.error is not None:
            self.error = out
            return parsed.others
        if marks:
            self.held.append(out)
            return parsed.others
        return parsed.others + out if parsed.others else out


class _Event(NamedTuple):
    data: bytes | None
    name: bytes = b""
    """Its `event:` line, which stays with the data."""
    others: bytes | None = None
    """Comments and other lines for the client."""


def _parse(event: bytes, capture: Capture) -> _Event:
    """Takes an event apart; notes the version that a comment tells."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return _Event(event[6:])
    name = b""
    data: list[bytes] = []
    others: list[bytes] = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line + b"\n"
        elif line.startswith(VERSION_COMMENT):
            capture.version_last = line[len(VERSION_COMMENT) :].strip().decode("ascii", "replace")
        elif line:
            others.append(line)
    return _Event(b"\n".join(data) if data else None, name, b"\n".join(others) + b"\n\n" if others else None)


def _decode(data: bytes) -> Json | None:
    try:
        chunk: Any = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None
    return cast(Json, chunk) if isinstance(chunk, dict) else None
