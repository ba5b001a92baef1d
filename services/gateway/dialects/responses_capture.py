"""Parse answers of OpenAI's responses: output items, complete or as events that add up to them."""

from __future__ import annotations

from typing import Any, cast

from fulgurite.failures import FailureKind
from fulgurite.ids import public_completion
from fulgurite.untrusted_json import mappings
from services.gateway.dialects.capture import (
    Json,
    Mark,
    arguments_parse,
    count,
    encode,
    error_in,
    error_text,
)
from services.gateway.dialects.dialect import mapping
from services.gateway.dialects.foreign_json import joined
from services.gateway.dialects.numbered import Numbered
from services.gateway.dialects.packed import PackedCapture

_ENDS = ("response.completed", "response.incomplete", "response.failed")
_CALLS = ("function_call", "custom_tool_call")
_NOT_HEAD = frozenset(
    {"output", "usage", "tools", "instructions", "input_messages", "output_messages"}
)
"""Fields that are recorded elsewhere: in the request or in the choice."""


class ResponsesCapture(PackedCapture):
    """A response."""

    def __init__(
        self, call_id: str, prefix: str, alias: str | None, previous: Any, *, keeps_id: bool
    ) -> None:
        """`previous` is the agent's own `previous_response_id`; `keeps_id` makes the upstream's id
        part of ours.
        """
        super().__init__(public_completion(call_id, prefix), alias)
        self._call_id = call_id
        self._prefix = prefix
        self._previous = previous
        self._keeps_id = keeps_id
        self._items = Numbered()
        self._by_id: dict[str, Json] = {}
        self._ended: set[int] = set()
        """The items that are done, by their `id()`."""
        self._status: str | None = None
        self._complete = False

    def parse_reply(self, reply: Json) -> bytes | None:
        """See Capture."""
        output: Any = reply.get("output")
        if not isinstance(output, list) or (output and not mappings(output)):
            self.parse_error(reply)
            return None
        self.parse_tokens_field(reply)
        self._parse_response(reply)
        self._end(reply, "")
        return encode(reply)

    def mark(self, chunk: Json) -> Mark:
        """See Capture. An item that is done may be the last: a tool call in it may be run."""
        kind = str(chunk.get("type"))
        self._complete = self._complete or kind in _ENDS
        if self._complete:
            return Mark.complete
        return Mark.perhaps if kind.endswith(".done") else Mark.none

    def parse_chunk(self, chunk: Json) -> bytes | None:
        """See Capture."""
        kind, index = str(chunk.get("type")), chunk.get("output_index")
        response = mapping(chunk, "response")
        if response:
            self._parse_response(response)
        if kind == "error" or ("type" not in chunk and error_in(chunk)):
            self.error = error_text(error_in(chunk) or chunk)
        elif kind == "response.failed":
            self.error = error_text(response.get("error") or "the response failed")
        elif kind in _ENDS:
            self._end(response, kind.removeprefix("response."))
        elif kind == "response.output_item.added":
            self._begin_item(index, dict(mapping(chunk, "item")))
        elif kind == "response.output_item.done":
            self._end_item(index, mapping(chunk, "item"))
        elif kind.endswith(".delta") and "output_index" in chunk:
            known = self._known(chunk.get("item_id"), index)
            _extend(
                self._begin_item(index, {}) if known is None else known, kind, chunk.get("delta")
            )
        return encode(chunk)

    def finished(self) -> bool:
        """See Capture."""
        return self._status is not None

    def message(self) -> Json:
        """See PackedCapture."""
        items = self._items.ordered()
        return {"role": "assistant", "output": items} if items or self._status is not None else {}

    def answers(self) -> list[list[Any]]:
        """See Capture."""
        return [[self.as_recorded(item) for item in self._items.ordered()]]

    def failure(self) -> FailureKind | None:
        """See Capture."""
        if self._status == "failed":
            return FailureKind.upstream_error
        if any(
            item.get("type") == "function_call" and not arguments_parse(item.get("arguments"))
            for item in self._items.ordered()
        ):
            return FailureKind.tool_parse_error
        return FailureKind.truncated if self.finish_reason == "length" else None

    def _parse_response(self, response: Json) -> None:
        theirs = response.get("id")
        if self._keeps_id and isinstance(theirs, str):
            self._id = public_completion(self._call_id, self._prefix, theirs)
        response["id"] = self._id
        if self._alias is not None:
            response["model"] = self._alias
        if "previous_response_id" in response:
            response["previous_response_id"] = self._previous
        self.parse_usage(response.get("usage"), "input_tokens", "output_tokens")
        self.head = {name: value for name, value in response.items() if name not in _NOT_HEAD}

    def _begin_item(self, index: Any, item: Json) -> Json:
        """Begin a new item, also where its index is another item's."""
        place = count(index)
        if place is None:
            self.count_unread()
        if isinstance(name := item.get("id"), str):
            self._by_id[name] = item
        return self._items.begin(place or 0, item)

    def _end_item(self, index: Any, item: Json) -> None:
        """Replace what is known of an item by the complete item."""
        known = self._known(item.get("id"), index)
        if known is None or (id(known) in self._ended and known.get("id") != item.get("id")):
            known = self._begin_item(index, {})
        known.clear()
        known.update(item)
        self._ended.add(id(known))

    def _known(self, name: Any, index: Any) -> Json | None:
        named = self._by_id.get(name) if isinstance(name, str) else None
        return self._items.last(count(index) or 0) if named is None else named

    def _end(self, response: Json, kind: str) -> None:
        """Parse the final state of the response; `kind` is its event's name for it, empty for a
        complete answer.
        """
        output: Any = response.get("output")
        items = mappings(output)
        if isinstance(output, list) and len(items) < len(cast("list[Any]", output)):
            self.count_unread()
        if items:
            self._items = Numbered()
            for index, item in enumerate(items):
                self._items.begin(index, item)
        status = response.get("status")
        self._status = joined(status) if isinstance(status, str) else kind or "unknown"
        if self._status == "incomplete":
            reason = mapping(response, "incomplete_details").get("reason")
            self.finish_reason = (
                joined(reason)
                if isinstance(reason, str) and reason != "max_output_tokens"
                else "length"
            )
        elif self._status == "completed":
            called = any(item.get("type") in _CALLS for item in self._items.ordered())
            self.finish_reason = "tool_calls" if called else "stop"
        else:
            self.finish_reason = self._status


def _extend(item: Json, kind: str, delta: Any) -> None:
    """Add a delta to an item that is not done. It matters only for an answer that breaks off, or
    does not repeat its items at the end.
    """
    if not isinstance(delta, str):
        return
    if kind.endswith(("_arguments.delta", "_input.delta")):
        name = "arguments" if kind.endswith("_arguments.delta") else "input"
        known = item.get(name)
        item[name] = (known if isinstance(known, str) else "") + delta
        return
    part = (
        "output_text"
        if kind == "response.output_text.delta"
        else kind.removeprefix("response.").removesuffix(".delta")
    )
    content = mappings(item.get("content"))
    if (
        not content
        or content[-1].get("type") != part
        or not isinstance(content[-1].get("text"), str)
    ):
        content.append({"type": part, "text": ""})
    content[-1]["text"] += delta
    item["content"] = content
