"""Where claim checks lie: `file://` folders that the gateway and all who read its calls share, files named by their SHA-256.

A payload is on the disk, under its name, before its claim check is given out. Files are never changed; none is removed here.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

import msgspec

from fulgurite.claims import digest, redeem
from fulgurite.errors import BadClaim
from fulgurite.events import ClaimCheck, Episode, LlmCall


class ClaimStore:
    """The claims of one data folder."""

    def __init__(self, data: Path) -> None:
        self._folder = data.resolve() / "claims"

    def put(self, payload: bytes) -> ClaimCheck:
        """Leave a payload; blocks for the disk. Raises OSError."""
        name = digest(payload)
        path = self._folder / name[:2] / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, payload)
        return ClaimCheck(uri=path.as_uri(), sha256=name, size=len(payload))


def fetch(claim: ClaimCheck) -> bytes:
    """What was left there, unproved; blocks for the disk. Raises BadClaim."""
    location = urlparse(claim.uri)
    if location.scheme != "file":
        raise BadClaim(f"{claim.uri}: only file:// claims can be read, from a folder that is shared with the gateway")
    try:
        return Path(unquote(location.path)).read_bytes()
    except OSError as error:
        raise BadClaim(f"{claim.uri} cannot be read: {error.strerror}") from error


def redeemed(call: LlmCall) -> LlmCall:
    """The call with what it left elsewhere, proved to be that. Raises BadClaim."""
    return call if call.claim_check is None else redeem(call, fetch(call.claim_check))


def redeemed_episode(episode: Episode) -> Episode:
    """The episode with what its calls left elsewhere. Raises BadClaim."""
    return msgspec.structs.replace(episode, calls=tuple(redeemed(call) for call in episode.calls))


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
