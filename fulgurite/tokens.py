"""Token ids and log-probabilities as packed bytes: little-endian int32 and float32.

Packed arrays decode some forty times faster than Avro arrays, and are the engine's own numbers, never retokenised.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]


def pack_ids(token_ids: Sequence[int] | IntArray) -> bytes:
    """Token ids → 4 bytes each. Raises OverflowError for what does not fit."""
    if isinstance(token_ids, list):
        # A list as it came from JSON: half the time that numpy takes to look at what is in it.
        with suppress(struct.error):
            return struct.pack(f"<{len(token_ids)}i", *token_ids)
    return np.asarray(token_ids, dtype="<i4").tobytes()


def unpack_ids(packed: bytes) -> IntArray:
    """The inverse of `pack_ids`: a read-only array of shape (T,). Raises ValueError if a token is cut."""
    return np.frombuffer(packed, dtype="<i4")


def pack_logprobs(logprobs: Sequence[float] | FloatArray) -> bytes:
    """Log-probabilities (nats) → 4 bytes each."""
    return np.asarray(logprobs, dtype="<f4").tobytes()


def unpack_logprobs(packed: bytes) -> FloatArray:
    """The inverse of `pack_logprobs`: a read-only array of shape (T,)."""
    return np.frombuffer(packed, dtype="<f4")


def token_count(packed: bytes) -> int:
    """Number of tokens or log-probabilities in a packed array."""
    return len(packed) // 4


def prompt_hash(packed: bytes) -> str:
    """Hex SHA-256 of a full prompt's packed ids."""
    return hashlib.sha256(packed).hexdigest()
