"""A stream passed through: each server-sent event leaves as it comes, except completion markers.

What a capture marks as complete (a choice's finish reason, the event that says that all is done, and what belongs to them) is held; the
rest goes on. What is held leaves when the call is in the log. Pure.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import msgspec

from services.gateway.capture import Capture, Json, Mark

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
        self._pending: list[bytes] = []
        self.held: list[bytes] = []
        self.error: bytes | None = None
        """The upstream's own error event, if it sent one within its stream."""

    def take(self, event: bytes) -> bytes | None:
        """An event from upstream → what may leave now."""
        if event.startswith(b"data: {") and not self._pending and (quick := self._capture.quick_chunk(event[6:])) is not None:
            return b"data: " + quick + b"\n\n"
        if event.startswith(b":") and b"\n" not in event and self._capture.take_comment(event):
            return None
        parsed = _parse(event, self._capture)
        if parsed.data is None:
            return parsed.others
        if parsed.data == _DONE:
            self.held.append(b"data: [DONE]\n\n")
            return parsed.others
        chunk = _decode(parsed.data)
        if chunk is None:
            return (parsed.others or b"") + event + b"\n\n"
        mark = self._capture.mark(chunk)
        passed = self._capture.take_chunk(chunk)
        if passed is None:
            return parsed.others
        out = parsed.name + b"data: " + passed + b"\n\n"
        if self._capture.error is not None:
            self.error = out
            return parsed.others
        if mark is not Mark.none:
            self._hold(out, mark)
            return parsed.others
        if self._pending:
            out = b"".join([*self._pending, out])
            self._pending.clear()
        return parsed.others + out if parsed.others else out

    def _hold(self, out: bytes, mark: Mark) -> None:
        self._pending.append(out)
        if mark is Mark.complete:
            self.held += self._pending
            self._pending.clear()


class _Event(NamedTuple):
    data: bytes | None
    name: bytes = b""
    """Its `event:` line, which stays with the data."""
    others: bytes | None = None
    """Comments and other lines for the client."""


def _parse(event: bytes, capture: Capture) -> _Event:
    """Takes an event apart; comments for the gateway end here."""
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
        elif line and not capture.take_comment(line):
            others.append(line)
    return _Event(b"\n".join(data) if data else None, name, b"\n".join(others) + b"\n\n" if others else None)


def _decode(data: bytes) -> Json | None:
    try:
        chunk: Any = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None
    return cast(Json, chunk) if isinstance(chunk, dict) else None
