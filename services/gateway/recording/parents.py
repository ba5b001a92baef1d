"""The calls that the next call of a rollout may extend: recent ones, acknowledged by Kafka, kept by
this replica up to a limit in bytes.

A call whose parent this replica does not know is stored in full. That is correct but larger;
routing by rollout makes it rare.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from fulgurite.calls.deltas import Link, link_of, shorten
from fulgurite.enums import CallOutcome, Identity
from fulgurite.events import LlmCall
from services.common.kafka.delivery import Delivery

_OF_ONE = 4
"""Links kept for one attempt: this many agents may take turns in it, and each finds its own."""

_FRESH_S = 8 * 3600
"""Age after which a link is no parent. A complete chain must fit the month that `llm.calls` is
kept, or its end outlives its beginning.
"""


class Parents:
    """Links by attempt; the least recently used attempt goes first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._links: OrderedDict[tuple[str, int], list[tuple[float, Link]]] = OrderedDict()

    def shorten(self, call: LlmCall) -> tuple[LlmCall, int]:
        """The call as it is recorded, and its depth in its chain."""
        known = self._links.get((call.rollout_id, call.attempt))
        if not known:
            return call, 0
        since = time.monotonic() - _FRESH_S
        return shorten(call, [link for at, link in known if at > since])

    def remember(self, call: LlmCall, delivery: Delivery, depth: int) -> None:
        """Note that the complete call lies there now, so that others may extend it."""
        if call.outcome is not CallOutcome.success or call.identity is Identity.none:
            return
        key = (call.rollout_id, call.attempt)
        links = self._links.setdefault(key, [])
        link = link_of(call, delivery.partition, delivery.offset, depth)
        links.append((time.monotonic(), link))
        self._bytes += _size(link)
        if len(links) > _OF_ONE:
            self._bytes -= _size(links.pop(0)[1])
        self._links.move_to_end(key)
        while self._bytes > self._max_bytes:
            _, gone = self._links.popitem(last=False)
            self._bytes -= sum(_size(link) for _, link in gone)


def _size(link: Link) -> int:
    return len(link.tokens) + len(link.request)
