"""Which version a backend should serve: a fold of `policy.updates` and `policy.routes`, in log order.

The first claim of an epoch wins, and a claimed epoch shuts out lower ones: what a superseded learner still publishes is ignored, what it
had published before stays. A route that names a version of the policy pins it; without one the newest update is desired. Versions that a
backend could not load are passed over.
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
        self._pins: dict[str, list[tuple[float, Version]]] = {}

    def take(self, event: Event | None) -> bool:
        """Whether the event could change the answer."""
        if isinstance(event, PolicyUpdate) and event.policy == self.policy:
            return self._take_update(event)
        if isinstance(event, PolicyRoute):
            self._pins[event.alias] = self._pins_of(event)
            return True
        return False

    def version(self, passed_over: Collection[Version] = ()) -> Version:
        """The base model, if nothing else is left."""
        usable = sorted(version for version in (base_version(self.policy), *self.updates) if version not in passed_over)
        pinned = self._pinned()
        if pinned in usable:
            return pinned
        return usable[-1] if usable else base_version(self.policy)

    def _take_update(self, event: PolicyUpdate) -> bool:
        if event.kind is UpdateKind.claim and event.epoch > self._epoch:
            self._epoch, self._learner = event.epoch, event.learner_id
        elif event.kind is UpdateKind.update and (event.epoch, event.learner_id) == (self._epoch, self._learner):
            # The first of two with one version stands: updates are immutable.
            self.updates.setdefault(Version(self.policy, event.epoch, event.step), event)
            return True
        return False

    def _pins_of(self, route: PolicyRoute) -> list[tuple[float, Version]]:
        pins: list[tuple[float, Version]] = []
        for target in route.targets:
            # A slip of an operator's pen must not stop the serving: what is no version pins nothing.
            with contextlib.suppress(MalformedVersion):
                if target.policy == self.policy and target.version is not None:
                    pins.append((target.weight, parse_version(target.version)))
        return pins

    def _pinned(self) -> Version | None:
        """The named version with the greatest share of an alias's traffic; the newest of equals."""
        pins = [pin for pins in self._pins.values() for pin in pins]
        return max(pins)[1] if pins else None
