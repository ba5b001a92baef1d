"""Answers whose API has no place for token ids: our vLLM plug-in sends them beside the answer, packed, when the gateway asks with a header.

A stream bears them as comments, `: fulgurite-tokens <sequence> <prompt ids> <ids> <log-probabilities>` (base64 of little-endian int32 and
float32, `-` for none), each with what was generated since the last; a whole reply in a field `fulgurite_tokens`, a list of
`[prompt ids, ids, log-probabilities]`. More than one sequence cannot be told apart by choice: then there are none.
"""

from __future__ import annotations

import binascii
from abc import abstractmethod
from typing import Any, cast

from fulgurite.events import Choice
from fulgurite.tokens import unpack_ids
from services.gateway.capture import Capture, Json, encode

ASK_HEADER = "x-fulgurite-tokens"
TOKENS_COMMENT = b": fulgurite-tokens "
TOKENS_FIELD = "fulgurite_tokens"
_NONE = "-"


class PackedCapture(Capture):
    """One answer, one sequence."""

    def __init__(self, public_id: str, alias: str | None) -> None:
        super().__init__(public_id, alias)
        self._ids = b""
        self._logprobs = b""
        self._unmatched = False
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
        ids = self._ids if self._ids and not self._unmatched else None
        paired = ids is not None and len(self._logprobs) == len(ids)
        return (
            Choice(
                index=0,
                message=encode(message).decode(),
                token_ids=ids,
                logprobs=self._logprobs if paired else None,
                finish_reason=self.finish_reason,
                stop_reason=self.stop_reason,
            ),
        )

    def take_comment(self, line: bytes) -> bool:
        """See Capture."""
        if not line.startswith(TOKENS_COMMENT):
            return super().take_comment(line)
        sequence, *packed = line[len(TOKENS_COMMENT) :].decode("ascii", "replace").split(" ")
        self._take_packed(packed if sequence == "0" else [])
        return True

    def take_field(self, reply: Json) -> None:
        """Take the plug-in's field out of a whole reply."""
        sequences = reply.pop(TOKENS_FIELD, None)
        for number, packed in enumerate(cast("list[Any]", sequences) if isinstance(sequences, list) else []):
            self._take_packed(cast("list[Any]", packed) if number == 0 and isinstance(packed, list) else [])

    def _take_packed(self, packed: list[Any]) -> None:
        try:
            prompt, ids, logprobs = (b"" if part == _NONE else binascii.a2b_base64(part, strict_mode=True) for part in packed)
            if prompt:
                self.prompt_token_ids = unpack_ids(prompt)
        except (ValueError, TypeError):
            self._unmatched = True
            self.prompt_token_ids = None
            return
        self._ids += ids
        self._logprobs += logprobs


def asking() -> dict[str, str]:
    """The header that asks the plug-in."""
    return {ASK_HEADER: "1"}
