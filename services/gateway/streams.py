"""A stream passed through: each server-sent event leaves as it comes, except completion markers.

What a capture marks as complete (a choice's finish reason, the event that says that all is done, and what belongs to them) is held; the
rest goes on. What is held leaves when the call is in the log. Pure.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import msgspec

from services.gateway.capture import Capture, Json, Mark

_DONE = b"[DONE]"


class StreamRelay:
    """Decides for each event: now, later or never."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._rest = b""
        self._pending: list[bytes] = []
        self.held: list[bytes] = []
        self.error: bytes | None = None
        """The upstream's own error event, if it sent one within its stream."""

    def feed(self, data: bytes) -> bytes:
        """Bytes as they arrive → what may leave now: what came together leaves together."""
        text = self._rest + data if self._rest else data
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        passed: list[bytes] = []
        at = 0
        while (end := text.find(b"\n\n", at)) >= 0:
            run = None if self._pending else self._capture.quick_run(text, at)
            out, at = (self.take(text[at:end]), end + 2) if run is None else run
            if out is not None:
                passed.append(out)
        self._rest = text[at:]
        return b"".join(passed)

    def take(self, event: bytes) -> bytes | None:
        """An event from upstream → what may leave now."""
        if event.startswith(b"data: {") and not self._pending and (quick := self._capture.quick_chunk(event)) is not None:
            return quick
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
