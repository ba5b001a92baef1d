"""The stub upstream's answers of APIs with items and named events (Anthropic's messages, OpenAI's
responses), and without choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.integration.stub_answers import (
    PROMPT_IDS,
    Json,
    Script,
    named,
    tokens_comment,
    tokens_field,
)

_STOPS = {"stop": "end_turn", "length": "max_tokens"}


class Messages:
    """Anthropic's messages."""

    failure = (
        b'event: error\ndata: {"type": "error", "error": {"type": "internal_error", '
        b'"message": '
        b'"engine '
        b'died"}}\n\n'
    )
    done = b""

    def whole(self, body: Json, headers: Mapping[str, str], script: Script) -> Json:
        """See Api."""
        content = [{"type": "text", "text": "".join(script.words)}]
        return (
            self._message(body, content, script)
            | {"stop_reason": _STOPS[script.finish_reason]}
            | tokens_field(script, headers)
        )

    def events(self, body: Json, headers: Mapping[str, str], script: Script) -> list[bytes]:
        """See Api."""
        opened: list[Json] = [
            {"type": "message_start", "message": self._message(body, [], script)},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            },
        ]
        said = [
            tokens_comment(script, headers, number)
            + named(
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "text_delta", "text": word},
                }
            )
            for number, word in enumerate(script.words)
        ]
        closed: list[Json] = [
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": _STOPS[script.finish_reason], "stop_sequence": None},
                "usage": {"output_tokens": len(script.words)},
            },
            {"type": "message_stop"},
        ]
        return [*map(named, opened), *said, *map(named, closed)]

    def _message(self, body: Json, content: list[Any], script: Script) -> Json:
        usage = {
            "input_tokens": len(PROMPT_IDS),
            "output_tokens": len(script.words) if content else 0,
        }
        return {
            "id": "msg_upstream",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": content,
            "usage": usage,
        }


class Responses:
    """OpenAI's responses: one function call where the script has arguments, else one message."""

    failure = (
        b'event: error\ndata: {"type": "error", "code": "server_error", "message": '
        b'"engine died", '
        b'"param": '
        b"null}\n\n"
    )
    done = b""

    def whole(self, body: Json, headers: Mapping[str, str], script: Script) -> Json:
        """See Api."""
        return self._response(body, script, "completed") | tokens_field(script, headers)

    def events(self, body: Json, headers: Mapping[str, str], script: Script) -> list[bytes]:
        """See Api."""
        item = self._item(script)
        at = {"output_index": 0, "item_id": item["id"]}
        called = script.tool_arguments is not None
        kind = "response.function_call_arguments" if called else "response.output_text"
        pieces = list(script.tool_arguments or "") if called else script.words
        opened: list[Json] = [
            {"type": "response.created", "response": self._response(body, script, "in_progress")},
            {
                "type": "response.output_item.added",
                **at,
                "item": item | ({"arguments": ""} if called else {"content": []}),
            },
        ]
        said = [
            tokens_comment(script, headers, n) + named({"type": f"{kind}.delta", **at, "delta": p})
            for n, p in enumerate(pieces)
        ]
        closed: list[Json] = [
            {"type": f"{kind}.done", **at, "arguments" if called else "text": "".join(pieces)},
            {"type": "response.output_item.done", **at, "item": item},
            {"type": "response.completed", "response": self._response(body, script, "completed")},
        ]
        return [*map(named, opened), *said, *map(named, closed)]

    def _item(self, script: Script) -> Json:
        if script.tool_arguments is not None:
            return {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "call_1",
                "name": "calc",
                "arguments": script.tool_arguments,
            }
        content: list[Json] = [
            {"type": "output_text", "text": "".join(script.words), "annotations": []}
        ]
        return {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }

    def _response(self, body: Json, script: Script, status: str) -> Json:
        over = status == "completed"
        usage = {"input_tokens": len(PROMPT_IDS), "output_tokens": len(script.words)}
        return {
            "id": body.get("request_id", "resp_upstream"),
            "object": "response",
            "created_at": 1_700_000_000,
            "model": body["model"],
            "status": status,
            "output": [self._item(script)] if over else [],
            "previous_response_id": body.get("previous_response_id"),
            "usage": usage if over else None,
        }


class Embeddings:
    """OpenAI's embeddings."""

    failure = b""
    done = b""

    def whole(self, body: Json, headers: Mapping[str, str], script: Script) -> Json:
        """See Api."""
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
        return {
            "object": "list",
            "model": body["model"],
            "data": data,
            "usage": {"prompt_tokens": 3, "total_tokens": 3},
        }

    def events(self, body: Json, headers: Mapping[str, str], script: Script) -> list[bytes]:
        """Never a stream."""
        return []


class CountTokens(Embeddings):
    """Anthropic's token counting."""

    def whole(self, body: Json, headers: Mapping[str, str], script: Script) -> Json:
        """See Api."""
        return {"input_tokens": len(PROMPT_IDS)}
