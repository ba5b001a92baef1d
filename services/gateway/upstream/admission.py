"""Back-pressure: how many calls are in flight to a backend, and how many a key may have. For one
event loop.

A call holds a place at a backend for the length of the upstream's answer. One key holds no more
than its share, so that others need not wait for its calls to end. Calls without a place wait, and
keys take turns. A call that waits too long, or finds the queue full, gets `Overloaded` (503); a key
over its own limits gets `RateLimited` (429). Both have `Retry-After`, after which OpenAI's and
Anthropic's clients try again. A call that is cancelled leaves the queue.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from services.gateway.errors import Overloaded, RateLimited
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry.metrics import Metrics
from services.gateway.upstream.fair_queue import FairQueue

_MINUTE_S = 60.0
_HOUR_S = 3600.0
_KEYS_KEPT = 10_000


class Ticket:
    """A call that waits for a place."""

    __slots__ = ("_future", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self._future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def wait(self, timeout_s: float) -> bool:
        """Whether it got a place; False when it was put out of the queue. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await self._future

    def resolve(self, place: bool) -> bool:
        """Give the waiting call a place or none; returns False if it no longer waits."""
        if self._future.done():
            return False
        self._future.set_result(place)
        return True

    def has_place(self) -> bool:
        """Whether a place was given to it."""
        return self._future.done() and not self._future.cancelled() and self._future.result()


class Gate:
    """The places of one backend."""

    def __init__(
        self, backend: str, places: int, queue_limit: int, timeout_s: float, key_share: float = 1.0
    ) -> None:
        self.in_flight = 0
        self._held: dict[str, int] = {}
        """Places by key."""
        self._most = max(1, int(places * key_share))
        self._backend = backend
        self._places = places
        self._timeout_s = timeout_s
        self._queue: FairQueue[Ticket] = FairQueue(queue_limit)

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._queue)

    async def enter(self, key: str) -> None:
        """Take a place, which `leave` gives back. Raises Overloaded."""
        # While a place is free, only keys wait that hold their share already: this one overtakes
        # none of them.
        if self.in_flight < self._places and self._may_have(key):
            self.in_flight += 1
            self._hold(key)
        else:
            await self._wait(key)

    async def _wait(self, key: str) -> None:
        ticket = Ticket(key)
        out = self._queue.put(key, ticket)
        if out is ticket:
            raise _full(self._backend)
        if out is not None:
            out.resolve(False)
        try:
            if not await ticket.wait(self._timeout_s):
                raise _full(self._backend)
        except BaseException as error:
            self._queue.leave(key, ticket)
            if ticket.has_place():
                self.leave(key)
            if isinstance(error, TimeoutError):
                raise _too_long(self._backend, self._timeout_s) from error
            raise

    def leave(self, key: str) -> None:
        """Give the key's place to the next who is still there."""
        held = self._held.pop(key) - 1
        if held:
            self._held[key] = held
        while (ticket := self._queue.pop(self._may_have)) is not None:
            if ticket.resolve(True):
                self._hold(ticket.key)
                return
        self.in_flight -= 1

    def _hold(self, key: str) -> None:
        self._held[key] = self._held.get(key, 0) + 1

    def _may_have(self, key: str) -> bool:
        """Whether its share allows one place more."""
        return self._held.get(key, 0) < self._most


class Allowance:
    """An amount per period for each key: a token bucket. It refills evenly, so a key that was quiet
    may spend all of it at once.
    """

    def __init__(
        self,
        amount: int,
        period_s: float,
        refusal: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """An amount of 0 is no limit. `refusal` is the error's text for a key that has spent it."""
        self._amount = amount
        self._rate = amount / period_s
        self._refusal = refusal
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def spend(self, key: str, cost: int = 1) -> None:
        """Spend this much of the key's amount; all of it where one cost is larger. Raises
        RateLimited.
        """
        if not self._amount:
            return
        now, cost = self._clock(), min(cost, self._amount)
        left, at = self._buckets.get(key, (float(self._amount), now))
        left = min(float(self._amount), left + (now - at) * self._rate)
        if left < cost:
            raise RateLimited(self._refusal, (cost - left) / self._rate)
        if len(self._buckets) >= _KEYS_KEPT and key not in self._buckets:
            self._forget(now)
        self._buckets[key] = (left - cost, now)

    def _forget(self, now: float) -> None:
        """Full buckets need no memory."""
        self._buckets = {
            k: (left, at)
            for k, (left, at) in self._buckets.items()
            if left + (now - at) * self._rate < self._amount
        }


class KeyLimits:
    """How many calls one key may have at once, and in a minute."""

    def __init__(
        self,
        concurrency: int,
        per_minute: int,
        clock: Callable[[], float] = time.monotonic,
        setting: str = "FULGURITE_KEY_CALLS_PER_MINUTE",
    ) -> None:
        """`setting` is the name of the setting that `per_minute` comes from."""
        self._concurrency = concurrency
        self._running: dict[str, int] = {}
        refusal = (
            f"This key has done this {per_minute} times within a minute, which is its limit "
            f"({setting}). Try again later."
        )
        self.spend = Allowance(per_minute, _MINUTE_S, refusal, clock).spend
        """Count one more of this minute. Raises RateLimited."""

    @contextmanager
    def hold(self, key: str) -> Generator[None]:
        """Count one call of the key, for as long as it lasts. Raises RateLimited."""
        running = self._running.get(key, 0)
        if self._concurrency and running >= self._concurrency:
            raise RateLimited(
                f"This key has {running} calls in flight, which is its limit "
                "(FULGURITE_KEY_CONCURRENCY). Try again when one has ended.",
                _soon(),
            )
        self.spend(key)
        self._running[key] = running + 1
        try:
            yield
        finally:
            left = self._running[key] - 1
            if left:
                self._running[key] = left
            else:
                del self._running[key]


class Admission:
    """The gates of all backends, and the limits of all keys."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._gates: dict[str, Gate] = {}
        self._limits = KeyLimits(settings.key_concurrency, settings.key_calls_per_minute)
        large = settings.key_large_bytes_per_hour
        self._large = Allowance(
            large,
            _HOUR_S,
            f"This key has sent {large:,} bytes of large requests within an hour, which is its "
            "limit (FULGURITE_KEY_LARGE_BYTES_PER_HOUR). Try again later.",
        )
        self.limited = bool(settings.key_concurrency or settings.key_calls_per_minute)
        """Whether keys have limits at all."""
        self.patience_s = settings.queue_timeout_s
        """Seconds that a call may wait for anything but its answer."""

    @contextmanager
    def key(self, key: str) -> Generator[None]:
        """One call of a key, from its admission to its end. Raises RateLimited."""
        with self._limits.hold(key):
            yield

    def size(self, key: str, size: int) -> None:
        """Count a request whose text will lie in the claims store. Raises RateLimited."""
        if size > self._settings.claim_check_bytes:
            self._large.spend(key, size)

    def gate(self, backend: str) -> Gate:
        """The gate of a backend."""
        known = self._gates.get(backend)
        if known is not None:
            return known
        s = self._settings
        gate = self._gates[backend] = Gate(
            backend, s.backend_concurrency, s.queue_limit, s.queue_timeout_s, s.key_share
        )
        self._metrics.watch_gate(backend, lambda: gate.in_flight, lambda: gate.waiting)
        return gate


def _soon() -> float:
    """Random, so that calls that were refused together do not come back together."""
    return random.uniform(0.5, 1.5)


def _full(backend: str) -> Overloaded:
    return Overloaded(
        f"Too many calls wait for the model server {backend!r} (FULGURITE_QUEUE_LIMIT). Nothing "
        "was generated; try again shortly.",
        _soon(),
    )


def _too_long(backend: str, timeout_s: float) -> Overloaded:
    return Overloaded(
        f"The model server {backend!r} had no place for this call within {timeout_s:g} s "
        "(FULGURITE_QUEUE_TIMEOUT_S). Nothing was generated; try again shortly.",
        _soon(),
    )
