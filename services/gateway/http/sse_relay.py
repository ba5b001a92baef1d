"""Relay a stream: each server-sent event leaves as it comes, except completion markers.

The events that a capture marks as complete (a choice's finish reason, the end of the answer, and
what belongs to them) are held until the call is recorded. The others leave at once. After an error,
or the end of the answer, further events are dropped. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from services.gateway.dialects.capture import Capture, Json, Mark, error_text
from services.gateway.request_body import BYTE_ORDER_MARK

_DONE = b"[DONE]"
_BEGINNINGS = (b"data:", b"event:", b"id:", b"retry:", b":")


def is_event_stream(body: bytes) -> bool:
    """Whether a body begins as a stream of events does, whatever its content type is."""
    return body.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(_BEGINNINGS)


class StreamRelay:
    """Decides for each event whether it leaves now, later or never."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._rest: list[bytes] = []
        """Pieces of an event that has not ended yet; no two of them make a blank line."""
        self._after_return = False
        self._over = False
        self._pending: list[bytes] = []
        self.held: list[bytes] = []
        self.error: bytes | None = None
        """The upstream's own error event, if it sent one in the API's shape."""

    def feed(self, data: bytes) -> bytes:
        """Bytes as they arrive → the bytes that may leave now."""
        if self._after_return or b"\r" in data:
            data = self._with_line_feeds(data)
        if self._rest:
            if b"\n\n" not in data and not (
                data.startswith(b"\n") and self._rest[-1].endswith(b"\n")
            ):
                # Not joined yet: an event of many pieces would be joined again with each of them.
                self._rest += [data] if data else []
                return b""
            data = b"".join([*self._rest, data])
        passed: list[bytes] = []
        at = 0
        while (end := data.find(b"\n\n", at)) >= 0:
            out = self.relay_event(data[at:end])
            at = end + 2
            if out is not None:
                passed.append(out)
        self._rest = [data[at:]] if at < len(data) else []
        return b"".join(passed)

    def close(self) -> bytes:
        """The upstream closed the stream → the bytes that may leave now. A last event that lacks
        only its blank line counts.
        """
        rest, self._rest = b"".join(self._rest), []
        if rest.startswith(b":") and not rest.endswith(b"\n"):
            return b""
        parsed = _parse(rest, self._capture)
        if parsed.data is None or self._over:
            return b""
        if parsed.data == _DONE or self._capture.decode_chunk(parsed.data) is not None:
            return self._relay_data(parsed) or b""
        self._capture.count_unread()
        return b""

    def relay_event(self, event: bytes) -> bytes | None:
        """An event from upstream → the bytes that may leave now."""
        if event.startswith(b"data: {") and not self._pending and not self._over:
            common = self._capture.parse_common_chunk(event)
            if common is not None:
                return common
        if event.startswith(b":") and b"\n" not in event and self._capture.parse_comment(event):
            return None
        parsed = _parse(event, self._capture)
        if self._over:
            return None
        return parsed.others if parsed.data is None else self._relay_data(parsed)

    def _relay_data(self, event: _Event) -> bytes | None:
        data = event.data or b""
        if data == _DONE:
            self._capture.done = self._over = True
            self.held += [*self._pending, event.with_data(data)]
            return event.others
        chunk = self._capture.decode_chunk(data)
        if chunk is None:
            return self._pass_unread(event, data)
        mark = self._capture.mark(chunk)
        passed = self._capture.parse_chunk(chunk)
        if self._capture.error is not None or (event.name and event.is_error):
            self._fail(event, chunk, passed)
            return event.others
        if passed is None:
            return event.others
        out = event.with_data(passed)
        if mark is not Mark.none:
            self._hold(out, mark)
            return event.others
        return self._released(out, event)

    def _pass_unread(self, event: _Event, data: bytes) -> bytes | None:
        if event.is_error:
            self._capture.error = error_text(data.decode("utf-8", "replace"))
            self._over = True
            return event.others
        if data.strip():
            self._capture.count_unread()
        if self.held:
            self.held.append(event.with_data(data))
            return event.others
        return self._released(event.with_data(data), event)

    def _released(self, out: bytes, event: _Event) -> bytes:
        if self._pending:
            out = b"".join([*self._pending, out])
            self._pending.clear()
        return event.others + out if event.others else out

    def _fail(self, event: _Event, chunk: Json, passed: bytes | None) -> None:
        self._over = True
        if self._capture.error is None:
            self._capture.error = error_text(chunk)
        elif passed is not None:
            self.error = event.with_data(passed)

    def _hold(self, out: bytes, mark: Mark) -> None:
        self._pending.append(out)
        if mark is Mark.complete:
            self.held += self._pending
            self._pending.clear()

    def _with_line_feeds(self, data: bytes) -> bytes:
        """Normalise line ends: CR, LF or both, also where a piece ends between the two."""
        if self._after_return:
            data = data.removeprefix(b"\n")
        self._after_return = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class _Event(NamedTuple):
    data: bytes | None
    name: bytes = b""
    """Its `event:` line, which stays with the data."""
    others: bytes | None = None
    """Comments and other lines for the client."""

    @property
    def is_error(self) -> bool:
        return self.name[6:].strip() == b"error"

    def with_data(self, data: bytes) -> bytes:
        """The event with its data replaced."""
        return self.name + b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"


def _parse(event: bytes, capture: Capture) -> _Event:
    """Parse an event; comments for the gateway end here."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return _Event(event[6:])
    name = b""
    data: list[bytes] = []
    others: list[bytes] = []
    for line in event.removeprefix(BYTE_ORDER_MARK).split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line + b"\n"
        elif line and not capture.parse_comment(line):
            others.append(line)
    return _Event(
        b"\n".join(data) if data else None, name, b"\n".join(others) + b"\n\n" if others else None
    )
