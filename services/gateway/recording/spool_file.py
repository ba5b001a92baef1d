"""The format of the spool's files: eight bytes of magic, then frames of length, CRC-32 and payload,
appended and synced.

What was synced is read back in order. A frame that a crash left incomplete (a torn tail) ends the
file; no frame before it is lost.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from services.common.runtime.disk import sync_to_disk

MAGIC = b"FGSPOOL\x01"
"""The last byte is the format's version."""

_HEAD = struct.Struct("<II")


def frame(payload: bytes) -> bytes:
    """A payload as it is stored. It must not be empty: zeros, which a file may end with, would look
    the same.
    """
    if not payload:
        raise ValueError("a frame holds at least one byte")
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def framed_size(payload: bytes) -> int:
    """Size of its frame in bytes."""
    return _HEAD.size + len(payload)


def frames(data: bytes, start: int = 0) -> tuple[list[bytes], int]:
    """The complete payloads from `start` on, and where the first incomplete one begins."""
    found: list[bytes] = []
    while len(data) - start >= _HEAD.size:
        length, check = _HEAD.unpack_from(data, start)
        payload = data[start + _HEAD.size : start + _HEAD.size + length]
        if not payload or len(payload) < length or zlib.crc32(payload) != check:
            break
        found.append(payload)
        start += _HEAD.size + length
    return found, start


class Segment:
    """One file: how much of it is valid, and how much of that has been read."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        """Bytes that are synced; 0: there is no file yet."""
        self.read = len(MAGIC)
        self.keep = False
        """Whether to keep the file after it was read: a part of it could not be read."""

    @classmethod
    def recover(cls, path: Path) -> tuple[Segment, list[bytes]]:
        """A file of an earlier process, and its payloads."""
        data = path.read_bytes()
        is_spool = data.startswith(MAGIC)
        payloads, end = frames(data, len(MAGIC)) if is_spool else ([], 0)
        segment = cls(path, end)
        segment.keep = end < len(data)
        return segment, payloads

    def append(self, data: bytes) -> None:
        """Write frames and wait for the disk. Blocking. After an OSError some of them may be in the
        file.
        """
        new = self.size == 0
        data = MAGIC + data if new else data
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_to_disk(self.path.parent)
        self.size += len(data)

    def read_next(self, most: int) -> list[bytes]:
        """The next payloads within `most` bytes, at least one; empty at the end. Blocking."""
        if self.read >= self.size:
            return []
        with self.path.open("rb") as file:
            file.seek(self.read)
            data = file.read(min(most, self.size - self.read))
            payloads, end = frames(data)
            if not payloads:
                data += file.read(self.size - self.read - len(data))
                payloads, end = frames(data)
        self.read += end
        return payloads

    def remove(self) -> None:
        """Remove the file; one that could not be read to its end is renamed instead."""
        if self.keep:
            self.path.rename(self.path.with_suffix(".torn"))
        else:
            self.path.unlink(missing_ok=True)
