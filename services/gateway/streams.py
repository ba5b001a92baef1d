"""A stream passed through: each server-sent event leaves as it comes, except completion markers.

A chunk that bears a choice's finish reason is held, and with it every later chunk of that choice and whatever follows when all are
done (usage, `[DONE]`); the others go on. What is held leaves when the call is in the log. Pure.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from services.gateway.capture import Capture
from services.gateway.chat_request import Json

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
        self._finished: set[int] = set()
        self.held: list[bytes] = []
        self.error: bytes | None = None
        """The upstream's own error event, if it sent one within its stream."""

    def take(self, event: bytes) -> bytes | None:
        """An event from upstream → what may leave now."""
        data, others = _parse(event, self._capture)
        if data is None:
            return others
        if data == _DONE:
            self.held.append(b"data: [DONE]\n\n")
            return others
        chunk = _decode(data)
        if chunk is None:
            return (others or b"") + event + b"\n\n"
        indices = _indices(chunk)
        passed = self._capture.take_chunk(chunk)
        self._finished |= {index for index, finish in indices if finish}
        if passed is None:
            return others
        out = b"data: " + passed + b"\n\n"
        if self._capture.error is not None:
            self.error = out
            return others
        if self._holds([index for index, _ in indices]):
            self.held.append(out)
            return others
        return others + out if others else out

    def _holds(self, indices: list[int]) -> bool:
        if not indices:
            return bool(self._finished)
        return any(index in self._finished for index in indices)


def _parse(event: bytes, capture: Capture) -> tuple[bytes | None, bytes | None]:
    """Data of an event, and its other lines for the client. Notes the version that a comment tells."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:], None
    data: list[bytes] = []
    others: list[bytes] = []
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(VERSION_COMMENT):
            capture.version_last = line[len(VERSION_COMMENT) :].strip().decode("ascii", "replace")
        elif line:
            others.append(line)
    return (b"\n".join(data) if data else None), (b"\n".join(others) + b"\n\n" if others else None)


def _decode(data: bytes) -> Json | None:
    try:
        chunk: Any = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None
    return cast(Json, chunk) if isinstance(chunk, dict) else None


def _indices(chunk: Json) -> list[tuple[int, bool]]:
    choices = chunk.get("choices")
    parts = cast("list[Any]", choices) if isinstance(choices, list) else []
    return [(cast(Json, p).get("index", 0), cast(Json, p).get("finish_reason") is not None) for p in parts if isinstance(p, dict)]
