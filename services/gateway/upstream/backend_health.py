"""Which backends to avoid for a while because they could not be reached. Pure: the caller passes
the time.

It is a circuit breaker for each backend. A failure opens it for a second, each further failure for
twice as long, up to half a minute. Then one call at a time may try the backend (half-open); a
success closes it. When all are open, all are tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from services.gateway.upstream.route import Route

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class Trouble(msgspec.Struct):
    """A backend that failed."""

    pause_s: float
    until: float
    tried: bool = False
    """Whether a call has been let through since the last failure."""


class BackendHealth:
    """Circuit breakers of one gateway's backends."""

    def __init__(self) -> None:
        self._troubles: dict[str, Trouble] = {}

    def order(self, routes: Sequence[Route], now: float) -> Sequence[Route]:
        """The routes in order, with those to open backends last. A backend whose pause is over
        keeps its place for this caller alone.
        """
        if not self._troubles:
            return routes
        good: list[Route] = []
        shut: list[Route] = []
        for route in routes:
            # Only the first choice is sure to be tried, so only there is the one trial given away.
            (good if self._open(route.backend, now, trial=not good) else shut).append(route)
        return [*good, *shut]

    def failed(self, backend: str, now: float) -> None:
        """It could not be reached."""
        trouble = self._troubles.get(backend)
        if trouble is None:
            self._troubles[backend] = Trouble(FIRST_PAUSE_S, now + FIRST_PAUSE_S)
        elif trouble.tried:
            # Of many calls that fail together only a trial lengthens the pause.
            trouble.pause_s = min(2 * trouble.pause_s, LONGEST_PAUSE_S)
            trouble.until, trouble.tried = now + trouble.pause_s, False

    def answered(self, backend: str) -> None:
        """It accepted a call."""
        if self._troubles:
            self._troubles.pop(backend, None)

    def _open(self, backend: str, now: float, *, trial: bool) -> bool:
        trouble = self._troubles.get(backend)
        if trouble is None:
            return True
        if not trial or now < trouble.until:
            return False
        trouble.until, trouble.tried = now + trouble.pause_s, True
        return True
