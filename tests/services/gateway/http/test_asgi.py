"""Reading a body: within its limits, inflated, without a byte order mark."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from services.gateway.errors import (
    BodyTooLarge,
    ClientGone,
    InvalidRequest,
    RequestTimeout,
    UnsupportedEncoding,
)
from services.gateway.http import asgi
from services.gateway.http.error_responses import error_headers
from services.gateway.request_body import BodyLimits

LIMIT = 100_000
BOUNDS = BodyLimits(LIMIT, "FULGURITE_MAX_BODY_BYTES", 1000, 5.0)


def deflate_raw(data: bytes) -> bytes:
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return squeeze.compress(data) + squeeze.flush()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZIP", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without its head": ("deflate", deflate_raw),
    "zstd": ("zstd", lambda data: bytes(cramjam.zstd.compress(data))),
    "identity": ("identity", bytes),
}


async def read(*pieces: bytes, limits: BodyLimits = BOUNDS, **headers: str) -> bytes:
    waiting: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": at < len(pieces) - 1}
        for at, piece in enumerate(pieces)
    ]

    async def receive() -> Message:
        return waiting.pop(0)

    return await asgi.read_body(
        {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()},
        receive,
        limits,
    )


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("body", [b"", b"{}", b"x" * LIMIT])
async def test_compressed_bodies_are_read_up_to_the_limit_once_inflated(
    coding: str, body: bytes
) -> None:
    name, squeeze = CODINGS[coding]
    assert await read(squeeze(body), content_encoding=name) == body
    with pytest.raises(BodyTooLarge, match="FULGURITE_MAX_BODY_BYTES"):
        await read(squeeze(b"x" * (LIMIT + 1)), content_encoding=name)


@pytest.mark.parametrize("coding", [name for name in CODINGS if name != "identity"])
async def test_what_a_few_bytes_stand_for_is_never_built(coding: str) -> None:
    name, squeeze = CODINGS[coding]
    bomb = squeeze(bytes(40 * LIMIT))
    assert len(bomb) < LIMIT
    with pytest.raises(BodyTooLarge):
        await read(bomb, content_encoding=name)


@pytest.mark.parametrize("coding", [name for name in CODINGS if name != "identity"])
async def test_what_is_damaged_cut_or_followed_by_more_is_refused(coding: str) -> None:
    name, squeeze = CODINGS[coding]
    whole = squeeze(b"hello")
    for damaged in (b"garbage", whole[:-3], whole + b"zz", b""):
        with pytest.raises(InvalidRequest, match="not valid"):
            await read(damaged, content_encoding=name)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress", "ü" * 3, "x" * 5000])
async def test_other_encodings_are_refused_with_the_list(encoding: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="gzip, deflate, zstd") as caught:
        await read(b"{}", content_encoding=encoding)
    assert caught.value.status == 415
    assert error_headers(caught.value) == {"accept-encoding": "gzip, deflate, zstd"}
    assert len(caught.value.message) < 500


@given(st.binary(max_size=100), st.sampled_from(sorted(CODINGS)))
async def test_any_bytes_under_any_encoding_are_read_or_refused(raw: bytes, coding: str) -> None:
    name, squeeze = CODINGS[coding]
    assert await read(squeeze(raw), content_encoding=name) == raw.removeprefix(b"\xef\xbb\xbf")
    with suppress(InvalidRequest):
        await read(raw, content_encoding=name)


async def test_a_byte_order_mark_is_left_out() -> None:
    assert await read(b"\xef\xbb\xbf{}") == b"{}"
    assert await read(gzip.compress(b"\xef\xbb\xbf{}"), content_encoding="gzip") == b"{}"


@pytest.mark.parametrize("length", ["0" * 5000 + "5", "5"])
async def test_a_length_may_have_any_number_of_digits(length: str) -> None:
    assert await read(b"12345", content_length=length) == b"12345"


@pytest.mark.parametrize("length", [str(LIMIT + 1), "9" * 5000])
async def test_a_length_over_the_limit_is_refused_before_anything_is_read(length: str) -> None:
    with pytest.raises(BodyTooLarge):
        await read(content_length=length)


async def test_pieces_without_a_length_are_bounded_together() -> None:
    assert await read(b"a" * LIMIT, b"") == b"a" * LIMIT
    with pytest.raises(BodyTooLarge):
        await read(b"a" * LIMIT, b"a", b"never read")


async def test_more_values_than_are_taken_are_refused_unbuilt() -> None:
    assert await read(b"[" + b"[]," * 499 + b"0]")
    with pytest.raises(BodyTooLarge, match="FULGURITE_MAX_BODY_VALUES"):
        await read(b"[" + b"[]," * 501 + b"0]")
    assert await read(b'["' + b"[]," * 1000 + b'"]')


async def test_a_body_that_takes_too_long_is_refused() -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"", "more_body": True}

    with pytest.raises(RequestTimeout, match="FULGURITE_REQUEST_TIMEOUT_S") as caught:
        await asgi.read_body({}, receive, BOUNDS._replace(timeout_s=0.01))
    assert (caught.value.status, error_headers(caught.value)) == (408, {"connection": "close"})


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", True),
        (b"00-aa-bb-01", False),
        (b"x" * 60_000, False),
        (b"\xff", False),
        (b"", False),
    ],
)
def test_only_a_trace_context_is_handed_on(value: bytes, kept: bool) -> None:
    assert asgi.traceparent({b"traceparent": value}) == (value.decode() if kept else None)
    assert asgi.traceparent({}) is None


async def test_a_client_that_goes_is_gone() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await asgi.read_body({}, receive, BOUNDS)
