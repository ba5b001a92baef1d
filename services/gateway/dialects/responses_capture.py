"""Answers of OpenAI's responses: output items, whole or as events that add up to them."""

from __future__ import annotations

from typing import Any, cast

from fulgurite.failures import FailureKind
from fulgurite.ids import public_completion
from services.gateway.capture import Json, Mark, arguments_parse, encode, error_text
from services.gateway.dialect import mapping
from services.gateway.dialects.packed import PackedCapture

_ENDS = ("response.completed", "response.incomplete", "response.failed")
_CALLS = ("function_call", "custom_tool_call")
_NOT_HEAD = frozenset({"output", "usage", "tools", "instructions", "input_messages", "output_messages"})
"""What is recorded elsewhere, in the request or as the choice."""


class ResponsesCapture(PackedCapture):
    """A response."""

    def __init__(self, call_id: str, prefix: str, alias: str | None, previous: Any, *, keeps_id: bool) -> None:
        """`previous` is the agent's own `previous_response_id`; `keeps_id` makes the upstream's id part of ours."""
        super().__init__(public_completion(call_id, prefix), alias)
        self._call_id = call_id
        self._prefix = prefix
        self._previous = previous
        self._keeps_id = keeps_id
        self._items: dict[int, Json] = {}
        self._status: str | None = None
        self._complete = False

    def take_reply(self, reply: Json) -> bytes | None:
        """See Capture."""
        if not isinstance(reply.get("output"), list):
            return None
        self.take_field(reply)
        self._take_response(reply)
        self._end(reply)
        return encode(reply)

    def mark(self, chunk: Json) -> Mark:
        """See Capture. What is done may be the last: a tool call in it may be run."""
        kind = str(chunk.get("type"))
        self._complete = self._complete or kind in _ENDS
        if self._complete:
            return Mark.complete
        return Mark.perhaps if kind.endswith(".done") else Mark.none

    def take_chunk(self, chunk: Json) -> bytes | None:
        """See Capture."""
        kind, index = str(chunk.get("type")), chunk.get("output_index")
        response = mapping(chunk, "response")
        if response:
            self._take_response(response)
        if kind == "error" or ("type" not in chunk and "error" in chunk):
            self.error = error_text(chunk.get("error") or chunk)
        elif kind == "response.failed":
            self.error = error_text(response.get("error") or "the response failed")
        elif kind in _ENDS:
            self._end(response)
        elif kind in ("response.output_item.added", "response.output_item.done") and isinstance(index, int):
            self._items[index] = dict(mapping(chunk, "item"))
        elif kind.endswith(".delta") and isinstance(index, int):
            _extend(self._items.setdefault(index, {}), kind, chunk.get("delta"))
        return encode(chunk)

    def finished(self) -> bool:
        """See Capture."""
        return self._status is not None

    def message(self) -> Json:
        """See PackedCapture."""
        if not self._items and self._status is None:
            return {}
        return {"role": "assistant", "output": [item for _, item in sorted(self._items.items())]}

    def said(self) -> list[list[Any]]:
        """See Capture."""
        return [[item for _, item in sorted(self._items.items())]]

    def failure(self) -> FailureKind | None:
        """See Capture."""
        if self._status == "failed":
            return FailureKind.upstream_error
        if any(item.get("type") == "function_call" and not arguments_parse(item.get("arguments")) for item in self._items.values()):
            return FailureKind.tool_parse_error
        return FailureKind.truncated if self.finish_reason == "length" else None

    def _take_response(self, response: Json) -> None:
        theirs = response.get("id")
        if self._keeps_id and isinstance(theirs, str):
            self._id = public_completion(self._call_id, self._prefix, theirs)
        response["id"] = self._id
        if self._alias is not None:
            response["model"] = self._alias
        if "previous_response_id" in response:
            response["previous_response_id"] = self._previous
        self.take_usage(response.get("usage"), "input_tokens", "output_tokens")
        self.head = {name: value for name, value in response.items() if name not in _NOT_HEAD}

    def _end(self, response: Json) -> None:
        output: Any = response.get("output")
        items = cast("list[Any]", output) if isinstance(output, list) else []
        self._items = {index: cast(Json, item) for index, item in enumerate(items) if isinstance(item, dict)}
        self._status = str(response.get("status"))
        if self._status == "incomplete":
            reason = mapping(response, "incomplete_details").get("reason", "max_output_tokens")
            self.finish_reason = "length" if reason == "max_output_tokens" else str(reason)
        elif self._status == "completed":
            called = any(item.get("type") in _CALLS for item in self._items.values())
            self.finish_reason = "tool_calls" if called else "stop"
        else:
            self.finish_reason = self._status


def _extend(item: Json, kind: str, delta: Any) -> None:
    """Add a delta to an item that is not done: only an answer that breaks off is recorded so."""
    if not isinstance(delta, str):
        return
    if kind.endswith(("_arguments.delta", "_input.delta")):
        name = "arguments" if kind.endswith("_arguments.delta") else "input"
        item[name] = (item.get(name) or "") + delta
        return
    part = "output_text" if kind == "response.output_text.delta" else kind.removeprefix("response.").removesuffix(".delta")
    content = cast("list[Json]", item.get("content") or [])
    if not content or content[-1].get("type") != part:
        content.append({"type": part, "text": ""})
    content[-1]["text"] += delta
    item["content"] = content
