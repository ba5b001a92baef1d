"""Bodies are bounded before anything is built of them."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.untrusted_json import is_deeper
from services.gateway import request_body
from services.gateway.errors import InvalidRequest
from services.gateway.request_body import MAX_DEPTH, decode_body, has_more_values

JSON = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(alphabet='ab,[]{}"\\ü', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='a,["\\', max_size=3), inner, max_size=4)
    ),
    max_leaves=40,
)


def inside(value: Any) -> list[list[Any]]:
    """What an array or object holds; empty for anything else."""
    if isinstance(value, dict):
        return [list(cast("dict[str, Any]", value).values())]
    return [cast("list[Any]", value)] if isinstance(value, list) else []


def marks(value: Any) -> int:
    """Arrays, objects and commas, counted on what was built."""
    return sum(max(1, len(inner)) + sum(map(marks, inner)) for inner in inside(value))


def depth(value: Any) -> int:
    return max((1 + max(map(depth, inner), default=0) for inner in inside(value)), default=0)


@given(JSON, st.booleans(), st.integers(1, 7))
async def test_values_are_counted_as_if_they_had_been_built(
    value: Any, ascii_only: bool, piece: int
) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    count = marks(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_body, "_PIECE", piece)
        assert not await has_more_values(raw, count)
        assert count == 0 or await has_more_values(raw, count - 1)


@given(st.binary(max_size=200), st.integers(0, 20))
async def test_any_bytes_can_be_counted(raw: bytes, limit: int) -> None:
    await has_more_values(raw, limit)


@given(JSON)
def test_depth_is_that_of_the_value(value: Any) -> None:
    deep = depth(value)
    assert not is_deeper(value, deep)
    assert deep == 0 or is_deeper(value, deep - 1)


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_nesting_has_an_end(opened: str) -> None:
    closed = "]" if opened == "[" else "}"
    fits = (opened * MAX_DEPTH + "0" + closed * MAX_DEPTH).encode()
    assert decode_body(fits, "x") is not None
    for deep in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            decode_body((opened * deep + "0" + closed * deep).encode(), "x")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a":"\xff"}', "not valid UTF-8"),
        (b'{"\xed\xa0\xbc":1}', "not valid UTF-8"),
        ('{"a":1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a":"\\ud83c"}', "half a character"),
        (b'{"a":"\\udf0d\\ud83c"}', "half a character"),
        (b'{"a":NaN}', "numbers are finite"),
        (b"[1, -Infinity]", "numbers are finite"),
        (b'{"a":1e400}', "not valid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_what_is_no_json_is_refused_in_words(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        decode_body(raw, "`model`")
