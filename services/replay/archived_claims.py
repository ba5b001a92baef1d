"""Copies payloads stored outside Kafka into an archive's folder `claims`, and finds them there."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fulgurite.avro.codec import Codec
from fulgurite.calls.claim_checks import claims_of, digest
from fulgurite.errors import BadClaim, CodecError
from fulgurite.events import ClaimCheck, Episode, LlmCall
from services.common.blobs.blob_store import ClaimStore, Folder, fetch
from services.replay.pruning import names_in


class ArchivedClaims:
    """The payloads of one archive."""

    def __init__(self, folder: Path) -> None:
        self._folder = (folder / "claims").resolve()
        self._store = ClaimStore(Folder(self._folder))

    def copy(self, value: bytes, codec: Codec) -> tuple[int, list[str]]:
        """Copy the payloads that a record names and the archive lacks. Raises OSError.

        Returns how many were copied, and errors of those that could not be.
        """
        copied, lost = 0, list[str]()
        for claim in _claims(value, codec) if names_in(value) else ():
            if self._path(claim).exists():
                continue
            try:
                payload = fetch(claim)
                if digest(payload) != claim.sha256:
                    raise BadClaim(f"{claim.uri} is damaged: its SHA-256 is not {claim.sha256}")
            except BadClaim as error:
                lost.append(str(error))
                continue
            self._store.put(payload)
            copied += 1
        return copied, lost

    def at_hand(self, call: LlmCall) -> LlmCall:
        """Return the call with claim checks of the archive's own copies, where it has them."""
        if not claims_of(call):
            return call
        whole = None if call.claim_check is None else self._own(call.claim_check)
        return msgspec.structs.replace(
            call, claim_check=whole, pieces=tuple(map(self._own, call.pieces))
        )

    def _own(self, claim: ClaimCheck) -> ClaimCheck:
        path = self._path(claim)
        return msgspec.structs.replace(claim, uri=path.as_uri()) if path.exists() else claim

    def _path(self, claim: ClaimCheck) -> Path:
        return self._folder / claim.sha256[:2] / claim.sha256


def _claims(value: bytes, codec: Codec) -> list[ClaimCheck]:
    try:
        event = codec.decode(value)
    except CodecError:
        return []
    calls = (
        event.calls
        if isinstance(event, Episode)
        else (event,)
        if isinstance(event, LlmCall)
        else ()
    )
    return [claim for call in calls for claim in claims_of(call)]
