"""Routing: alias → variants by weight → backends that serve them, the best first. Pure but for the
view of the log that it reads.

A rollout always gets the same variant of a weighted route, and the same backend while that is up,
since its prefix cache is there. Both come from rendezvous hashing, so that several gateways agree
without talking, and a backend that comes or goes moves only its own share. A gateway remembers what
it gave a rollout, which keeps it as long as the route gives that variant a share. A route may have
other shares for rollouts that begin in a context cell. Backends that
proved the wanted version come first. The others follow with what they serve, for a roll-out, a
fail-over or a log without updates. A full-weight backend reports which version answered; an
adapter's version is its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

import msgspec

from fulgurite.events import RouteTarget
from fulgurite.selection.variants import name_variant, with_settings
from fulgurite.versions import MalformedVersion, base_version, parse_version
from services.gateway.upstream.policies import PolicyView
from services.gateway.upstream.route import Route

T = TypeVar("T")

_FULL = 1 << 64
_KEPT = 4096
"""Choices remembered, so that the turns of a rollout are not hashed again."""
_GIVEN = 1 << 16
"""Rollouts whose variant is remembered, for when the route changes; some 20 MB."""


class Target(msgspec.Struct, frozen=True):
    """One variant of an alias, its share of the rollouts, and the routes to it."""

    key: str
    """The variant's name: the choice that a rollout keeps."""
    weight: float
    ready: tuple[Route, ...]
    """Backends that proved to serve it."""
    others: tuple[Route, ...]
    """The rest, with what they serve instead."""
    cells: Mapping[str, float] = {}
    """The share in context cells that have one of their own."""

    def in_cell(self, cell: str | None) -> Target:
        """The target with its share in a context cell."""
        weight = self.cells.get(cell or "", self.weight)
        return msgspec.structs.replace(self, weight=weight) if weight != self.weight else self


def score(rollout: str, name: str) -> float:
    """Uniform in (0, 1), the same on every machine."""
    digest = blake2b(f"{rollout}\0{name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / _FULL


def ranked(rollout: str, items: Iterable[T], name: Callable[[T], str]) -> list[T]:
    """Rendezvous hashing: the order in which this rollout prefers them. What leaves, or comes,
    changes nobody else's order.
    """
    return sorted(items, key=lambda item: score(rollout, name(item)), reverse=True)


def weighted(rollout: str, targets: Sequence[Target]) -> Target:
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
        self._given: dict[tuple[str, str], tuple[str, float, str | None]] = {}
        """The variant that a rollout was given for an alias, its share then, and the context cell
        that had this share; the least recently used first.
        """

    def candidates(
        self, alias: str, rollout: str, cell: Callable[[], str | None] = lambda: None
    ) -> tuple[Route, ...]:
        """The routes for a call of this rollout, best first; at least one. Raises KeyError for an
        unknown alias.

        `cell`: finds the call's context cell, where the alias has shares by context.
        """
        if self._view.generation != self._generation:
            self._generation = self._view.generation
            self._plans.clear()
            self._chosen.clear()
        known = self._chosen.get((alias, rollout))
        if known is None:
            known = self._choose(alias, rollout, cell)
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
        """By alias, the variants that its route names and that are not served: no backend has the
        version, or there is no such upstream. Calls for them are answered by other variants.
        """
        found: dict[str, list[str]] = {}
        for alias, route in self._routes.items():
            targets = [target for target in self._view.targets(alias) if target.weight > 0]
            served = {target.key: bool(target.ready) for target in self._plan(route)}
            missing = [
                key
                for target in targets
                if (target.version or target.upstream) is not None
                and not served.get(key := name_variant(target))
            ]
            if missing:
                found[alias] = missing
        return found

    def _choose(
        self, alias: str, rollout: str, cell: Callable[[], str | None]
    ) -> tuple[Route, ...]:
        plan = self._plans.get(alias)
        if plan is None:
            route = self._configured(alias)
            if route is None:
                raise KeyError(alias)
            plan = self._plans[alias] = self._plan(route)
        target, propensity, given_cell = self._give((alias, rollout), plan, cell)
        routes = (
            *ranked(rollout, target.ready, _backend),
            *ranked(rollout, target.others, _backend),
        )
        return tuple(
            msgspec.structs.replace(route, propensity=propensity, cell=given_cell)
            if route.variant == target.key
            else route
            for route in routes
        )

    def _give(
        self, who: tuple[str, str], plan: Sequence[Target], cell: Callable[[], str | None]
    ) -> tuple[Target, float, str | None]:
        """The variant that a rollout keeps, else one by weight; its share when it was given, and
        the context cell that had this share.
        """
        given = self._given.pop(who, None)
        target = next((one for one in plan if given is not None and one.key == given[0]), None)
        if given is None or target is None:
            found = cell() if any(one.cells for one in plan) else None
            local = [one for each in plan if (one := each.in_cell(found)).weight > 0] or plan
            target = local[0] if len(local) == 1 else weighted(who[1], local)
            given = target.key, target.weight / sum(one.weight for one in local), found
        if len(self._given) >= _GIVEN:
            del self._given[next(iter(self._given))]
        self._given[who] = given
        return target, given[1], given[2]

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
        is_ours = route.policy is not None and self._is_ours(route)
        configured = RouteTarget(
            policy=(route.policy or "") if is_ours else "",
            version=route.alias if route.alias not in self._routes else None,
            upstream=None if is_ours else route.alias,
            weight=1.0,
        )
        routed = () if configured.version else self._view.targets(route.alias)
        targets = [
            target
            for target in routed
            if target.weight > 0 and (is_ours if target.upstream is None else self._has(target))
        ]
        return tuple(self._target(route, target) for target in targets or [configured])

    def _has(self, target: RouteTarget) -> bool:
        """Whether FULGURITE_UPSTREAMS has the target's upstream."""
        upstream = self._routes.get(target.upstream or "")
        return upstream is not None and not self._is_ours(upstream)

    def _target(self, route: Route, target: RouteTarget) -> Target:
        key, parameters = name_variant(target), tuple(sorted(target.parameters.items()))
        if target.upstream is not None:
            upstream = msgspec.structs.replace(
                self._routes[target.upstream],
                alias=route.alias,
                variant=key,
                parameters=parameters,
                prompt=target.prompt,
            )
            return Target(key, target.weight, (upstream,), (), target.cell_weights)
        candidates = [
            self._serving(
                msgspec.structs.replace(
                    route,
                    policy=target.policy,
                    backend=b,
                    base_url=url,
                    parameters=parameters,
                    prompt=target.prompt,
                ),
                target,
                key,
            )
            for b, url in self._backends.items()
        ]
        ready = tuple(route for route, fits in candidates if fits)
        others = tuple(route for route, fits in candidates if not fits)
        return Target(key, target.weight, ready, others, target.cell_weights)

    def _serving(self, route: Route, target: RouteTarget, key: str) -> tuple[Route, bool]:
        """The route to what a backend serves, and whether that is the target."""
        wanted = target.version or self._view.newest(target.policy)
        make = self._adapter if target.policy in self._adapters else self._full
        found, fits = make(route, wanted)
        variant = key if fits or target.version is None else _variant_of(found)
        return msgspec.structs.replace(found, variant=variant), fits

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


def _variant_of(route: Route) -> str:
    """What a backend serves in place of the version that was asked for."""
    answers = route.version or route.expects or route.policy or ""
    return with_settings(answers, route.prompt, dict(route.parameters))


def _order(version: str) -> tuple[int, int]:
    try:
        parsed = parse_version(version)
    except MalformedVersion:
        return (-1, -1)
    return (parsed.epoch, parsed.step)
