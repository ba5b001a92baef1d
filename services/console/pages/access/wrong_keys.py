"""Counts wrong keys by the address that they come from, so that keys cannot be tried one by one.

It is kept in memory, for a bounded number of addresses: a restart forgets it.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MOST = 10
"""Wrong keys that an address may enter within `WINDOW_S`."""
WINDOW_S = 600.0

_ADDRESSES = 10_000
"""Addresses that are remembered; those whose last wrong key is the oldest go first."""
_IPV6_BITS = 64
"""Of an IPv6 address: the network that one client commonly has to itself."""


class WrongKeys:
    """Wrong keys of the last minutes. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until an address may try another key; 0: it may now."""
        times = self._times.get(client_of(address))
        if times is None or len(times) < MOST:
            return 0.0
        return max(0.0, times[0] + WINDOW_S - self._clock())

    def add(self, address: str) -> None:
        """Count a wrong key."""
        client = client_of(address)
        self._times.setdefault(client, deque(maxlen=MOST)).append(self._clock())
        self._times.move_to_end(client)
        if len(self._times) > _ADDRESSES:
            self._times.popitem(last=False)

    def forget(self, address: str) -> None:
        """Begin anew for an address that knows a key."""
        self._times.pop(client_of(address), None)


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed.packed, _IPV6_BITS), strict=False))
