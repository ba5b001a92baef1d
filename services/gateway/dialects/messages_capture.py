"""Answers of Anthropic's messages: content blocks, whole or as events that add up to them."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from fulgurite.failures import FailureKind
from services.gateway.capture import Json, Mark, encode, error_text
from services.gateway.dialect import mapping
from services.gateway.dialects.packed import PackedCapture

_FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
_DELTAS = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking", "signature_delta": "signature"}
_INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class MessagesCapture(PackedCapture):
    """A message."""

    def __init__(self, public_id: str, alias: str | None) -> None:
        super().__init__(public_id, alias)
        self._blocks: dict[int, Json] = {}
        self._started = False
        self._complete = False

    def take_reply(self, reply: Json) -> bytes | None:
        """See Capture."""
        content = reply.get("content")
        if not isinstance(content, list):
            return None
        self.take_field(reply)
        self._blocks = {index: cast(Json, block) for index, block in enumerate(cast("list[Any]", content)) if isinstance(block, dict)}
        self._begin(reply)
        self._end(reply)
        return encode(reply)

    def mark(self, chunk: Json) -> Mark:
        """See Capture. A block that ends may be the last: a tool call in it may be run."""
        kind = chunk.get("type")
        self._complete = self._complete or kind in ("message_delta", "message_stop")
        if self._complete:
            return Mark.complete
        return Mark.perhaps if kind == "content_block_stop" else Mark.none

    def take_chunk(self, chunk: Json) -> bytes | None:
        """See Capture."""
        kind, index = chunk.get("type"), chunk.get("index")
        if kind == "error" or (kind is None and "error" in chunk):
            self.error = error_text(chunk.get("error"))
        elif kind == "message_start":
            self._begin(mapping(chunk, "message"))
        elif kind == "content_block_start" and isinstance(index, int):
            self._blocks[index] = dict(mapping(chunk, "content_block"))
        elif kind == "content_block_delta" and isinstance(index, int):
            _extend(self._blocks.setdefault(index, {}), mapping(chunk, "delta"))
        elif kind == "message_delta":
            self._end({**mapping(chunk, "delta"), "usage": chunk.get("usage")})
        return encode(chunk)

    def finished(self) -> bool:
        """See Capture."""
        return self.finish_reason is not None

    def message(self) -> Json:
        """See PackedCapture."""
        if not self._started:
            return {}
        return {"role": "assistant", "content": [_whole(block) for _, block in sorted(self._blocks.items())]}

    def said(self) -> list[list[Any]]:
        """See Capture."""
        return [[self.message()]]

    def failure(self) -> FailureKind | None:
        """See Capture."""
        if any(isinstance(_whole(block).get("input"), str) for block in self._blocks.values()):
            return FailureKind.tool_parse_error
        return FailureKind.truncated if self.finish_reason == "length" else None

    def _begin(self, message: Json) -> None:
        self._started = True
        message["id"] = self._id
        if self._alias is not None:
            message["model"] = self._alias
        self.head = {name: value for name, value in message.items() if name not in ("content", "usage")}
        self._count(message.get("usage"))

    def _end(self, told: Json) -> None:
        stop = told.get("stop_reason")
        if isinstance(stop, str):
            self.finish_reason = _FINISH.get(stop, stop)
            sequence = told.get("stop_sequence")
            self.stop_reason = sequence if isinstance(sequence, str) else None
            self.head = {**self.head, "stop_reason": stop, "stop_sequence": sequence}
        self._count(told.get("usage"))

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        # A stream tells of the prompt at its start and of the answer at its end.
        self.take_usage({**(self.usage or {}), **cast(Json, usage)}, "", "output_tokens")
        counts = [count for name in _INPUT_COUNTS if isinstance(count := (self.usage or {}).get(name), int)]
        self.prompt_tokens = sum(counts) if counts else None


def _extend(block: Json, delta: Json) -> None:
    name = _DELTAS.get(str(delta.get("type")))
    piece = delta.get(name) if name is not None else None
    if name is not None and isinstance(piece, str):
        known = block.get(name)
        block[name] = (known if isinstance(known, str) else "") + piece


def _whole(block: Json) -> Json:
    """A block as a whole reply has it: a tool's input parsed; what does not parse stays the text it is."""
    if "partial_json" not in block:
        return block
    whole = {name: value for name, value in block.items() if name != "partial_json"}
    try:
        whole["input"] = msgspec.json.decode(block["partial_json"])
    except msgspec.DecodeError:
        whole["input"] = block["partial_json"]
    return whole
