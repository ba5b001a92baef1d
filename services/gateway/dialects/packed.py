"""Token data beside an answer: our vLLM plug-in sends it packed when the gateway asks with a header.

A stream bears it as comments, `: fulgurite-tokens <sequence> <prompt ids> <ids> <log-probabilities>` (base64 of little-endian int32 and
float32, `-` for none), each with what was generated since the last; a whole reply in a field `fulgurite_tokens`, a list of
`[prompt ids, ids, log-probabilities]`. More than one sequence cannot be told apart by choice: then there are none.

APIs that have no place for token ids ask for it on top (`x-fulgurite-tokens: 1`). Those that have one ask for both (`instead`): the body
ends with `IN_BODY`, which a vLLM without the plug-in obeys, and the plug-in cuts off, since packed tokens cost it and us a fraction.
"""

from __future__ import annotations

import binascii
from abc import abstractmethod
from typing import Any, cast

from fulgurite.events import Choice
from services.gateway.capture import Capture, Json, encode

ASK_HEADER = "x-fulgurite-tokens"
TOKENS_COMMENT = b": fulgurite-tokens "
TOKENS_FIELD = "fulgurite_tokens"
IN_BODY = {"logprobs": True, "return_token_ids": True}
"""The last fields of a body that asks for the same in vLLM's own way."""
_NONE = "-"
_AFTER_NAME = len(TOKENS_COMMENT)
_unpack = binascii.a2b_base64


class PackedTokens:
    """What the plug-in sent of one sequence."""

    def __init__(self) -> None:
        self.came = False
        self._lines: list[bytes] = []
        self._prompt = b""
        self._ids: list[bytes] = []
        self._logprobs: list[bytes] = []
        self._unmatched = False

    def take_line(self, line: bytes) -> bool:
        """A comment of a stream; returns whether it was one of these. It is read when it is needed."""
        if not line.startswith(TOKENS_COMMENT):
            return False
        self.came = True
        self._lines.append(line)
        return True

    def take_field(self, sequences: Any) -> None:
        """The field of a whole reply."""
        self.came = True
        for number, packed in enumerate(cast("list[Any]", sequences) if isinstance(sequences, list) else []):
            self._take(cast("list[str]", packed) if number == 0 and isinstance(packed, list) else [])

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Prompt ids, ids and log-probabilities so far; None for what did not come, or cannot be matched."""
        lines, self._lines = self._lines, []
        for line in lines:
            sequence, *packed = line[_AFTER_NAME:].decode("ascii", "replace").split(" ")
            self._take(packed if sequence == "0" else [])
        if self._unmatched:
            return None, None, None
        ids, logprobs = b"".join(self._ids), b"".join(self._logprobs)
        paired = ids and len(logprobs) == len(ids)
        return self._prompt or None, ids or None, logprobs if paired else None

    def _take(self, packed: list[str]) -> None:
        try:
            prompt, ids, logprobs = packed
            if prompt != _NONE:
                self._take_prompt(_unpack(prompt, strict_mode=True))
            if ids != _NONE:
                new = _unpack(ids, strict_mode=True)
                self._unmatched = self._unmatched or len(new) % 4 != 0
                self._ids.append(new)
            if logprobs != _NONE:
                self._logprobs.append(_unpack(logprobs, strict_mode=True))
        except (ValueError, TypeError):
            self._unmatched = True

    def _take_prompt(self, prompt: bytes) -> None:
        self._unmatched = self._unmatched or len(prompt) % 4 != 0
        self._prompt = prompt or self._prompt


class PackedCapture(Capture):
    """One answer, one sequence."""

    def __init__(self, public_id: str, alias: str | None) -> None:
        super().__init__(public_id, alias)
        self._packed = PackedTokens()
        self.finish_reason: str | None = None
        """In OpenAI's words, whatever the API's are: `stop`, `length`, `tool_calls`."""
        self.stop_reason: str | None = None

    @abstractmethod
    def message(self) -> Json:
        """What was said so far, as the agent got it."""

    def taken(self) -> tuple[Choice, ...]:
        """See Capture."""
        message = self.message()
        if not message:
            return ()
        _, ids, logprobs = self._packed.read()
        return (
            Choice(
                index=0,
                message=encode(message).decode(),
                token_ids=ids,
                logprobs=logprobs,
                finish_reason=self.finish_reason,
                stop_reason=self.stop_reason,
            ),
        )

    def prompt(self) -> bytes | None:
        """See Capture."""
        return self._packed.read()[0]

    def take_comment(self, line: bytes) -> bool:
        """See Capture."""
        return self._packed.take_line(line) or super().take_comment(line)

    def take_field(self, reply: Json) -> None:
        """Take the plug-in's field out of a whole reply."""
        if TOKENS_FIELD in reply:
            self._packed.take_field(reply.pop(TOKENS_FIELD))


def asking(*, instead: bool = False) -> dict[str, str]:
    """The header that asks the plug-in."""
    return {ASK_HEADER: "instead" if instead else "1"}
