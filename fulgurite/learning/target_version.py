"""Decides which version a backend should serve.

The answer is a fold of `policy.updates` and `policy.routes`, in log order. Which updates count is
`policy_epochs`'s to say.

A route that names a version of the policy pins it; without one the newest update is the target.
Where a route splits an alias between versions, a backend with one set of weights takes the greatest
share, a canary the next; one with adapters takes all of them. Versions that a backend could not
load are passed over: of the newest the next older one takes the place; in place of a pinned one a
backend keeps what it serves, and never loads a newer version than was asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence

from fulgurite.events import Event, PolicyRoute, PolicyUpdate
from fulgurite.learning.policy_epochs import PolicyEpochs
from fulgurite.versions import MalformedVersion, Version, base_version, parse_version


class TargetVersion:
    """The fold for one policy. Feed it every event of both topics."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.updates: dict[Version, PolicyUpdate] = {}
        self._epochs = PolicyEpochs()
        self._shares: dict[str, list[tuple[float, Version | None]]] = {}

    def apply(self, event: Event | None) -> bool:
        """Whether the event could change the answer."""
        if isinstance(event, PolicyUpdate) and event.policy == self.policy:
            return self._apply_update(event)
        if isinstance(event, PolicyRoute):
            self._shares[event.alias] = self._shares_of(event)
            return True
        return False

    def version(
        self,
        passed_over: Collection[Version] = (),
        *,
        kept: Version | None = None,
        canary: bool = False,
    ) -> Version:
        """For a backend with one set of weights. The base model, if nothing else is left. `kept`:
        what the backend serves.
        """
        usable = self._usable(passed_over)
        main = self._nearest(self.pinned(), usable, kept)
        return self._second(main, self._nearest(None, usable, kept), usable) if canary else main

    def versions(self, passed_over: Collection[Version] = ()) -> list[Version]:
        """For a backend with adapters, which serves several at once: the newest, and all that
        routes name. The base model is none.
        """
        usable = [
            version for version in self._usable(passed_over) if version != base_version(self.policy)
        ]
        return sorted(self.named().intersection(usable).union(usable[-1:]), reverse=True)

    def named(self) -> set[Version]:
        """Every version that a route names, known or not."""
        return {
            version
            for shares in self._shares.values()
            for _, version in shares
            if version is not None
        }

    def pinned(self) -> Version | None:
        """The version that routes ask a backend with one set of weights for; None: the newest. The
        greatest share of an alias decides, of equals the version that is named; between aliases a
        named version comes before the newest.
        """
        first = [
            max(shares, key=_weight_then_version)
            for shares in self._shares.values()
            if any(weight > 0 for weight, _ in shares)
        ]
        pins = [(weight, version) for weight, version in first if version is not None]
        return max(pins)[1] if pins else None

    def is_known(self, version: Version) -> bool:
        """Whether it is the base model or was published."""
        return version == base_version(self.policy) or version in self.updates

    def _usable(self, passed_over: Collection[Version]) -> list[Version]:
        return sorted(
            version
            for version in (base_version(self.policy), *self.updates)
            if version not in passed_over
        )

    def _apply_update(self, event: PolicyUpdate) -> bool:
        if not self._epochs.apply(event):
            return False
        # The first of two with one version stands: updates are immutable.
        self.updates.setdefault(Version(self.policy, event.epoch, event.step), event)
        return True

    def _shares_of(self, route: PolicyRoute) -> list[tuple[float, Version | None]]:
        shares: list[tuple[float, Version | None]] = []
        for target in route.targets:
            # A slip of an operator's pen must not stop the serving: what is no version pins
            # nothing.
            with contextlib.suppress(MalformedVersion):
                if target.policy == self.policy:
                    shares.append(
                        (
                            target.weight,
                            None if target.version is None else parse_version(target.version),
                        )
                    )
        return shares

    def _nearest(
        self, pinned: Version | None, usable: Sequence[Version], kept: Version | None
    ) -> Version:
        if pinned is None:
            return max(usable, default=base_version(self.policy))
        if pinned in usable:
            return pinned
        if kept is not None and kept in usable:
            return kept
        return max(
            (version for version in usable if version < pinned), default=base_version(self.policy)
        )

    def _second(self, main: Version, newest: Version, usable: Collection[Version]) -> Version:
        """The version with the greatest share of an alias that is split, other than `main`."""
        split = [shares for shares in self._shares.values() if len(shares) > 1]
        shares = [
            (weight, version or newest)
            for shares in split
            for weight, version in shares
            if weight > 0
        ]
        others = [
            (weight, version) for weight, version in shares if version != main and version in usable
        ]
        return max(others)[1] if others else main


def _weight_then_version(
    share: tuple[float, Version | None],
) -> tuple[float, bool, tuple[int, int]]:
    weight, version = share
    return weight, version is not None, (0, 0) if version is None else (version.epoch, version.step)
