"""Parse an upstream's answer into two parts: what the agent gets, and what is recorded.

Token ids and log-probabilities are the engine's own. If a piece of an answer came without them, the
complete choice is recorded without (null, not wrong). The agent sees them only if it asked for
them. Pure: no I/O, no clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, cast

import msgspec

from fulgurite.events import Choice
from fulgurite.failures import FailureKind
from fulgurite.untrusted_json import encoded as encode
from fulgurite.untrusted_json import parsed
from services.gateway.dialects.foreign_json import decode, decode_leniently, joined, recorded

__all__ = ["Capture", "Json", "Mark", "arguments_parse", "encode", "error_in", "error_text"]

VERSION_COMMENT = b": fulgurite-version "

Json = dict[str, Any]

_LARGEST = (1 << 31) - 1
"""Largest count or index that the log can hold."""
_WORDS = 2_000
"""Characters of an upstream's error that are kept."""


class Mark(Enum):
    """When an event of a stream may leave, so that no complete answer leaves before it is
    recorded.
    """

    none = "none"
    """It may leave now."""
    perhaps = "perhaps"
    """It ends a part of the answer, perhaps the last. It leaves with the event after it, or waits
    with what completes the answer.
    """
    complete = "complete"
    """It completes an answer, or belongs to one that is complete: it waits until the call is
    recorded.
    """


class Capture(ABC):
    """One answer, complete or in chunks. Every method changes what it is given into what the agent
    may see.
    """

    def __init__(self, public_id: str, alias: str | None) -> None:
        """`public_id` is the id that the agent sees; `alias` its name for the model, None to leave
        the upstream's.
        """
        self._id = public_id
        self._alias = alias
        self.head: Json = {}
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.usage: Json | None = None
        self.error: str | None = None
        """The message of an error event within a stream."""
        self.version_first: str | None = None
        self.version_last: str | None = None
        self.done = False
        """Whether the stream ended with its end marker."""
        self.unread = 0
        """Parts of the answer that the agent got and that were not understood. If there is any,
        none of its tokens are recorded.
        """
        self._has_halves = False

    @abstractmethod
    def parse_reply(self, reply: Json) -> bytes | None:
        """Parse a complete answer → the body for the agent. None if it is no answer of this API;
        `error` then has its message if it is an error.
        """

    @abstractmethod
    def mark(self, chunk: Json) -> Mark:
        """When a chunk, not yet parsed, may leave."""

    @abstractmethod
    def parse_chunk(self, chunk: Json) -> bytes | None:
        """Parse a chunk of a stream → the chunk for the agent, None if nothing is left of it. An
        error within a stream is kept in `error`.
        """

    def decode_reply(self, raw: bytes) -> Any:
        """A complete answer's bytes → the argument of `parse_reply`. Raises ValueError."""
        return self._decode(raw)

    def decode_chunk(self, data: bytes) -> Json | None:
        """A chunk's bytes → the argument of `parse_chunk`; None for anything but a JSON object."""
        try:
            chunk = self._decode(data)
        except ValueError:
            return None
        return cast(Json, chunk) if isinstance(chunk, dict) else None

    def count_unread(self) -> None:
        """Count a part of the answer that goes to the agent and was not understood."""
        self.unread += 1

    def parse_common_chunk(self, event: bytes) -> bytes | None:
        """The fast path of `parse_chunk`, for common events that may leave: the event for the
        agent, with its closing blank line. None for an event that `parse_chunk` must parse.
        """
        return None

    @abstractmethod
    def finished(self) -> bool:
        """Whether a stream's answer is complete."""

    @abstractmethod
    def recorded_choices(self) -> tuple[Choice, ...]:
        """The choices generated so far, as they are recorded."""

    def prompt(self) -> bytes | None:
        """The prompt's token ids, packed; None where the upstream gave none."""
        return None

    def answers(self) -> list[list[Any]]:
        """The items of each completed answer, as an agent may send them back; none for an API
        without conversations.
        """
        return []

    @abstractmethod
    def failure(self) -> FailureKind | None:
        """What is wrong with a completed answer, if anything is."""

    def parse_comment(self, line: bytes) -> bool:
        """Parse a comment of a stream; returns whether it was for the gateway alone."""
        if not line.startswith(VERSION_COMMENT):
            return False
        self.version_last = line[len(VERSION_COMMENT) :].strip().decode("ascii", "replace")
        if self.version_first is None:
            self.version_first = self.version_last
        return True

    def response(self) -> str | None:
        """The reply without choices and token data."""
        return recorded({**self.head, "usage": self.usage}) if self.head else None

    def as_recorded(self, message: Json) -> Json:
        """The message as an agent will send it back: with complete characters."""
        return msgspec.json.decode(recorded(message)) if self._has_halves else message

    def parse_error(self, answer: Json) -> None:
        """Note the message of an answer that is an error."""
        error = error_in(answer)
        self.error = None if error is None else error_text(error)

    def parse_usage(self, usage: Any, prompt: str, completion: str) -> None:
        """Note the usage, with the API's own names for the two counts."""
        if isinstance(usage, dict):
            self.usage = cast(Json, usage)
            self.prompt_tokens, self.completion_tokens = (
                count(self.usage.get(prompt)),
                count(self.usage.get(completion)),
            )

    def _decode(self, data: bytes) -> Any:
        try:
            return decode(data)
        except ValueError:
            value, all_utf8 = decode_leniently(data)
        self._has_halves = True
        if not all_utf8:
            self.count_unread()
        return value


def error_in(answer: Json) -> Any:
    """The error in an answer or a chunk; None without one, also where an upstream sends `"error":
    null`.
    """
    error = answer.get("error")
    # No number that JSON cannot write: the agent would get null.
    return error if error and not isinstance(error, float) else None


def error_text(error: Any) -> str:
    """The message of an error object."""
    message = (
        (cast(Json, error).get("message") or cast(Json, error))
        if isinstance(error, dict)
        else error
    )
    return joined(message if isinstance(message, str) else recorded(message))[:_WORDS]


def arguments_parse(arguments: Any) -> bool:
    """Whether a tool call's arguments are JSON, as far as they are text at all."""
    try:
        parsed(arguments if isinstance(arguments, str) else "{}")
    except ValueError:
        return False
    return True


def count(value: Any) -> int | None:
    """The value if it is a count or an index that the log can hold; None for anything else."""
    return value if type(value) is int and 0 <= value <= _LARGEST else None
