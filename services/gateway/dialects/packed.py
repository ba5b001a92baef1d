"""Token data beside an answer: our vLLM plug-in sends it packed when the gateway asks with a
header.

A stream has it in comments, `: fulgurite-tokens <sequence> <prompt ids> <ids> <log-probabilities>`
(base64 of little-endian int32 and float32, `-` for none), each with what was generated since the
last. A complete reply has it in a field `fulgurite_tokens`, a list of `[prompt ids, ids,
log-probabilities]`. With more than one sequence the tokens cannot be assigned to choices, and none
are recorded.

APIs that have no place for token ids ask for packed ones in addition (`x-fulgurite-tokens: 1`).
APIs that have one ask for both (`instead`): the body ends with `IN_BODY`. A vLLM without the
plug-in obeys it; the plug-in cuts it off, since packed tokens cost both sides a fraction.
"""

from __future__ import annotations

import binascii
import struct
from abc import abstractmethod
from typing import Any, cast

from pybase64 import b64decode

from fulgurite.events import Choice
from fulgurite.tokens import all_finite, any_negative, unpack_ids
from services.gateway.dialects.capture import Capture, Json
from services.gateway.dialects.foreign_json import recorded

ASK_HEADER = "x-fulgurite-tokens"
TOKENS_COMMENT = b": fulgurite-tokens "
TOKENS_FIELD = "fulgurite_tokens"
IN_BODY = {"logprobs": True, "return_token_ids": True}
"""The last fields of a body, which ask for the same in vLLM's own form."""
_NONE = b"-"
_unpack = binascii.a2b_base64


def checked_ids(ids: list[Any]) -> bytes | None:
    """Token ids as they are recorded; None if one of them is no token id."""
    try:
        packed = struct.pack(f"<{len(ids)}i", *ids)
    except struct.error:
        return None
    least = int(unpack_ids(packed).min()) if ids else 0
    # Only booleans pass as 0 and 1, so a list without either needs no check for them.
    return packed if least > 1 or (least >= 0 and bool not in map(type, ids)) else None


def checked_logprobs(logprobs: list[Any]) -> bytes | None:
    """Log-probabilities as they are recorded; None if one of them is not a number that the log can
    hold.
    """
    try:
        packed = struct.pack(f"<{len(logprobs)}f", *logprobs)
    except (struct.error, OverflowError):
        return None
    return packed if all_finite(packed) else None


class PackedTokens:
    """The plug-in's data of one sequence. It is parsed once, when it is needed, since a stream
    sends each token apart.
    """

    def __init__(self) -> None:
        self.came = False
        self._comments: list[bytes] = []
        self._prompt = b""
        self._ids: list[bytes] = []
        self._logprobs: list[bytes] = []
        self._unmatched = False
        self._known: tuple[bytes | None, bytes | None, bytes | None] | None = None

    def add_comment(self, line: bytes) -> bool:
        """Add a comment of a stream; returns whether it holds packed tokens."""
        if not line.startswith(TOKENS_COMMENT):
            return False
        self.came = True
        self._comments.append(line[len(TOKENS_COMMENT) :])
        return True

    def add_field(self, sequences: Any) -> None:
        """Add the field of a complete reply."""
        self.came = True
        found = cast("list[Any]", sequences) if isinstance(sequences, list) else []
        for number, packed in enumerate(found):
            parts = cast("list[Any]", packed) if isinstance(packed, list) else []
            self._add(
                [str(part).encode("utf-8", "replace") for part in (number, *parts)] if parts else []
            )

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Prompt ids, ids and log-probabilities so far; None for what did not come, or does not
        match.
        """
        if self._comments:
            fields = b" ".join(self._comments).split(b" ")
            self._comments = []
            self._add(fields)
        if self._known is None:
            self._known = self._joined()
        return self._known

    def _joined(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        ids, logprobs = b"".join(self._ids), b"".join(self._logprobs)
        if (
            self._unmatched
            or len(ids) % 4
            or len(self._prompt) % 4
            or any_negative(ids)
            or any_negative(self._prompt)
        ):
            return None, None, None
        paired = ids and len(logprobs) == len(ids) and all_finite(logprobs)
        return self._prompt or None, ids or None, logprobs if paired else None

    def _add(self, fields: list[bytes]) -> None:
        """Add fields: sequence, prompt ids, ids and log-probabilities, repeated."""
        self._known = None
        if len(fields) % 4 or 4 * fields[::4].count(b"0") != len(fields):
            self._unmatched = True
            return
        try:
            for prompt in [packed for packed in fields[1::4] if packed != _NONE]:
                # Prompts are long, where pybase64 is ten times as fast; the other fields are mostly
                # short, where it is slower.
                self._prompt = b64decode(prompt, validate=True) or self._prompt
            self._ids += [
                _unpack(packed, strict_mode=True) for packed in fields[2::4] if packed != _NONE
            ]
            self._logprobs += [
                _unpack(packed, strict_mode=True) for packed in fields[3::4] if packed != _NONE
            ]
        except ValueError:
            self._unmatched = True


class PackedCapture(Capture):
    """One answer of one sequence."""

    def __init__(self, public_id: str, alias: str | None) -> None:
        super().__init__(public_id, alias)
        self._packed = PackedTokens()
        self.finish_reason: str | None = None
        """In OpenAI's terms, whatever the API's are: `stop`, `length`, `tool_calls`."""
        self.stop_reason: str | None = None

    @abstractmethod
    def message(self) -> Json:
        """The message so far, as the agent got it."""

    def recorded_choices(self) -> tuple[Choice, ...]:
        """See Capture."""
        message = self.message()
        if not message:
            return ()
        _, ids, logprobs = (None, None, None) if self.unread else self._packed.read()
        return (
            Choice(
                index=0,
                message=recorded(message),
                token_ids=ids,
                logprobs=logprobs,
                finish_reason=self.finish_reason,
                stop_reason=self.stop_reason,
            ),
        )

    def prompt(self) -> bytes | None:
        """See Capture."""
        return None if self.unread else self._packed.read()[0]

    def parse_comment(self, line: bytes) -> bool:
        """See Capture."""
        return self._packed.add_comment(line) or super().parse_comment(line)

    def parse_tokens_field(self, reply: Json) -> None:
        """Remove the plug-in's field from a complete reply, and note its tokens."""
        if TOKENS_FIELD in reply:
            self._packed.add_field(reply.pop(TOKENS_FIELD))


def asking(*, instead: bool = False) -> dict[str, str]:
    """The header that asks the plug-in for packed tokens."""
    return {ASK_HEADER: "instead" if instead else "1"}
