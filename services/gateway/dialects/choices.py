"""Parse replies with `choices`, as in chat completions and completions: token ids and
log-probabilities are beside each choice.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import msgspec

from fulgurite.events import Choice
from fulgurite.failures import FailureKind
from services.gateway.dialects.capture import Capture, Json, Mark, count, encode
from services.gateway.dialects.foreign_json import joined, recorded
from services.gateway.dialects.packed import (
    TOKENS_FIELD,
    PackedTokens,
    checked_ids,
    checked_logprobs,
)
from services.gateway.dialects.tool_calls import ToolCalls


class Wants(msgspec.Struct, frozen=True):
    """What the agent itself asked for, so that it stays in the reply."""

    logprobs: bool
    token_ids: bool
    usage: bool


AS_IT_IS = Wants(logprobs=True, token_ids=True, usage=True)
"""For upstreams that were asked for nothing more: nothing is removed."""


class ChoiceCapture:
    """One choice, complete or still growing."""

    __slots__ = (
        "calls",
        "finish_reason",
        "has_ids",
        "has_logprobs",
        "index",
        "logprobs",
        "message",
        "stop_reason",
        "token_ids",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.message: Json = {}
        self.calls: ToolCalls | None = None
        """The message's tool calls, while a stream adds to them."""
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.has_ids = True
        self.has_logprobs = True
        self.finish_reason: str | None = None
        self.stop_reason: str | None = None

    def add(self, part: Json, logprobs: list[float] | None, *, has_content: bool) -> None:
        """Add a choice of a reply, or of one chunk of a stream; `has_content` tells whether it
        holds anything that was generated.
        """
        ids = part.get("token_ids")
        self.extend(
            cast("list[int]", ids) if isinstance(ids, list) else None,
            logprobs,
            has_content=has_content,
        )
        finish = part.get("finish_reason")
        if isinstance(finish, str):
            self.finish_reason = joined(finish)
            stop = part.get("stop_reason")
            self.stop_reason = (
                None if stop is None else joined(stop) if isinstance(stop, str) else recorded(stop)
            )

    def extend(
        self, ids: list[int] | None, logprobs: list[float] | None, *, has_content: bool
    ) -> None:
        """Add tokens. If a piece with content comes without them, the log gets none of the
        choice.
        """
        if ids is not None:
            self.token_ids += ids
        elif has_content:
            self.has_ids = False
        if logprobs is not None:
            self.logprobs += logprobs
        elif has_content:
            self.has_logprobs = False

    def choice(self, packed: PackedTokens | None = None, *, understood: bool = True) -> Choice:
        """The choice as it is recorded: with the packed tokens if they came, and without any tokens
        if a part was not `understood`.
        """
        ids, logprobs = (
            (None, None)
            if not understood
            else self._tokens()
            if packed is None
            else packed.read()[1:]
        )
        return Choice(
            index=self.index,
            message=recorded(self.message),
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _tokens(self) -> tuple[bytes | None, bytes | None]:
        ids = checked_ids(self.token_ids) if self.has_ids and self.token_ids else None
        paired = ids is not None and self.has_logprobs and len(self.logprobs) == len(self.token_ids)
        return ids, checked_logprobs(self.logprobs) if paired else None


class ChoicesCapture(Capture):
    """A reply with `choices`; subclasses parse the content of a choice."""

    def __init__(self, public_id: str, alias: str | None, wants: Wants) -> None:
        super().__init__(public_id, alias)
        self._wants = wants
        self._packed = PackedTokens()
        self._held: set[int] = set()
        """Choices of which a chunk is held until the call is recorded."""
        self.prompt_token_ids: list[int] | None = None
        self.choices: dict[int, ChoiceCapture] = {}

    @abstractmethod
    def _parse_choice(self, choice: ChoiceCapture, part: Json) -> bool:
        """Parse a choice of a complete reply; returns whether it is one."""

    @abstractmethod
    def _parse_delta(self, choice: ChoiceCapture, part: Json) -> bool:
        """Parse a choice of a chunk; returns whether it has anything for the agent."""

    def parse_reply(self, reply: Json) -> bytes | None:
        """See Capture."""
        self.parse_error(reply)
        if self.error is not None:
            return None
        self._parse_top(reply)
        found = [self._parse_choice(self._new_choice(part), part) for part in self._parts(reply)]
        if not any(found):
            return None
        if not all(found):
            self.count_unread()
        for part in self._parts(reply):
            self._strip(part)
        self._keep_head(reply)
        return encode(reply)

    def mark(self, chunk: Json) -> Mark:
        """See Capture. A choice that has ended delays no other, except in chunks that both are in:
        what follows such a chunk waits too, so that no choice gets its pieces in another order.
        What belongs to no choice waits for all.
        """
        parts = _objects(chunk.get("choices"))
        if not parts:
            return Mark.complete if self._held else Mark.none
        indices = {_index(part) or 0 for part in parts}
        ends = any(part.get("finish_reason") is not None for part in parts)
        if not ends and self._held.isdisjoint(indices):
            return Mark.none
        self._held |= indices
        return Mark.complete

    def parse_chunk(self, chunk: Json) -> bytes | None:
        """See Capture."""
        self.parse_error(chunk)
        if self.error is not None and "choices" not in chunk:
            return encode(chunk)
        self._parse_top(chunk)
        parts = self._parts(chunk)
        if len(parts) > 1 and len({_index(part) for part in parts}) < len(parts):
            self.count_unread()
        says = not parts or self.error is not None
        for part in parts:
            says |= self._parse_delta(self._choice(part), part)
            self._strip(part)
        self._keep_head(chunk)
        if not self._wants.usage and chunk.pop("usage", None) is not None and not parts:
            return None
        # vLLM sends chunks without content (half a tool call) only because we ask for token ids.
        if not says and not self._wants.logprobs and not self._wants.token_ids:
            return None
        return encode(chunk)

    def finished(self) -> bool:
        """Whether every choice has its finish reason, or the stream ended with its end marker."""
        return bool(self.choices) and (
            self.done or all(choice.finish_reason is not None for choice in self.choices.values())
        )

    def recorded_choices(self) -> tuple[Choice, ...]:
        """See Capture. Packed tokens are those of the only choice."""
        packed = self._packed if self._packed.came and len(self.choices) == 1 else None
        return tuple(
            [
                choice.choice(packed, understood=not self.unread)
                for _, choice in sorted(self.choices.items())
            ]
        )

    def prompt(self) -> bytes | None:
        """See Capture."""
        if self.unread:
            return None
        if self._packed.came:
            return self._packed.read()[0]
        return None if self.prompt_token_ids is None else checked_ids(self.prompt_token_ids)

    def parse_comment(self, line: bytes) -> bool:
        """See Capture."""
        return self._packed.add_comment(line) or super().parse_comment(line)

    def failure(self) -> FailureKind | None:
        """See Capture."""
        reasons = {choice.finish_reason for choice in self.choices.values()}
        if "error" in reasons:
            return FailureKind.upstream_error
        return FailureKind.truncated if "length" in reasons else None

    def _parse_top(self, reply: Json) -> None:
        reply["id"] = self._id
        if self._alias is not None and "model" in reply:
            reply["model"] = self._alias
        if TOKENS_FIELD in reply:
            self._packed.add_field(reply.pop(TOKENS_FIELD))
        self.parse_prompt(reply)
        self.parse_usage(reply.get("usage"), "prompt_tokens", "completion_tokens")

    def parse_prompt(self, holder: Json) -> None:
        """Note the prompt's token ids, and remove them unless the agent asked for them."""
        ids = holder.get("prompt_token_ids")
        if isinstance(ids, list):
            self.prompt_token_ids = cast("list[int]", ids)
        if not self._wants.token_ids:
            holder.pop("prompt_token_ids", None)

    def _keep_head(self, reply: Json) -> None:
        if not self.head:
            self.head = {name: value for name, value in reply.items() if name not in _NOT_HEAD}

    def _parts(self, reply: Json) -> list[Json]:
        choices = reply.get("choices")
        parts = _objects(choices)
        if choices is not None and (
            not isinstance(choices, list) or len(parts) < len(cast("list[Any]", choices))
        ):
            self.count_unread()
        return parts

    def _choice(self, part: Json) -> ChoiceCapture:
        number = _index(part)
        if number is None:
            self.count_unread()
            number = 0
        known = self.choices.get(number)
        if known is None:
            known = self.choices[number] = ChoiceCapture(number)
        return known

    def _new_choice(self, part: Json) -> ChoiceCapture:
        """A new choice of a complete reply, in which no choice adds to another."""
        if _index(part) not in self.choices:
            return self._choice(part)
        self.count_unread()
        return self._choice({"index": 1 + max(self.choices)})

    def _strip(self, part: Json) -> None:
        if not self._wants.token_ids:
            part.pop("token_ids", None)
        if not self._wants.logprobs and "logprobs" in part:
            part["logprobs"] = None


_NOT_HEAD = frozenset({"choices", "usage", "prompt_token_ids"})


def _index(part: Json) -> int | None:
    """The index of a part's choice: 0 if it has none; None if it is not an index."""
    return count(part.get("index", 0))


def _objects(choices: Any) -> list[Json]:
    return (
        [cast(Json, part) for part in cast("list[Any]", choices) if isinstance(part, dict)]
        if isinstance(choices, list)
        else []
    )
