"""What the upstream said, taken apart: the part the agent gets, and the part the log gets.

Token ids and log-probabilities are the engine's own; where a piece of an answer came without them,
the whole choice is recorded without (null, not wrong). The agent sees them only if it asked. Pure:
no I/O, no clock.
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
"""What the log has room for in a count or an index."""
_WORDS = 2_000
"""Characters of an upstream's error that are kept."""


class Mark(Enum):
    """What an event of a stream means for the promise that no completion leaves before the log has
    it.
    """

    none = "none"
    """It may leave."""
    perhaps = "perhaps"
    """It ends a part of the answer, perhaps the last: it leaves with what goes on after it, or
    waits with what completes the answer.
    """
    complete = "complete"
    """It tells that an answer is complete, or belongs to one that is: it waits for the log."""


class Capture(ABC):
    """One answer, whole or in chunks; every method changes what it is given into what the agent may
    see.
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
        """What the upstream said of itself in an error event within a stream."""
        self.version_first: str | None = None
        self.version_last: str | None = None
        self.done = False
        """Whether the stream said that it is over."""
        self.unread = 0
        """Parts of the answer that the agent got and that were not understood: with any, the log
        gets none of its tokens.
        """
        self._has_halves = False

    @abstractmethod
    def parse_reply(self, reply: Json) -> bytes | None:
        """A whole answer → the body for the agent; None for what is no answer of this API, with its
        words in `error` if it is an error.
        """

    @abstractmethod
    def mark(self, chunk: Json) -> Mark:
        """What a chunk, not yet taken, means."""

    @abstractmethod
    def parse_chunk(self, chunk: Json) -> bytes | None:
        """A chunk of a stream → the chunk for the agent, None if nothing is left of it. An error
        within a stream is kept in `error`.
        """

    def decode_reply(self, raw: bytes) -> Any:
        """A whole answer's bytes → what `parse_reply` takes. Raises ValueError."""
        return self._decode(raw)

    def decode_chunk(self, data: bytes) -> Json | None:
        """A chunk's bytes → what `parse_chunk` takes; None for what is no JSON object."""
        try:
            chunk = self._decode(data)
        except ValueError:
            return None
        return cast(Json, chunk) if isinstance(chunk, dict) else None

    def count_unread(self) -> None:
        """Note that a part of the answer goes to the agent and was not understood."""
        self.unread += 1

    def parse_common_chunk(self, event: bytes) -> bytes | None:
        """`parse_chunk` for events that are common, may leave and can be told apart cheaply: the
        event for the agent, closing blank line included. None leaves one to the general way.
        """
        return None

    @abstractmethod
    def finished(self) -> bool:
        """Whether a stream's answer is complete."""

    @abstractmethod
    def recorded_choices(self) -> tuple[Choice, ...]:
        """What was generated so far, as the log gets it."""

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
        """A comment of a stream; returns whether it was for the gateway alone."""
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
        """The message as an agent will send it back: with whole characters."""
        return msgspec.json.decode(recorded(message)) if self._has_halves else message

    def parse_error(self, answer: Json) -> None:
        """Note the words of an answer that is an error, if it is one."""
        error = error_in(answer)
        self.error = None if error is None else error_text(error)

    def parse_usage(self, usage: Any, prompt: str, completion: str) -> None:
        """Note usage as reported, under the API's own names for the two counts."""
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
    """The error that an answer or a chunk bears; None without one, which some upstreams say with
    `"error": null`.
    """
    error = answer.get("error")
    # No number that JSON cannot write: the agent would get null.
    return error if error and not isinstance(error, float) else None


def error_text(error: Any) -> str:
    """The words of an error object."""
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
    """A count or an index that the log has room for; None for anything else."""
    return value if type(value) is int and 0 <= value <= _LARGEST else None
