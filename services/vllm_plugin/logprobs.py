"""Makes vLLM's log-probabilities cheap where only their numbers are wanted (vLLM 0.32).

vLLM sends them between its processes as three NumPy arrays a token, each encoded and decoded by
Python. Then it decodes the token once more, and makes a dictionary and an object of it. On a fast
model that is a third of a server's tokens a second, whoever asks. Here they cross as plain lists
(`patch`), and a request that gets its tokens packed keeps nothing but the numbers (`Numbers`).

Other requests see what vLLM makes of the same numbers, which is also what tests compare these with.
`FULGURITE_VLLM_FAST_LOGPROBS=false` leaves vLLM as it is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

LOWEST = -9999.0
"""The lowest log-probability, as in vLLM's own replies: JSON has no infinity."""
SETTING = "FULGURITE_VLLM_FAST_LOGPROBS"
_OFF = frozenset({"0", "false", "f", "no", "n", "off"})
"""What pydantic, which checks the setting elsewhere, takes for false."""


def is_on() -> bool:
    """Whether vLLM is to be changed."""
    return os.environ.get(SETTING, "").lower() not in _OFF


class Numbers:
    """The sampled tokens of one request, and their log-probabilities."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []

    def add(self, lists: Any) -> None:
        """Add `LogprobsLists`, in which the sampled token is the first of each position."""
        for token_ids, logprobs in zip(lists.logprob_token_ids, lists.logprobs, strict=True):
            self._token_ids.append(token_ids[0])
            self._logprobs.append(logprobs[0])

    def packed(self, token_ids: Sequence[int], start: int) -> bytes:
        """Log-probabilities of these tokens, the first of which has the number `start`, as
        `pack_logprobs` packs them; none unless all are known.
        """
        end = start + len(token_ids)
        if self._token_ids[start:end] != token_ids:
            return b""
        # For a token at a time this takes a quarter of NumPy's time.
        logprobs = [max(logprob, LOWEST) for logprob in self._logprobs[start:end]]
        return struct.pack(f"<{len(logprobs)}f", *logprobs)


def numbers_only(processor: Any) -> Numbers:
    """Make a request's `LogprobsProcessor` hand its numbers over instead of explaining them."""
    numbers = Numbers()
    processor._update_sample_logprobs = numbers.add
    return numbers


def patch(lists: Any, tensors: Any, processor: Any) -> None:
    """Make `LogprobsLists` consist of lists, in all processes alike. Idempotent."""
    if getattr(tensors.tolists, "patched", False):
        return
    # msgspec encodes and decodes by these, without calling Python.
    lists.__annotations__.update(
        logprob_token_ids=list[list[int]],
        logprobs=list[list[float]],
        sampled_token_ranks=list[int],
    )
    to_arrays, explain = tensors.tolists, processor._update_sample_logprobs

    def to_lists(self: Any, *args: Any, **kwargs: Any) -> Any:
        token_ids, logprobs, ranks, *rest = to_arrays(self, *args, **kwargs)
        return lists(token_ids.tolist(), logprobs.tolist(), ranks.tolist(), *rest)

    def explain_lists(self: Any, numbers: Any) -> None:
        token_ids, logprobs, ranks, *rest = numbers
        explain(self, lists(*map(np.asarray, (token_ids, logprobs, ranks)), *rest))

    to_lists.patched = True  # pyright: ignore[reportFunctionMemberAccess]
    tensors.tolists = to_lists
    processor._update_sample_logprobs = explain_lists
