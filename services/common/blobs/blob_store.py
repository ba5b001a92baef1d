"""Where claim checks lie: a store that the gateway and all who read its calls share, payloads named
by their SHA-256.

The store is a folder (`file://`) or a bucket (`s3://` and whatever else
`services.common.blobs.buckets` knows). A payload is there, whole and under its name, before its
claim check is given out. It is never changed; who leaves it again makes it young, and `fulgurite
claims prune` takes only what is old.

A claim check may have been written by anybody who can write to Kafka, so it is not trusted to name
a place. What is read is a regular file that is named by the claim's SHA-256, in a folder named by
its first two digits, or the same in a bucket that the settings name; and only if it has the size
that the claim tells.
"""

from __future__ import annotations

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

_SHOWN = 500
"""Characters of a claim's address in an error."""

_LONG = 4096
"""Characters of a JSON string that nobody reads in a terminal."""


class Left(msgspec.Struct, frozen=True):
    """A payload in a store."""

    name: str
    """Its SHA-256."""
    uri: str
    size: int
    modified_s: float
    """When it was last left there: seconds since 1970."""


class Place(Protocol):
    """What a store is made of. All of it blocks, and raises OSError."""

    def put(self, name: str, payload: bytes) -> str:
        """Leave a payload, or make the one that is there young again; returns its URI."""
        ...

    def found(self) -> Iterator[Left]:
        """All that is there."""
        ...

    def remove(self, left: Left) -> bool:
        """Take a payload away, unless it was left there again since it was found; whether it is
        gone.
        """
        ...


class ClaimStore:
    """The claims of one deployment."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.found, self.remove = place.found, place.remove

    def put(self, payload: bytes) -> ClaimCheck:
        """Leave a payload. Raises OSError."""
        name = digest(payload)
        return ClaimCheck(uri=self._place.put(name, payload), sha256=name, size=len(payload))


class Folder:
    """A folder, of this machine or shared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def put(self, name: str, payload: bytes) -> str:
        """See `Place`: synced to the disk."""
        path = self._folder / name[:2] / name
        try:
            os.utime(path)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, payload)
        return path.as_uri()

    def found(self) -> Iterator[Left]:
        """See `Place`."""
        for path in sorted(self._folder.glob("[0-9a-f][0-9a-f]/*")):
            if path.name.startswith(path.parent.name):
                found = path.stat()
                yield Left(path.name, path.as_uri(), found.st_size, found.st_mtime)

    def remove(self, left: Left) -> bool:
        """See `Place`."""
        path = self._folder / left.name[:2] / left.name
        if path.stat().st_mtime > left.modified_s:
            return False
        path.unlink()
        return True


def open_store(url: str, data: Path) -> ClaimStore:
    """The store at a URL; without one, the folder `claims` of the data folder. Raises
    ValueError.
    """
    location = urlparse(url)
    if not url or location.scheme == "file":
        return ClaimStore(Folder(Path(unquote(location.path)) if url else data / "claims"))
    from services.common.blobs.buckets import Bucket

    return ClaimStore(Bucket(url))


def fetch(claim: ClaimCheck) -> bytes:
    """What was left there, of the size told, and but for that unproved; blocks. Raises BadClaim."""
    try:
        location = urlparse(claim.uri)
        if not re.fullmatch(r"[0-9a-f]{64}", claim.sha256) or not location.path.endswith(
            f"/{claim.sha256[:2]}/{claim.sha256}"
        ):
            raise BadClaim(
                f"{claim.uri[:_SHOWN]} is no place of a claim: one ends with its SHA-256"
            )
        if location.scheme == "file":
            return _read_file(unquote(location.path), claim)
        if not claim.uri.startswith(ClaimSettings().buckets()):
            raise BadClaim(
                f"{claim.uri[:_SHOWN]} is in no bucket of FULGURITE_CLAIMS_URL or "
                "FULGURITE_CLAIMS_FORMER_URLS"
            )
        from services.common.blobs.buckets import read

        return read(claim.uri, claim.size)
    except (OSError, ValueError) as error:
        raise BadClaim(
            f"{claim.uri[:_SHOWN]} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _read_file(path: str, claim: ClaimCheck) -> bytes:
    """Never waits, as a pipe would have it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != claim.size:
            raise BadClaim(
                f"{claim.uri[:_SHOWN]} is not what was left there: no file of {claim.size:,} bytes"
            )
        return file.read(claim.size)


def redeemed(call: LlmCall, known: dict[str, bytes] | None = None) -> LlmCall:
    """The call with what it left elsewhere, proved to be that; `known` payloads are not read again.
    Raises BadClaim.
    """
    known = {} if known is None else known
    for claim in claims_of(call):
        if claim.sha256 not in known:
            known[claim.sha256] = fetch(claim)
    whole = call if call.claim_check is None else redeem(call, known[call.claim_check.sha256])
    return put_back_pieces(whole, known)


def readable(call: LlmCall) -> LlmCall:
    """The call for people: its text, with placeholders for what is long. Raises BadClaim."""
    return call if call.claim_check is None else extract_pieces(redeemed(call), _LONG)[0]


def redeemed_episode(episode: Episode) -> Episode:
    """The episode with what its calls left elsewhere. Raises BadClaim."""
    known: dict[str, bytes] = {}
    return msgspec.structs.replace(
        episode, calls=tuple(redeemed(call, known) for call in episode.calls)
    )


def _write_whole(path: Path, data: bytes) -> None:
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
        _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
