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
    """The target version of one policy. Apply every event of both topics in log order."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.updates: dict[Version, PolicyUpdate] = {}
        self._epochs = PolicyEpochs()
        self._shares: dict[str, list[tuple[float, Version | None]]] = {}

    def apply(self, event: Event | None) -> bool:
        """Apply an event; returns whether the target may have changed."""
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
        """The version for a backend with one set of weights; at least the base model.

        `passed_over`: versions that it cannot load. `kept`: the version that it serves. `canary`:
        choose the second greatest share of a split route.
        """
        usable = self._usable(passed_over)
        main = self._nearest(self.pinned(), usable, kept)
        return self._second(main, self._nearest(None, usable, kept), usable) if canary else main

    def versions(self, passed_over: Collection[Version] = ()) -> list[Version]:
        """The versions for a backend with adapters: the newest, and all that routes name.

        The base model is not an adapter.
        """
        usable = [
            version for version in self._usable(passed_over) if version != base_version(self.policy)
        ]
        return sorted(self.named().intersection(usable).union(usable[-1:]), reverse=True)

    def named(self) -> set[Version]:
        """All versions that routes name, published or not."""
        return {
            version
            for shares in self._shares.values()
            for _, version in shares
            if version is not None
        }

    def pinned(self) -> Version | None:
        """The version that routes pin for a backend with one set of weights; None: the newest.

        The greatest share of an alias decides; of equal shares, a named version. Between aliases, a
        named version wins over the newest.
        """
        first = [
            max(shares, key=_weight_then_version)
            for shares in self._shares.values()
            if any(weight > 0 for weight, _ in shares)
        ]
        pins = [(weight, version) for weight, version in first if version is not None]
        return max(pins)[1] if pins else None

    def is_known(self, version: Version) -> bool:
        """Whether the version is the base model or was published."""
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
        # Updates are immutable: of two with the same version the first one counts.
        self.updates.setdefault(Version(self.policy, event.epoch, event.step), event)
        return True

    def _shares_of(self, route: PolicyRoute) -> list[tuple[float, Version | None]]:
        shares: list[tuple[float, Version | None]] = []
        for target in route.targets:
            # An operator's typing error must not stop serving: a malformed version pins nothing.
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
        """The version other than `main` with the greatest share of a split alias."""
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
