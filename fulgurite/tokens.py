"""Packs token ids and log-probabilities as bytes: little-endian int32 and float32.

Packed arrays decode some forty times faster than Avro arrays. They are the engine's own numbers;
nothing is tokenised again.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


def pack_ids(token_ids: Sequence[int] | IntArray) -> bytes:
    """Pack token ids, 4 bytes each. Raises OverflowError for an id that does not fit."""
    # For a list this takes half the time of numpy, for one of a token or two a quarter.
    packed = _pack_list(token_ids) if isinstance(token_ids, list) else None
    return np.asarray(token_ids, dtype="<i4").tobytes() if packed is None else packed


def _pack_list(token_ids: list[int]) -> bytes | None:
    """None for what is no list of integers that fit; numpy takes more, or says what is wrong."""
    try:
        return struct.pack(f"<{len(token_ids)}i", *token_ids)
    except struct.error:
        return None


def unpack_ids(packed: bytes) -> IntArray:
    """Unpack token ids into a read-only array (T,). Raises ValueError for an incomplete token."""
    return np.frombuffer(packed, dtype="<i4")


def pack_logprobs(logprobs: Sequence[float] | FloatArray) -> bytes:
    """Pack log-probabilities (nats), 4 bytes each."""
    return np.asarray(logprobs, dtype="<f4").tobytes()


def unpack_logprobs(packed: bytes) -> FloatArray:
    """Unpack log-probabilities into a read-only array (T,)."""
    return np.frombuffer(packed, dtype="<f4")


def all_finite(packed: bytes) -> bool:
    """Whether all packed log-probabilities are finite."""
    # The last byte of infinity and NaN is 7F or FF. Few other numbers have it, so only then are
    # all numbers checked.
    last = packed[3::4]
    return (b"\x7f" not in last and b"\xff" not in last) or bool(
        np.isfinite(unpack_logprobs(packed)).all()
    )


def any_negative(packed: bytes) -> bool:
    """Whether a packed token id is negative, which no tokenizer produces."""
    # The sign is the highest bit of a number's last byte.
    return not packed[3::4].isascii()


def token_count(packed: bytes) -> int:
    """Number of tokens or log-probabilities in a packed array."""
    return len(packed) // 4


def prompt_hash(packed: bytes) -> str:
    """Hex SHA-256 of a full prompt's packed ids."""
    return hashlib.sha256(packed).hexdigest()


class PromptHashes:
    """Computes `prompt_hash` of prompts that extend one another, without hashing a prefix twice.

    Otherwise a conversation would cost the square of its length. It remembers `most` prompts.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._states: OrderedDict[Hashable, Any] = OrderedDict()

    def of(self, name: Hashable, prompt: bytes, parent: Hashable, before: bytes) -> str:
        """Hash a prompt that begins with `before`, which is the complete prompt named `parent`."""
        state = self._states.get(parent)
        if state is None:
            state = self._remember(parent, hashlib.sha256(before))
        state = self._remember(name, state.copy())
        state.update(memoryview(prompt)[len(before) :])
        return str(state.hexdigest())

    def _remember(self, name: Hashable, state: Any) -> Any:
        self._states[name] = state
        if len(self._states) > self._most:
            self._states.popitem(last=False)
        return state
