"""What the upstream said, taken apart: the part the agent gets, and the part the log gets.

Token ids and log-probabilities are the engine's own; where a piece of an answer came without them, the whole choice is recorded
without (null, not wrong). The agent sees them only if it asked. Pure: no I/O, no clock.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from fulgurite.events import Choice
from fulgurite.failures import FailureKind
from fulgurite.tokens import pack_ids, pack_logprobs
from services.gateway.chat_request import Json, Wants

_encode = msgspec.json.Encoder().encode


class ChoiceCapture:
    """One choice, complete or still growing."""

    __slots__ = ("finish_reason", "has_ids", "has_logprobs", "index", "logprobs", "message", "stop_reason", "token_ids")

    def __init__(self, index: int) -> None:
        self.index = index
        self.message: Json = {}
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.has_ids = True
        self.has_logprobs = True
        self.finish_reason: str | None = None
        self.stop_reason: str | None = None

    def take(self, part: Json) -> None:
        """A choice of a reply, or of one chunk of a stream."""
        ids = part.get("token_ids")
        content = _content(part.get("logprobs"))
        delta: Any = part.get("delta") or part.get("message")
        said = isinstance(delta, dict) and any(value for name, value in cast(Json, delta).items() if name != "role")
        if isinstance(ids, list):
            self.token_ids += cast("list[int]", ids)
        elif said:
            self.has_ids = False
        if content is not None:
            self.logprobs += content
        elif said:
            self.has_logprobs = False
        finish = part.get("finish_reason")
        if isinstance(finish, str):
            self.finish_reason = finish
            stop = part.get("stop_reason")
            self.stop_reason = None if stop is None else str(stop)

    def choice(self) -> Choice:
        """As the log gets it."""
        ids = pack_ids(self.token_ids) if self.has_ids and self.token_ids else None
        paired = ids is not None and self.has_logprobs and len(self.logprobs) == len(self.token_ids)
        return Choice(
            index=self.index,
            message=_encode(self.message).decode(),
            token_ids=ids,
            logprobs=pack_logprobs(self.logprobs) if paired else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


class Capture:
    """One answer, whole or in chunks; every method changes what it is given into what the agent may see."""

    __slots__ = ("_alias", "_call_id", "_wants", "choices", "error", "head", "prompt_token_ids", "usage", "version_first", "version_last")

    def __init__(self, call_id: str, alias: str | None, wants: Wants) -> None:
        self._call_id = call_id
        self._alias = alias
        self._wants = wants
        self.choices: dict[int, ChoiceCapture] = {}
        self.head: Json = {}
        self.prompt_token_ids: list[int] | None = None
        self.usage: Json | None = None
        self.error: str | None = None
        self.version_first: str | None = None
        self.version_last: str | None = None

    def take_reply(self, reply: Json) -> bytes:
        """A whole answer → the body for the agent."""
        self._take_top(reply)
        for part in _parts(reply):
            choice = self._choice(part)
            choice.take(part)
            message = part.get("message")
            choice.message = cast(Json, message) if isinstance(message, dict) else {}
            self._strip(part)
        self._take_head(reply)
        return _encode(reply)

    def take_chunk(self, chunk: Json) -> bytes | None:
        """A chunk of a stream → the chunk for the agent, None if nothing is left of it. An error within a stream is kept in `error`."""
        if "error" in chunk and "choices" not in chunk:
            self.error = _error_text(chunk["error"])
            return _encode(chunk)
        self._take_top(chunk)
        parts = _parts(chunk)
        empty = bool(parts)
        for part in parts:
            choice = self._choice(part)
            choice.take(part)
            delta = part.get("delta")
            if isinstance(delta, dict):
                merge_delta(choice.message, cast(Json, delta))
            empty = empty and not delta and part.get("finish_reason") is None
            self._strip(part)
        self._take_head(chunk)
        if not self._wants.usage and chunk.pop("usage", None) is not None and not parts:
            return None
        # vLLM sends tokens that say nothing yet (half a tool call) only because we asked for token ids.
        if empty and not self._wants.logprobs and not self._wants.token_ids:
            return None
        return _encode(chunk)

    def finished(self) -> bool:
        """Whether every choice seen has its finish reason."""
        return bool(self.choices) and all(choice.finish_reason is not None for choice in self.choices.values())

    def response(self) -> str | None:
        """The reply without choices and token data."""
        return _encode({**self.head, "usage": self.usage}).decode() if self.head else None

    def failure(self) -> FailureKind | None:
        """What is wrong with a completed answer, if anything is."""
        if any(not _arguments_parse(choice.message) for choice in self.choices.values()):
            return FailureKind.tool_parse_error
        if any(choice.finish_reason == "length" for choice in self.choices.values()):
            return FailureKind.truncated
        return None

    def _take_top(self, reply: Json) -> None:
        reply["id"] = self._call_id
        if self._alias is not None and "model" in reply:
            reply["model"] = self._alias
        ids = reply.get("prompt_token_ids")
        if isinstance(ids, list):
            self.prompt_token_ids = cast("list[int]", ids)
        if not self._wants.token_ids:
            reply.pop("prompt_token_ids", None)
        usage = reply.get("usage")
        if isinstance(usage, dict):
            self.usage = cast(Json, usage)

    def _take_head(self, reply: Json) -> None:
        if not self.head:
            self.head = {name: value for name, value in reply.items() if name not in _NOT_HEAD}

    def _choice(self, part: Json) -> ChoiceCapture:
        index = part.get("index")
        number = index if isinstance(index, int) else 0
        known = self.choices.get(number)
        if known is None:
            known = self.choices[number] = ChoiceCapture(number)
        return known

    def _strip(self, part: Json) -> None:
        if not self._wants.token_ids:
            part.pop("token_ids", None)
        if not self._wants.logprobs and "logprobs" in part:
            part["logprobs"] = None


_NOT_HEAD = frozenset({"choices", "usage", "prompt_token_ids"})


def merge_delta(message: Json, delta: Json) -> None:
    """Add a stream's delta to the message so far: texts are joined, tool calls by their index."""
    for name, value in delta.items():
        known = message.get(name)
        if value is None:
            message.setdefault(name, None)
        elif name == "tool_calls" and isinstance(value, list):
            message[name] = _merge_tool_calls(cast("list[Json]", known or []), cast("list[Json]", value))
        elif isinstance(value, str) and isinstance(known, str) and name != "role":
            message[name] = known + value
        elif isinstance(value, dict) and isinstance(known, dict):
            merge_delta(cast(Json, known), cast(Json, value))
        elif isinstance(value, list) and isinstance(known, list):
            message[name] = cast("list[Any]", known) + cast("list[Any]", value)
        else:
            message[name] = value


def _merge_tool_calls(calls: list[Json], deltas: list[Json]) -> list[Json]:
    for delta in deltas:
        index = delta.get("index")
        position = index if isinstance(index, int) and 0 <= index <= len(calls) else len(calls)
        if position == len(calls):
            calls.append({})
        call = calls[position]
        for name in ("id", "type"):
            if delta.get(name):
                call[name] = delta[name]
        function = delta.get("function")
        if isinstance(function, dict):
            merge_delta(call.setdefault("function", {}), cast(Json, function))
    return calls


def _arguments_parse(message: Json) -> bool:
    calls = message.get("tool_calls")
    for call in cast("list[Any]", calls) if isinstance(calls, list) else []:
        function = cast(Json, call).get("function") if isinstance(call, dict) else None
        arguments = cast(Json, function).get("arguments") if isinstance(function, dict) else None
        try:
            msgspec.json.decode(arguments if isinstance(arguments, str) else "{}")
        except msgspec.DecodeError:
            return False
    return True


def _parts(reply: Json) -> list[Json]:
    choices = reply.get("choices")
    return [cast(Json, part) for part in cast("list[Any]", choices) if isinstance(part, dict)] if isinstance(choices, list) else []


def _content(logprobs: Any) -> list[float] | None:
    content = cast(Json, logprobs).get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return None
    try:
        return [float(entry["logprob"]) for entry in cast("list[Json]", content)]
    except (KeyError, TypeError, ValueError):
        return None


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        return str(cast(Json, error).get("message", cast(Json, error)))
    return str(error)
