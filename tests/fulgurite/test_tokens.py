"""Packed arrays: little-endian, exact, and cut tokens are noticed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.tokens import (
    any_negative,
    pack_ids,
    pack_logprobs,
    prompt_hash,
    token_count,
    unpack_ids,
    unpack_logprobs,
)

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)


@given(st.lists(INT32))
def test_ids_survive(token_ids: list[int]) -> None:
    packed = pack_ids(token_ids)
    assert unpack_ids(packed).tolist() == token_ids
    assert token_count(packed) == len(token_ids)
    assert pack_ids(unpack_ids(packed)) == packed


@given(st.lists(st.floats(width=32)))
def test_logprobs_survive_bit_for_bit(logprobs: list[float]) -> None:
    packed = pack_logprobs(logprobs)
    assert unpack_logprobs(packed).tobytes() == np.asarray(logprobs, dtype="<f4").tobytes()
    assert token_count(packed) == len(logprobs)


@given(st.lists(INT32))
def test_a_negative_id_is_noticed(token_ids: list[int]) -> None:
    assert any_negative(pack_ids(token_ids)) == any(one < 0 for one in token_ids)


def test_bytes_are_little_endian() -> None:
    assert pack_ids([1, 256]) == b"\x01\x00\x00\x00\x00\x01\x00\x00"
    assert pack_logprobs([-1.0]) == b"\x00\x00\x80\xbf"


def test_a_cut_token_is_noticed() -> None:
    with pytest.raises(ValueError, match="multiple of element size"):
        unpack_ids(b"\x01\x00\x00")
    with pytest.raises(ValueError, match="multiple of element size"):
        unpack_logprobs(b"\x01")


def test_what_does_not_fit_32_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        pack_ids([1 << 31])


def test_unpacked_arrays_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        unpack_ids(pack_ids([1]))[0] = 2


def test_the_prompt_hash_is_that_of_the_bytes() -> None:
    assert prompt_hash(pack_ids([1, 2])) == hashlib.sha256(pack_ids([1, 2])).hexdigest()
