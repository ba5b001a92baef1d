"""Stores the payloads of claim checks under their SHA-256, in a folder or a bucket.

The gateway and all readers of calls share the store: a folder (`file://`) or a bucket (`s3://` and
the others of `services.common.blobs.buckets`). A payload is stored completely before its claim
check is given out, and never changes. Storing it again makes it young; `fulgurite claims prune`
deletes only old payloads.

Anybody who can write to Kafka may have written a claim check, so its place is not trusted. Only
regular files are read that are named by the claim's SHA-256, in a folder named by its first two
digits, or such objects in a bucket that the settings name; and only with the claim's size.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlparse

import msgspec

from fulgurite.calls.claim_checks import claims_of, digest, extract_pieces, put_back_pieces, redeem
from fulgurite.errors import BadClaim
from fulgurite.events import ClaimCheck, Episode, LlmCall
from services.common.blobs.settings import ClaimSettings
from services.common.runtime.disk import sync_to_disk

_SHOWN = 500
"""Longest part of a claim's URI in an error, in characters."""

_LONG = 4096
"""JSON strings of this many characters or more are not shown to people."""


_NOT_THERE = frozenset(
    {
        errno.ENOENT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENXIO,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EACCES,
        errno.EPERM,
    }
)
"""Errors that say of a payload's place that it has none, or must not be read. Others say that the
store is away.
"""


class StoredPayload(msgspec.Struct, frozen=True):
    """A payload in a store."""

    name: str
    """Its SHA-256 in hex."""
    uri: str
    size: int
    modified_s: float
    """When it was last stored, in Unix seconds."""


class Place(Protocol):
    """A folder or bucket. All methods block and may raise OSError."""

    def put(self, name: str, payload: bytes) -> str:
        """Store a payload, or make the stored one young again; returns its URI."""
        ...

    def found(self) -> Iterator[StoredPayload]:
        """Yield all stored payloads."""
        ...

    def remove(self, left: StoredPayload) -> bool:
        """Delete a payload unless it was stored again since; returns whether it did."""
        ...


class ClaimStore:
    """The payload store of one deployment."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.found, self.remove = place.found, place.remove

    def put(self, payload: bytes) -> ClaimCheck:
        """Store a payload and return its claim check. Raises OSError."""
        name = digest(payload)
        return ClaimCheck(uri=self._place.put(name, payload), sha256=name, size=len(payload))


class Folder:
    """A local or shared folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def put(self, name: str, payload: bytes) -> str:
        """See `Place`. Waits until the payload is on the disk."""
        path = self._folder / name[:2] / name
        try:
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_complete(path, payload)
        return path.as_uri()

    def found(self) -> Iterator[StoredPayload]:
        """See `Place`."""
        for path in sorted(self._folder.glob("[0-9a-f][0-9a-f]/*")):
            if path.name.startswith(path.parent.name):
                found = path.stat()
                yield StoredPayload(path.name, path.as_uri(), found.st_size, found.st_mtime)

    def remove(self, left: StoredPayload) -> bool:
        """See `Place`."""
        path = self._folder / left.name[:2] / left.name
        if path.stat().st_mtime > left.modified_s:
            return False
        path.unlink()
        return True


def open_store(url: str, data: Path) -> ClaimStore:
    """Open the store at a URL; without one, the folder `claims` in the data folder.

    Raises ValueError.
    """
    location = urlparse(url)
    if not url or location.scheme == "file":
        return ClaimStore(Folder(Path(unquote(location.path)) if url else data / "claims"))
    from services.common.blobs.buckets import Bucket

    return ClaimStore(Bucket(url))


def fetch(claim: ClaimCheck) -> bytes:
    """Read a payload; blocks. Checks its size, but not its digest. Raises BadClaim; OSError if the
    store does not answer.
    """
    try:
        location = urlparse(claim.uri)
        if not re.fullmatch(r"[0-9a-f]{64}", claim.sha256) or not location.path.endswith(
            f"/{claim.sha256[:2]}/{claim.sha256}"
        ):
            raise BadClaim(
                f"{claim.uri[:_SHOWN]} is not the URI of a payload: it must end with its SHA-256"
            )
        if location.scheme == "file":
            return _read_file(unquote(location.path), claim)
        if not claim.uri.startswith(ClaimSettings().buckets()):
            raise BadClaim(
                f"{claim.uri[:_SHOWN]} is not in a known bucket: add its bucket to "
                "FULGURITE_CLAIMS_FORMER_URLS"
            )
        from services.common.blobs.buckets import read

        return read(claim.uri, claim.size)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _NOT_THERE:
            raise
        raise BadClaim(
            f"{claim.uri[:_SHOWN]} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _read_file(path: str, claim: ClaimCheck) -> bytes:
    """Read a regular file, without waiting as for a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != claim.size:
            raise BadClaim(
                f"{claim.uri[:_SHOWN]} is not what was stored there: not a file of {claim.size:,} "
                "bytes"
            )
        return file.read(claim.size)


def redeemed(call: LlmCall, known: dict[str, bytes] | None = None) -> LlmCall:
    """Restore a call with its payloads, and check their digests. Raises BadClaim, OSError.

    `known`: payloads by digest, which are not read again; new ones are added.
    """
    known = {} if known is None else known
    for claim in claims_of(call):
        if claim.sha256 not in known:
            known[claim.sha256] = fetch(claim)
    restored = call if call.claim_check is None else redeem(call, known[call.claim_check.sha256])
    return put_back_pieces(restored, known)


def readable(call: LlmCall) -> LlmCall:
    """Return a call with its text for people; long strings are placeholders. Raises BadClaim,
    OSError.
    """
    return call if call.claim_check is None else extract_pieces(redeemed(call), _LONG)[0]


def redeemed_episode(episode: Episode) -> Episode:
    """Restore an episode with the payloads of its calls. Raises BadClaim, OSError."""
    known: dict[str, bytes] = {}
    return msgspec.structs.replace(
        episode, calls=tuple(redeemed(call, known) for call in episode.calls)
    )


def _write_complete(path: Path, data: bytes) -> None:
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        Path(part).rename(path)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise
    for folder in (path.parent, path.parent.parent):
        sync_to_disk(folder)
