"""A call on its way into the log: a delta of its parent where that is worth it; text beyond the claim check's limit is left elsewhere."""

from __future__ import annotations

import asyncio

import msgspec

from fulgurite.claims import leave, payload_of
from fulgurite.events import LlmCall
from services import logs
from services.claims import open_store
from services.gateway.metrics import Metrics
from services.gateway.parents import Parents
from services.gateway.problems import Unavailable
from services.gateway.settings import GatewaySettings
from services.kafka import Delivery

log = logs.get(__name__)


class Packed(msgspec.Struct, frozen=True):
    """A call as the log gets it."""

    event: LlmCall
    whole: LlmCall
    """What the event is a delta of, or the event itself."""
    depth: int
    """Links to the whole call that its chain begins with."""


class Packer:
    """Knows the calls that others may extend, and where large payloads go."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._parents = Parents(settings.delta_memory_bytes) if settings.delta_logging else None
        self._claims = open_store(settings.claims_url, settings.data_dir)
        self._limit = settings.claim_check_bytes
        self._metrics = metrics

    async def pack(self, call: LlmCall) -> Packed:
        """Raises Unavailable when a large payload cannot be left anywhere."""
        packed = self._shorten(call)
        size = weight(packed.event)
        if size > self._limit:
            packed = self._shorten(await self._leave(call))
            size = weight(packed.event)
        if packed.event is not packed.whole:
            self._metrics.delta_saved_bytes.inc(weight(packed.whole) - size)
        return packed

    def acknowledged(self, packed: Packed, delivery: Delivery) -> None:
        """Others may extend the call from now on."""
        if self._parents is not None:
            self._parents.remember(packed.whole, delivery, packed.depth)

    def _shorten(self, call: LlmCall) -> Packed:
        if self._parents is None:
            return Packed(call, call, 0)
        delta, depth = self._parents.shorten(call)
        return Packed(delta, call, depth)

    async def _leave(self, call: LlmCall) -> LlmCall:
        payload = payload_of(call)
        try:
            claim = await asyncio.to_thread(self._claims.put, payload)
        except OSError as error:
            log.error("a large call cannot be left in the claims store", call_id=call.call_id, bytes=len(payload), error=str(error))
            raise Unavailable(
                f"The call is too large for a message ({len(payload):,} bytes), and the claims store cannot be written."
            ) from error
        self._metrics.claim_checks.inc()
        self._metrics.claim_bytes.inc(len(payload))
        return leave(call, claim)


def weight(call: LlmCall) -> int:
    """What a call takes in the log, near enough: its tokens in bytes, its text in characters."""
    size = len(call.request or "") + len(call.response or "") + len(call.prompt_token_ids or b"")
    for choice in call.choices:
        size += len(choice.message or "") + 2 * len(choice.token_ids or b"")
    return size
