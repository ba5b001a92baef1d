"""Compressed request bodies: gzip, deflate and zstd, inflated outside the event loop, up to the
body's limit.

No more memory is allocated than the limit, however small the compressed body was: inflating stops
with the first byte over it.
"""

from __future__ import annotations

import asyncio
import zlib

import cramjam

from services.gateway.errors import InvalidRequest, UnsupportedEncoding

ACCEPTED = ("gzip", "deflate", "zstd")

_GZIP = zlib.MAX_WBITS | 16
_SAME = {"x-gzip": "gzip"}
_ZSTD_FULL = "whole buffer"
"""Part of cramjam's error message for an output that is too small; it has no type of its own."""


class TooLong(Exception):
    """The inflated body is over the limit."""


async def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """The body as it was before `Content-Encoding`. Raises UnsupportedEncoding, InvalidRequest for
    damaged data, TooLong.
    """
    name = encoding.strip().lower()
    name = _SAME.get(name, name)
    if name in ("", "identity"):
        return body
    if name not in ACCEPTED:
        raise UnsupportedEncoding(encoding, ACCEPTED)
    inflated = await asyncio.to_thread(_zstd if name == "zstd" else _zlib, body, name, limit)
    if inflated is None:
        raise InvalidRequest(
            f"The body is not valid {name}, though its Content-Encoding says so: it is "
            "damaged, cut or followed by more."
        )
    return inflated


def _zlib(body: bytes, name: str, limit: int) -> bytes | None:
    reader = zlib.decompressobj(_GZIP if name == "gzip" else _deflate_window(body))
    try:
        inflated = reader.decompress(body, limit + 1)
    except zlib.error:
        return None
    if len(inflated) > limit:
        raise TooLong
    return inflated if reader.eof and not reader.unused_data else None


def _deflate_window(body: bytes) -> int:
    """HTTP's deflate has zlib's two bytes in front; some clients leave them out."""
    framed = (
        len(body) > 1
        and body[0] & 0x0F == zlib.DEFLATED
        and int.from_bytes(body[:2], "big") % 31 == 0
    )
    return zlib.MAX_WBITS if framed else -zlib.MAX_WBITS


def _zstd(body: bytes, name: str, limit: int) -> bytes | None:
    # Pages that are never written use no memory.
    room = bytearray(limit)
    try:
        size = cramjam.zstd.decompress_into(body, room)
    except cramjam.DecompressionError as error:
        if _ZSTD_FULL in str(error):
            raise TooLong from error
        return None
    return bytes(memoryview(room)[:size])
