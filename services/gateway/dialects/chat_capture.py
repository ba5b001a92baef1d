"""Parse answers of chat completions: messages, or deltas that add up to them."""

from __future__ import annotations

from typing import Any, cast

from fulgurite.failures import FailureKind
from services.gateway.dialects.capture import Json, arguments_parse
from services.gateway.dialects.chat_fast_path import (
    Logprobs,
    decode_text_chunk,
    decode_vllm_reply,
    encode,
)
from services.gateway.dialects.choices import ChoiceCapture, ChoicesCapture
from services.gateway.dialects.packed import TOKENS_FIELD
from services.gateway.dialects.tool_calls import ToolCalls, extend_function

_SAID = b'},"logprobs":null,"finish_reason":null}]}\n\n'
"""The end of a chunk that has text and does not end its choice."""

_GOES_ON = b'"finish_reason":null'

_PACKED = b'"%b":' % TOKENS_FIELD.encode()


class ChatCapture(ChoicesCapture):
    """A chat completion."""

    _opened: tuple[str, int, bytes] | None = None

    def answers(self) -> list[list[Any]]:
        """See Capture."""
        return [
            [{**self.as_recorded(choice.message), "role": "assistant"}]
            for choice in self.choices.values()
        ]

    def failure(self) -> FailureKind | None:
        """See Capture."""
        if any(not _tool_calls_parse(choice.message) for choice in self.choices.values()):
            return FailureKind.tool_parse_error
        return super().failure()

    def decode_reply(self, raw: bytes) -> Any:
        """See Capture."""
        # Packed tokens come in place of what the fast path leaves out.
        reply = None if self._wants.logprobs or _PACKED in raw else decode_vllm_reply(raw)
        return super().decode_reply(raw) if reply is None else reply

    def parse_common_chunk(self, event: bytes) -> bytes | None:
        """See Capture."""
        if (
            self._alias is None
            or self._wants.logprobs
            or self._wants.token_ids
            or self._held
            or not self.choices
        ):
            return None
        # Checked in its bytes, as a decoder that fails costs more than the general path.
        chunk = decode_text_chunk(event[6:]) if _GOES_ON in event else None
        choice = None if chunk is None else self.choices.get(chunk.choices[0].index)
        if chunk is None or choice is None or not isinstance(choice.message.get("content"), str):
            return None
        part = chunk.choices[0]
        choice.message["content"] += part.delta.content
        choice.extend(
            part.token_ids,
            part.logprobs and [token.logprob for token in part.logprobs.content],
            has_content=bool(part.delta.content),
        )
        return b'data: %b%d,"delta":{"content":%b%b' % (
            self._opening(chunk.object, chunk.created),
            part.index,
            encode(part.delta.content),
            _SAID,
        )

    def _opening(self, kind: str, created: int) -> bytes:
        """A chunk up to its choice's index: the same for all chunks of a stream."""
        if self._opened is None or self._opened[:2] != (kind, created):
            head = encode(
                {"id": self._id, "object": kind, "created": created, "model": self._alias}
            )
            self._opened = (kind, created, head[:-1] + b',"choices":[{"index":')
        return self._opened[2]

    def _parse_choice(self, choice: ChoiceCapture, part: Json) -> bool:
        message = part.get("message")
        choice.message = cast(Json, message) if isinstance(message, dict) else {}
        choice.add(part, _logprobs(part), has_content=_says(message))
        return isinstance(message, dict)

    def _parse_delta(self, choice: ChoiceCapture, part: Json) -> bool:
        delta = part.get("delta")
        choice.add(part, _logprobs(part), has_content=_says(delta))
        if isinstance(delta, dict):
            self._add(choice, cast(Json, delta))
        elif delta is not None:
            self.count_unread()
        return bool(cast(Any, delta)) or part.get("finish_reason") is not None

    def _add(self, choice: ChoiceCapture, delta: Json) -> None:
        calls = delta.get("tool_calls")
        if not isinstance(calls, list):
            merge_delta(choice.message, delta)
            return
        merge_delta(
            choice.message, {name: value for name, value in delta.items() if name != "tool_calls"}
        )
        choice.calls = choice.calls or ToolCalls()
        for fragment in cast("list[Any]", calls):
            if isinstance(fragment, dict):
                choice.calls.add(cast(Json, fragment))
            else:
                self.count_unread()
        choice.message["tool_calls"] = choice.calls.ordered()


_SET = frozenset({"role", "id", "type", "name"})
"""Fields that a later chunk replaces."""


def merge_delta(message: Json, delta: Json) -> None:
    """Add a stream's delta to the message so far: texts and lists grow. Tool calls are handled
    elsewhere.
    """
    for name, value in delta.items():
        known = message.get(name)
        if value is None:
            message.setdefault(name, None)
        elif name == "function_call" and isinstance(value, dict) and isinstance(known, dict):
            extend_function(cast(Json, known), cast(Json, value))
        elif isinstance(value, str) and isinstance(known, str) and name not in _SET:
            message[name] = known + value
        elif isinstance(value, dict) and isinstance(known, dict):
            merge_delta(cast(Json, known), cast(Json, value))
        elif isinstance(value, list) and isinstance(known, list):
            message[name] = cast("list[Any]", known) + cast("list[Any]", value)
        else:
            message[name] = value


def _tool_calls_parse(message: Json) -> bool:
    calls = message.get("tool_calls")
    for call in cast("list[Any]", calls) if isinstance(calls, list) else []:
        function = cast(Json, call).get("function") if isinstance(call, dict) else None
        if not arguments_parse(
            cast(Json, function).get("arguments") if isinstance(function, dict) else None
        ):
            return False
    return True


def _says(delta: Any) -> bool:
    return isinstance(delta, dict) and any(
        value for name, value in cast(Json, delta).items() if name != "role"
    )


def _logprobs(part: Json) -> list[float] | None:
    logprobs = part.get("logprobs")
    if isinstance(logprobs, Logprobs):
        return [token.logprob for token in logprobs.content]
    content = cast(Json, logprobs).get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return None
    try:
        return [entry["logprob"] for entry in cast("list[Json]", content)]
    except (KeyError, TypeError):
        return None
