"""Tokens beside a stream: read all at once, they are what was sent of each, or none."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.tokens import pack_ids, pack_logprobs
from services.gateway.dialects.packed import PackedTokens
from tests.services.gateway.dialects.samples import tokens

_ONE_EACH, _SOME_EACH = (st.lists(st.integers(1, most), min_size=1, max_size=9) for most in (1, 3))
_ID, _LOGPROB = st.integers(0, 2**31 - 1), st.floats(-20, 0, width=32)


def read(*comments: bytes) -> tuple[bytes | None, bytes | None, bytes | None]:
    packed = PackedTokens()
    assert all(packed.add_comment(comment) for comment in comments)
    return packed.read()


@given(st.lists(_ID, max_size=4), _ONE_EACH | _SOME_EACH, st.data())
def test_what_was_sent(prompt: list[int], sizes: list[int], data: st.DataObject) -> None:
    ids = [data.draw(st.lists(_ID, min_size=size, max_size=size)) for size in sizes]
    logprobs = [data.draw(st.lists(_LOGPROB, min_size=size, max_size=size)) for size in sizes]
    comments = [
        tokens([] if number else prompt, *new)
        for number, new in enumerate(zip(ids, logprobs, strict=True))
    ]
    every_id, every_logprob = pack_ids(list(chain(*ids))), pack_logprobs(list(chain(*logprobs)))
    assert read(*comments) == (pack_ids(prompt) or None, every_id, every_logprob)


_GOOD = tokens([], [7], [-0.5])


@pytest.mark.parametrize(
    "odd",
    [
        _GOOD.replace(b"tokens 0", b"tokens 1"),
        _GOOD.replace(b"==", b"!!", 1),
        _GOOD.replace(b"BwAAAA==", b"Bw==AA=="),
        _GOOD.replace(b"BwAAAA==", b"==AAAA=="),
        _GOOD.replace(b"BwAAAA==", b"BwA AA=="),
        _GOOD.replace(b"BwAAAA== ", b"BwA AA==B"),
        _GOOD.replace(b"BwAAAA==", b"BwAAA\xe9=="),
        _GOOD.replace(b"BwAAAA==", b"Bw\nAAA=="),
        _GOOD[:-1],
    ],
)
def test_one_that_is_wrong_leaves_none(odd: bytes) -> None:
    assert read(_GOOD, _GOOD, _GOOD) == (None, pack_ids([7, 7, 7]), pack_logprobs([-0.5] * 3))
    assert read(_GOOD, odd, _GOOD) == (None, None, None)
