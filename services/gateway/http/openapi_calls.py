"""The model APIs on the OpenAPI page: raw ASGI, which FastAPI cannot see. Fields beyond those named
here are passed on untouched.
"""

from __future__ import annotations

from typing import Any

import msgspec

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_MESSAGES: Json = {
    "type": "array",
    "items": {"type": "object", "required": ["role"], "properties": {"role": _TEXT, "content": {}}},
    "description": "As in the API's own reference: text, images, tool calls and their results.",
}
_SHARED: Json = {
    "model": {
        **_TEXT,
        "minLength": 1,
        "description": "An alias: one of the names that `GET /v1/models` lists.",
    },
    "metadata": {
        "type": "object",
        "description": "`session_id`: calls with the same one are one rollout.",
    },
}
_GENERATION: Json = {
    "stream": {"type": "boolean", "default": False},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
}
_USER: Json = {"role": "user", "content": "What is 3 + 8?"}


class CallDoc(msgspec.Struct, frozen=True, kw_only=True):
    """What the page says of one API."""

    path: str
    summary: str
    text: str
    required: tuple[str, ...]
    fields: Json
    request: Json
    reply: Json
    stream: str | None = None
    anthropic: bool = False


CALLS: tuple[CallDoc, ...] = (
    CallDoc(
        path="/v1/chat/completions",
        summary="OpenAI chat completions",
        text="Tools, `n`, `logprobs`, `response_format` and images pass through. Trained "
        "aliases are recorded with token ids.",
        required=("model", "messages"),
        fields={
            "messages": _MESSAGES,
            "max_tokens": {"type": "integer", "minimum": 1},
            "n": {"type": "integer", "minimum": 1, "maximum": 8},
            "tools": {"type": "array", "items": {"type": "object"}},
        },
        request={"model": "policy", "messages": [_USER]},
        reply={
            "id": "co_…",
            "object": "chat.completion",
            "model": "policy",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "11"},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 14, "completion_tokens": 2, "total_tokens": 16},
        },
        stream=(
            'data: {"id":"co_…","object":"chat.completion.chunk",'
            '"choices":[{"index":0,"delta":{"content":"11"}}]}\n\ndata: [DONE]\n\n'
        ),
    ),
    CallDoc(
        path="/v1/responses",
        summary="OpenAI responses",
        text="`previous_response_id` goes on from a recorded response of the same key. "
        "`conversation` is refused.",
        required=("model", "input"),
        fields={
            "input": {"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}]},
            "instructions": _TEXT,
            "previous_response_id": {
                **_TEXT,
                "description": "The `id` of the response to go on from.",
            },
        },
        request={"model": "policy", "input": "What is 3 + 8?"},
        reply={
            "id": "resp_…",
            "object": "response",
            "status": "completed",
            "output": [
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "11"}],
                }
            ],
        },
        stream="event: response.output_text.delta\ndata: "
        '{"type":"response.output_text.delta","delta":"11"}\n\n',
    ),
    CallDoc(
        path="/v1/messages",
        summary="Anthropic messages",
        text="The key goes into `x-api-key` or `Authorization`. Errors have Anthropic's shape.",
        required=("model", "messages", "max_tokens"),
        fields={
            "messages": _MESSAGES,
            "max_tokens": {"type": "integer", "minimum": 1},
            "system": {},
        },
        request={"model": "policy", "max_tokens": 64, "messages": [_USER]},
        reply={
            "id": "msg_…",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "11"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 14, "output_tokens": 2},
        },
        stream="event: content_block_delta\ndata: "
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"11"}}\n\n',
        anthropic=True,
    ),
    CallDoc(
        path="/v1/messages/count_tokens",
        summary="Anthropic token count",
        text="Recorded, not for training.",
        required=("model", "messages"),
        fields={"messages": _MESSAGES},
        request={"model": "policy", "messages": [_USER]},
        reply={"input_tokens": 14},
        anthropic=True,
    ),
    CallDoc(
        path="/v1/completions",
        summary="OpenAI completions",
        text="Text in, text out.",
        required=("model", "prompt"),
        fields={
            "prompt": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]},
            "max_tokens": {"type": "integer", "minimum": 1},
        },
        request={"model": "policy", "prompt": "3 + 8 ="},
        reply={
            "id": "co_…",
            "object": "text_completion",
            "choices": [{"index": 0, "text": " 11", "finish_reason": "stop"}],
        },
        stream='data: {"id":"co_…","object":"text_completion","choices":[{"index":0,"text":" '
        '11"}]}\n\ndata: [DONE]\n\n',
    ),
    CallDoc(
        path="/v1/embeddings",
        summary="OpenAI embeddings",
        text="Recorded, not for training.",
        required=("model", "input"),
        fields={"input": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}},
        request={"model": "policy", "input": "lightning strikes sand"},
        reply={
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.1, -0.2]}],
        },
    ),
)


def body_schema(call: CallDoc) -> Json:
    """A request's."""
    fields = {**_SHARED, **(_GENERATION if call.stream is not None else {}), **call.fields}
    return {
        "type": "object",
        "required": list(call.required),
        "properties": fields,
        "additionalProperties": True,
    }
