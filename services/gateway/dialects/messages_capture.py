"""Parse answers of Anthropic's messages: content blocks, complete or as events that add
up to them.
"""

from __future__ import annotations

from typing import Any, cast

from fulgurite.failures import FailureKind
from fulgurite.untrusted_json import mappings, parsed
from services.gateway.dialects.capture import Json, Mark, count, encode, error_in, error_text
from services.gateway.dialects.dialect import mapping
from services.gateway.dialects.foreign_json import joined
from services.gateway.dialects.numbered import Numbered
from services.gateway.dialects.packed import PackedCapture

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
}
_DELTAS = {
    "text_delta": "text",
    "input_json_delta": "partial_json",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}
_INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class MessagesCapture(PackedCapture):
    """A message."""

    def __init__(self, public_id: str, alias: str | None) -> None:
        super().__init__(public_id, alias)
        self._blocks = Numbered()
        self._started = False
        self._complete = False

    def parse_reply(self, reply: Json) -> bytes | None:
        """See Capture."""
        content: Any = reply.get("content")
        blocks = mappings(content)
        if not isinstance(content, list) or (content and not blocks):
            self.parse_error(reply)
            return None
        if len(blocks) < len(cast("list[Any]", content)):
            self.count_unread()
        self.parse_tokens_field(reply)
        for index, block in enumerate(blocks):
            self._blocks.begin(index, block)
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

    def parse_chunk(self, chunk: Json) -> bytes | None:
        """See Capture."""
        kind, index = chunk.get("type"), chunk.get("index")
        if kind == "error" or (kind is None and error_in(chunk)):
            self.error = error_text(error_in(chunk) or chunk)
        elif kind == "message_start":
            self._begin(mapping(chunk, "message"))
        elif kind == "content_block_start":
            self._begin_block(index, dict(mapping(chunk, "content_block")))
        elif kind == "content_block_delta":
            known = self._blocks.last(count(index) or 0)
            _extend(
                self._begin_block(index, {}) if known is None else known, mapping(chunk, "delta")
            )
        elif kind == "message_delta":
            self._end({**mapping(chunk, "delta"), "usage": chunk.get("usage")})
        elif kind == "message_stop":
            self.done = True
        return encode(chunk)

    def finished(self) -> bool:
        """See Capture. An answer may end without a stop reason."""
        return self.finish_reason is not None or (self.done and self._started)

    def message(self) -> Json:
        """See PackedCapture."""
        if not self._started:
            return {}
        return {"role": "assistant", "content": [_whole(block) for block in self._blocks.ordered()]}

    def answers(self) -> list[list[Any]]:
        """See Capture."""
        return [[self.as_recorded(self.message())]]

    def failure(self) -> FailureKind | None:
        """See Capture."""
        if any(isinstance(_whole(block).get("input"), str) for block in self._blocks.ordered()):
            return FailureKind.tool_parse_error
        return FailureKind.truncated if self.finish_reason == "length" else None

    def _begin_block(self, index: Any, block: Json) -> Json:
        """Begin a new block, also where its index is another block's."""
        place = count(index)
        if place is None:
            self.count_unread()
        return self._blocks.begin(place or 0, block)

    def _begin(self, message: Json) -> None:
        self._started = True
        message["id"] = self._id
        if self._alias is not None:
            message["model"] = self._alias
        self.head = {
            name: value for name, value in message.items() if name not in ("content", "usage")
        }
        self._count(message.get("usage"))

    def _end(self, delta: Json) -> None:
        stop = delta.get("stop_reason")
        if isinstance(stop, str):
            self.finish_reason = joined(_FINISH.get(stop, stop))
            sequence = delta.get("stop_sequence")
            self.stop_reason = joined(sequence) if isinstance(sequence, str) else None
            self.head = {**self.head, "stop_reason": stop, "stop_sequence": sequence}
        self._count(delta.get("usage"))

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        # A stream tells of the prompt at its start and of the answer at its end.
        self.parse_usage({**(self.usage or {}), **cast(Json, usage)}, "", "output_tokens")
        counts = [
            number
            for name in _INPUT_COUNTS
            if (number := count((self.usage or {}).get(name))) is not None
        ]
        self.prompt_tokens = count(sum(counts)) if counts else None


def _extend(block: Json, delta: Json) -> None:
    name = _DELTAS.get(str(delta.get("type")))
    piece = delta.get(name) if name is not None else None
    if name is not None and isinstance(piece, str):
        known = block.get(name)
        block[name] = (known if isinstance(known, str) else "") + piece


def _whole(block: Json) -> Json:
    """A block as in a complete reply: a tool's input is parsed; an input that does not parse stays
    text.
    """
    if "partial_json" not in block:
        return block
    complete = {name: value for name, value in block.items() if name != "partial_json"}
    text = block["partial_json"]
    if not isinstance(text, str) or not text.strip():
        # What a tool without arguments is called with.
        return complete
    try:
        complete["input"] = parsed(text)
    except ValueError:
        complete["input"] = text
    return complete
