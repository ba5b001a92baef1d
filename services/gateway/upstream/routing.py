"""Routing: alias → versions by weight → backends that serve them, the best first. Pure but for the
view of the log that it reads.

A rollout always gets the same version of a weighted route, and the same backend while that is up,
since its prefix cache is there. Both come from rendezvous hashing, so that several gateways agree
without talking, and a backend that comes or goes moves only its own share. Backends that proved the
wanted version come first. The others follow with what they serve, for a roll-out, a fail-over or a
log without updates. A full-weight backend reports which version answered; an adapter's version is
its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import TypeVar

import msgspec

from fulgurite.versions import MalformedVersion, base_version, parse_version
from services.gateway.upstream.policies import PolicyView
from services.gateway.upstream.route import Route

T = TypeVar("T")

_FULL = 1 << 64
_KEPT = 4096
"""Choices remembered, so that the turns of a rollout are not hashed again."""


class Target(msgspec.Struct, frozen=True):
    """One version of an alias, its share of the rollouts, and the routes to it."""

    key: str
    """`policy@1.3`, or `policy` for whatever is newest: the choice that a rollout keeps."""
    weight: float
    ready: tuple[Route, ...]
    """Backends that proved to serve it."""
    others: tuple[Route, ...]
    """The rest, with what they serve instead."""


def score(rollout: str, name: str) -> float:
    """Uniform in (0, 1), the same on every machine."""
    digest = blake2b(f"{rollout}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / _FULL


def ranked(rollout: str, items: Iterable[T], name: Callable[[T], str]) -> list[T]:
    """Rendezvous hashing: the order in which this rollout prefers them. What leaves, or comes,
    changes nobody else's order.
    """
    return sorted(items, key=lambda item: score(rollout, name(item)), reverse=True)


def weighted(rollout: str, targets: tuple[Target, ...]) -> Target:
    """Weighted rendezvous: shares by weight, and a changed weight moves only the rollouts that it
    must.
    """
    return max(targets, key=lambda target: -target.weight / math.log(score(rollout, target.key)))


class Router:
    """The candidates of a call, rebuilt whenever the log's view has changed."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        backends: Mapping[str, str],
        adapters: frozenset[str],
        base: str,
        view: PolicyView,
    ) -> None:
        """`routes`: alias → its upstream as configured; those of kind `vllm` on one of `backends`
        go to all of these. `adapters`: policies served as LoRA adapters of the model that vLLM
        calls `base`.
        """
        self._routes = dict(routes)
        self._backends = dict(backends)
        self._adapters = adapters
        self._base = base
        self._view = view
        self._generation = -1
        self._plans: dict[str, tuple[Target, ...]] = {}
        self._chosen: dict[tuple[str, str], tuple[Route, ...]] = {}

    def candidates(self, alias: str, rollout: str) -> tuple[Route, ...]:
        """The routes for a call of this rollout, best first; at least one. Raises KeyError for an
        unknown alias.
        """
        if self._view.generation != self._generation:
            self._generation = self._view.generation
            self._plans.clear()
            self._chosen.clear()
        known = self._chosen.get((alias, rollout))
        if known is None:
            known = self._choose(alias, rollout)
            if len(self._chosen) >= _KEPT:
                self._chosen.clear()
            self._chosen[alias, rollout] = known
        return known

    def find(self, alias: str) -> Route | None:
        """The route of an alias as configured; None for an unknown one.

        A version, `policy@1.3`, is an alias too, as long as a backend serves it.
        """
        route = self._configured(alias)
        if route is None or alias in self._routes:
            return route
        (target,) = self._plan(route)
        return route if target.ready else None

    def unserved(self) -> dict[str, list[str]]:
        """By alias, the versions that its route names and no backend serves. Calls for them are
        answered by other versions.
        """
        plans = {
            alias: self._plan(route)
            for alias, route in self._routes.items()
            if self._view.targets(alias)
        }
        found = {
            alias: [target.key for target in plan if "@" in target.key and not target.ready]
            for alias, plan in plans.items()
        }
        return {alias: keys for alias, keys in found.items() if keys}

    def _choose(self, alias: str, rollout: str) -> tuple[Route, ...]:
        plan = self._plans.get(alias)
        if plan is None:
            route = self._configured(alias)
            if route is None:
                raise KeyError(alias)
            plan = self._plans[alias] = self._plan(route)
        target = plan[0] if len(plan) == 1 else weighted(rollout, plan)
        return (*ranked(rollout, target.ready, _backend), *ranked(rollout, target.others, _backend))

    def _configured(self, alias: str) -> Route | None:
        """The route of an alias; for a version, that of an alias which its policy serves."""
        if alias in self._routes or "@" not in alias:
            return self._routes.get(alias)
        policy = alias.partition("@")[0]
        for route in self._routes.values():
            if route.policy == policy and self._is_ours(route) and _order(alias) >= (0, 0):
                return msgspec.structs.replace(route, alias=alias)
        return None

    def _is_ours(self, route: Route) -> bool:
        return route.kind == "vllm" and route.backend in self._backends

    def _plan(self, route: Route) -> tuple[Target, ...]:
        if route.policy is None or not self._is_ours(route):
            return (Target(route.alias, 1.0, (route,), ()),)
        if route.alias not in self._routes:
            return (self._target(route, route.policy, route.alias, 1.0),)
        targets = [
            (t.policy, t.version, t.weight) for t in self._view.targets(route.alias) if t.weight > 0
        ]
        return tuple(
            self._target(route, *target) for target in targets or [(route.policy, None, 1.0)]
        )

    def _target(self, route: Route, policy: str, version: str | None, weight: float) -> Target:
        wanted = version or self._view.newest(policy)
        make = self._adapter if policy in self._adapters else self._full
        candidates = [
            make(msgspec.structs.replace(route, policy=policy, backend=b, base_url=url), wanted)
            for b, url in self._backends.items()
        ]
        ready = tuple(route for route, fits in candidates if fits)
        others = tuple(route for route, fits in candidates if not fits)
        return Target(version or policy, weight, ready, others)

    def _full(self, route: Route, wanted: str) -> tuple[Route, bool]:
        """A backend with weights of its own: it serves one version, under the policy's name."""
        policy = route.policy or ""
        served = self._view.served(policy, route.backend)
        return msgspec.structs.replace(
            route, model=policy, expects=served
        ), wanted in self._view.loaded(policy, route.backend)

    def _adapter(self, route: Route, wanted: str) -> tuple[Route, bool]:
        """A backend with adapters: the wanted one, else the newest before it, else its newest, else
        the bare base model.
        """
        policy = route.policy or ""
        base, loaded = str(base_version(policy)), self._view.loaded(policy, route.backend)
        before = [version for version in loaded if _order(version) < _order(wanted)]
        found = (
            wanted
            if wanted == base or wanted in loaded
            else max(before or loaded, key=_order, default=base)
        )
        return msgspec.structs.replace(
            route, model=self._base if found == base else found, version=found
        ), found == wanted


def _backend(route: Route) -> str:
    return route.backend


def _order(version: str) -> tuple[int, int]:
    try:
        parsed = parse_version(version)
    except MalformedVersion:
        return (-1, -1)
    return (parsed.epoch, parsed.step)
