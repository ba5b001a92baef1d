"""Which version a backend should serve: a fold of `policy.updates` and `policy.routes`, in log order.

The first claim of an epoch wins, and a claimed epoch shuts out lower ones: what a superseded learner still publishes is ignored, what it
had published before stays. A route that names a version of the policy pins it; without one the newest update is desired. Where a route
splits an alias between versions, a backend with one set of weights takes the greatest share, a canary the next; one with adapters takes
all of them. Versions that a backend could not load are passed over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from fulgurite.events import Event, PolicyRoute, PolicyUpdate
from fulgurite.kinds import UpdateKind
from fulgurite.versions import MalformedVersion, Version, base_version, parse_version


class DesiredVersion:
    """The fold for one policy. Feed it every event of both topics."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.updates: dict[Version, PolicyUpdate] = {}
        self._epoch = -1
        self._learner: str | None = None
        self._shares: dict[str, list[tuple[float, Version | None]]] = {}

    def take(self, event: Event | None) -> bool:
        """Whether the event could change the answer."""
        if isinstance(event, PolicyUpdate) and event.policy == self.policy:
            return self._take_update(event)
        if isinstance(event, PolicyRoute):
            self._shares[event.alias] = self._shares_of(event)
            return True
        return False

    def version(self, passed_over: Collection[Version] = (), *, canary: bool = False) -> Version:
        """For a backend with one set of weights. The base model, if nothing else is left."""
        usable = self._usable(passed_over)
        newest = usable[-1] if usable else base_version(self.policy)
        pinned = self._pinned()
        main = pinned if pinned in usable else newest
        return self._second(main, newest, usable) if canary else main

    def versions(self, passed_over: Collection[Version] = ()) -> list[Version]:
        """For a backend with adapters, which serves several at once: the newest, and all that routes name. The base model is none."""
        usable = [version for version in self._usable(passed_over) if version != base_version(self.policy)]
        named = {version for shares in self._shares.values() for _, version in shares if version in usable}
        return sorted(named.union(usable[-1:]), reverse=True)

    def _usable(self, passed_over: Collection[Version]) -> list[Version]:
        return sorted(version for version in (base_version(self.policy), *self.updates) if version not in passed_over)

    def _take_update(self, event: PolicyUpdate) -> bool:
        if event.kind is UpdateKind.claim and event.epoch > self._epoch:
            self._epoch, self._learner = event.epoch, event.learner_id
        elif event.kind is UpdateKind.update and (event.epoch, event.learner_id) == (self._epoch, self._learner):
            # The first of two with one version stands: updates are immutable.
            self.updates.setdefault(Version(self.policy, event.epoch, event.step), event)
            return True
        return False

    def _shares_of(self, route: PolicyRoute) -> list[tuple[float, Version | None]]:
        shares: list[tuple[float, Version | None]] = []
        for target in route.targets:
            # A slip of an operator's pen must not stop the serving: what is no version pins nothing.
            with contextlib.suppress(MalformedVersion):
                if target.policy == self.policy:
                    shares.append((target.weight, None if target.version is None else parse_version(target.version)))
        return shares

    def _pinned(self) -> Version | None:
        """The named version with the greatest share of an alias's traffic; the newest of equals."""
        pins = [(weight, version) for shares in self._shares.values() for weight, version in shares if version is not None]
        return max(pins)[1] if pins else None

    def _second(self, main: Version, newest: Version, usable: Collection[Version]) -> Version:
        """The version with the greatest share of an alias that is split, other than `main`."""
        split = [shares for shares in self._shares.values() if len(shares) > 1]
        shares = [(weight, version or newest) for shares in split for weight, version in shares if weight > 0]
        others = [(weight, version) for weight, version in shares if version != main and version in usable]
        return max(others)[1] if others else main
