"""Make a call small before it is recorded: a delta of its parent where that saves space, and text
beyond the claim check's limit outside Kafka.

Long texts are stored one by one, so that turns that repeat an image store it once and stay deltas.
If that does not make the call small enough, all its text is stored as one payload.
"""

from __future__ import annotations

import asyncio

import msgspec

from fulgurite.calls.claim_checks import extract_pieces, leave, payload_of
from fulgurite.events import ClaimCheck, LlmCall
from services.common.blobs.blob_store import open_store
from services.common.kafka.delivery import Delivery
from services.common.runtime import logs
from services.gateway.errors import Unavailable
from services.gateway.recording.parents import Parents
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry.metrics import Metrics

log = logs.get(__name__)


_LEAST_PIECE = 4096
"""Characters of the shortest text that is stored outside: a claim takes some 250 bytes of the
event.
"""

_CLAIM_BYTES = 80
"""Bytes of a claim beside its address."""

_MOST_PIECES = 512
"""Payloads of one call. Each is a file to sync, or a request to a bucket."""


class Compacted(msgspec.Struct, frozen=True):
    """A call as it is recorded."""

    event: LlmCall
    original: LlmCall
    """What the event is a delta of, or the event itself."""
    depth: int
    """Deltas between this event and the complete call that its chain begins with."""


class Compactor:
    """Knows the calls that others may extend, and where large payloads go."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._parents = Parents(settings.delta_memory_bytes) if settings.delta_logging else None
        self._claims = open_store(settings.claims_url, settings.data_dir)
        self._limit = settings.claim_check_bytes
        self._metrics = metrics

    async def compact(self, call: LlmCall) -> Compacted:
        """Compact a call. Raises Unavailable when a large payload cannot be stored."""
        compacted = self._shorten(call)
        size = weight(compacted.event)
        if size > self._limit:
            compacted = await self._by_pieces(call) or self._shorten(await self._leave(call))
            size = weight(compacted.event)
        if compacted.event is not compacted.original:
            self._metrics.delta_saved_bytes.inc(weight(compacted.original) - size)
        return compacted

    def acknowledged(self, compacted: Compacted, delivery: Delivery) -> None:
        """Note that the call is in the log: others may extend it from now on."""
        if self._parents is not None:
            self._parents.remember(compacted.original, delivery, compacted.depth)

    def _shorten(self, call: LlmCall) -> Compacted:
        if self._parents is None:
            return Compacted(call, call, 0)
        delta, depth = self._parents.shorten(call)
        return Compacted(delta, call, depth)

    async def _by_pieces(self, call: LlmCall) -> Compacted | None:
        """The call without its long texts, or without many more if that is not enough; None if it
        is still too large, or there are too many texts.
        """
        for least in (max(self._limit // 16, _LEAST_PIECE), _LEAST_PIECE):
            light, payloads = await asyncio.to_thread(extract_pieces, call, least)
            compacted = self._shorten(light)
            if (
                payloads
                and len(payloads) <= _MOST_PIECES
                and weight(compacted.event) <= self._limit
            ):
                claims = await self._put(call, list(payloads.values()))
                event = msgspec.structs.replace(compacted.event, pieces=claims)
                original = (
                    event
                    if compacted.event is compacted.original
                    else msgspec.structs.replace(compacted.original, pieces=claims)
                )
                return Compacted(event, original, compacted.depth)
        return None

    async def _leave(self, call: LlmCall) -> LlmCall:
        (claim,) = await self._put(call, [payload_of(call)])
        return leave(call, claim)

    async def _put(self, call: LlmCall, payloads: list[bytes]) -> tuple[ClaimCheck, ...]:
        size = sum(map(len, payloads))
        try:
            claims = await asyncio.to_thread(lambda: tuple(map(self._claims.put, payloads)))
        except OSError as error:
            log.error(
                "a large call cannot be written to the claims store",
                call_id=call.call_id,
                bytes=size,
                error=str(error),
            )
            raise Unavailable(
                f"The call is too large for a message ({size:,} bytes), and the claims store "
                "(FULGURITE_CLAIMS_URL) cannot be written. Try again shortly."
            ) from error
        self._metrics.claim_checks.inc()
        self._metrics.claim_bytes.inc(size)
        return claims


def weight(call: LlmCall) -> int:
    """Approximate size of a call in the log: its tokens in bytes, its text in characters."""
    size = sum(_CLAIM_BYTES + len(claim.uri) for claim in call.pieces)
    size += len(call.request or "") + len(call.response or "") + len(call.prompt_token_ids or b"")
    for choice in call.choices:
        size += len(choice.message or "") + 2 * len(choice.token_ids or b"")
    return size
