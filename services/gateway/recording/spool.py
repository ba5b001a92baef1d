"""Payloads kept on this machine's disk, in order, until they are dropped: files in a folder that
only this process may use.

`append` queues a payload, and its future ends once the payload is synced. Payloads that are
appended while the disk syncs share the next sync. They are read back in order, those of an earlier
process first. Beyond `max_bytes` they are refused. The durability is that of one disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from services.common.runtime import logs
from services.gateway.recording.spool_file import Segment, frame, framed_size

log = logs.get(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

SEGMENT_BYTES = 16 * 1024 * 1024
"""Bytes of a file, which is removed once all of it was dropped. Larger files would mean more to
send again after a crash; smaller ones, too many files.
"""

_READ_BYTES = 1024 * 1024
_RETRY_S = 5.0


class SpoolError(Exception):
    """The spool cannot be used, or does not take a payload."""


class SpoolInUse(SpoolError):
    """Another process has this folder."""


class SpoolFull(SpoolError):
    """No room for another payload until some are dropped."""


class Spool:
    """The payloads of one folder. Belongs to one event loop."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Lock the folder and read what is in it. Raises SpoolInUse, OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = _lock(folder)
        self._segments: deque[Segment] = deque()
        self._active: Segment | None = None
        self._queue: list[tuple[bytes, asyncio.Future[None]]] = []
        self._front: deque[bytes] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._broken: tuple[float, str] | None = None
        self.depth = 0
        """Payloads that are neither dropped nor failed."""
        self.bytes = 0
        """Their bytes on disk."""
        self._number = 1 + max(
            (int(path.stem) for path in folder.iterdir() if path.stem.isdigit()), default=0
        )
        for path in sorted(folder.glob("*.spool")):
            self._recover(path)

    @property
    def full(self) -> bool:
        """Whether no new call should begin: an eighth of the space is for calls under way."""
        return self.bytes > self._max_bytes - self._max_bytes // 8

    @property
    def broken(self) -> str | None:
        """The disk's error when it last refused a payload; None when it takes them, or is worth
        another try.
        """
        return (
            self._broken[1]
            if self._broken is not None and time.monotonic() - self._broken[0] < _RETRY_S
            else None
        )

    def append(self, payload: bytes) -> asyncio.Future[None]:
        """Queue a payload; the future ends when it is on the disk, or with SpoolError. Raises
        SpoolFull.
        """
        framed = frame(payload)
        if self.bytes + len(framed) > self._max_bytes:
            raise SpoolFull(
                f"the spool {self._folder} is full ({self.bytes:,} of {self._max_bytes:,} bytes)"
            )
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((framed, stored))
        self.depth += 1
        self.bytes += len(framed)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return stored

    async def front(self) -> deque[bytes]:
        """The oldest payloads on the disk, not all of them; empty if there are none yet."""
        while not self._front and self._segments:
            segment = self._segments[0]
            self._front.extend(await self._in_thread(segment.read_next, _READ_BYTES))
            if not self._front:
                if segment is self._active:
                    break
                self._segments.popleft().remove()
        return self._front

    def drop(self, count: int, *, unreadable: bool = False) -> None:
        """Forget the oldest `count` payloads of `front`. With `unreadable`, their file is renamed
        and not removed.
        """
        for _ in range(count):
            self.bytes -= framed_size(self._front.popleft())
        self.depth -= count
        if self._segments and unreadable:
            self._segments[0].keep = True
        if self.depth == 0:
            while self._segments:
                self._segments.popleft().remove()
            self._active = None

    async def close(self) -> None:
        """Wait for the disk, and unlock the folder."""
        if self._writing is not None:
            await self._writing
        self._disk.shutdown()
        os.close(self._lock)

    async def _write(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            try:
                await self._in_thread(
                    self._segment().append, b"".join(framed for framed, _ in batch)
                )
            except OSError as error:
                self._failed(batch, error)
            else:
                self._broken = None
                for _, stored in batch:
                    if not stored.done():
                        stored.set_result(None)
        self._writing = None

    def _failed(self, batch: list[tuple[bytes, asyncio.Future[None]]], error: OSError) -> None:
        """Fail the batch: some of it may be in the file, so the file is not written to again."""
        log.error("the spool's disk refuses writes", folder=str(self._folder), error=str(error))
        problem = f"the spool {self._folder} cannot be written: {error.strerror}"
        self._broken = time.monotonic(), problem
        if self._active is not None and self._active.size == 0:
            self._segments.remove(self._active)
        self._active = None
        for framed, stored in batch:
            self.depth -= 1
            self.bytes -= len(framed)
            if not stored.done():
                stored.set_exception(SpoolError(problem))

    def _segment(self) -> Segment:
        if self._active is None or self._active.size >= SEGMENT_BYTES:
            self._active = Segment(self._folder / f"{self._number:012}.spool")
            self._number += 1
            self._segments.append(self._active)
        return self._active

    def _recover(self, path: Path) -> None:
        segment, payloads = Segment.recover(path)
        if segment.keep:
            log.warning(
                "the end of a spool file is incomplete: its process died while writing it",
                file=str(path),
            )
        self.depth += len(payloads)
        self.bytes += sum(framed_size(payload) for payload in payloads)
        if payloads:
            self._segments.append(segment)
        else:
            segment.remove()

    async def _in_thread(self, work: Callable[_P, _T], *args: _P.args, **named: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(
            self._disk, partial(work, *args, **named)
        )


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise SpoolInUse(
            f"{folder} is the spool of another gateway that runs: give each replica a "
            "FULGURITE_SPOOL_DIR of its own"
        ) from error
    return descriptor
