"""Decides the shares of an alias's variants from their outcomes. Pure.

    cold      a variant with fewer rewarded episodes than the warm-up: it keeps the base's share
    guarded   a variant that a guard rail stopped: it keeps the guard rail's share
    warm      the others: they divide what is left by the chance that each is the best

Every share but a guarded one is at least the floor, in every context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from fulgurite.errors import BadPrices
from fulgurite.events import EventStruct, RouteTarget, VariantDifference, VariantReport
from fulgurite.selection.guard_rails import guard_reason
from fulgurite.selection.history import Base
from fulgurite.selection.logged import LoggedEpisode, earned
from fulgurite.selection.outcomes import Outcome, of_variants
from fulgurite.selection.rules import Objective, SelectionRules
from fulgurite.selection.shares import raise_to_floors, tracking_shares
from fulgurite.selection.uneven_rewards import find_uneven_rewards
from fulgurite.selection.verdict import compare_variants

ANYWHERE = ""
"""The cell that stands for contexts without shares of their own."""


class Observation(EventStruct, frozen=True, kw_only=True):
    """What one episode of a variant earned."""

    cell: str
    value: float
    weight: float
    """How much it counts, in (0, 1]: older ones count less."""


Chances = Mapping[str, Mapping[str, float]]
"""By cell and variant: the chance that the variant is the best there."""
Posterior = Callable[[Mapping[str, Sequence[Observation]], Sequence[str]], Chances]
"""Computes the chances in some cells from the observations of each variant."""


class Shares(EventStruct, frozen=True, kw_only=True):
    """New shares of an alias, and what they were made of."""

    targets: tuple[RouteTarget, ...]
    variants: tuple[VariantReport, ...]
    differences: tuple[VariantDifference, ...]
    withheld: str | None
    """Why the differences that there would be are not stated."""
    known_until: int
    """When the newest outcome became known; 0 without any."""
    counted: int
    """Rewarded episodes."""
    reason: str

    def guarded(self) -> set[str]:
        """The variants that lost their traffic."""
        return {one.variant for one in self.variants if one.guard}


class _Known(msgspec.Struct, kw_only=True):
    """What is known of one variant."""

    outcomes: list[Outcome]
    values: list[tuple[LoggedEpisode, float]]
    """Its rewarded episodes with a price, where prices count, and what they earned."""
    unpriced: int
    guard: str | None


def decide(
    base: Base,
    outcomes: Sequence[Outcome],
    rules: SelectionRules,
    held: set[str],
    ended: str | None,
    posterior: Posterior,
) -> Shares:
    """Decide the shares of the base's variants.

    `outcomes`: those since the base, in their order. `held`: variants that have lost their traffic.
    `ended`: the winner, if the comparison has ended with one and the objective is to stop then.
    """
    targets = base.variants()
    known = {
        variant: _know(found, rules, is_held=variant in held)
        for variant, found in of_variants(outcomes, targets).items()
    }
    differences = _differences(known, rules)
    withheld = _why_withheld(known, rules) if differences else None
    wanted, reason = _wanted(targets, known, rules, ended, posterior)
    floors = _floors(known, rules)
    shares = {cell: raise_to_floors(found, floors) for cell, found in wanted.items()}
    return Shares(
        targets=tuple(_target(target, name, shares) for name, target in targets.items()),
        variants=tuple(_report(name, one, shares[ANYWHERE][name]) for name, one in known.items()),
        differences=() if withheld else differences,
        withheld=withheld,
        known_until=max((one.known_at for one in outcomes), default=0),
        counted=sum(len(one.values) for one in known.values()),
        reason=f"{reason}; no comparison: {withheld}" if withheld else reason,
    )


def _know(outcomes: list[Outcome], rules: SelectionRules, *, is_held: bool) -> _Known:
    values: list[tuple[LoggedEpisode, float]] = []
    unpriced = 0
    for one in outcomes:
        if one.is_rewarded:
            try:
                values.append((one.episode, earned(one.episode, rules.weights)))
            except BadPrices:
                unpriced += 1
    guard = guard_reason(outcomes, rules.guard, is_held=is_held)
    return _Known(outcomes=outcomes, values=values, unpriced=unpriced, guard=guard)


def _wanted(
    targets: Mapping[str, RouteTarget],
    known: Mapping[str, _Known],
    rules: SelectionRules,
    ended: str | None,
    posterior: Posterior,
) -> tuple[dict[str, dict[str, float]], str]:
    """By cell, the shares before floors; and for people, why."""
    begun = {name: target.weight for name, target in targets.items()}
    open_ = [name for name, one in known.items() if one.guard is None]
    if not open_:
        return {ANYWHERE: begun}, "every variant is beyond a guard rail: the route's own shares"
    reasons = [f"{name}: {one.guard}" for name, one in known.items() if one.guard is not None]
    if ended in open_:
        won = {ANYWHERE: {name: float(name == ended) for name in known}}
        return won, "; ".join([*reasons, f"the comparison has ended: {ended}"])
    warm = [name for name in open_ if len(known[name].values) >= rules.warmup]
    reasons += [
        f"{name}: {len(known[name].values)} of {rules.warmup} rewarded episodes to warm up"
        for name in open_
        if name not in warm
    ]
    reasons += [
        f"{name}: {one.unpriced} episodes have no price"
        for name, one in known.items()
        if one.unpriced
    ]
    if len(warm) < 2:
        chances: Chances = {ANYWHERE: dict.fromkeys(warm, 1.0)}
    elif rules.objective is Objective.verdict:
        chances = {ANYWHERE: tracking_shares({name: _mean(known[name]) for name in warm})}
    else:
        cells = _cells(known, warm, rules)
        chances = posterior({name: _observed(known[name], rules) for name in warm}, cells)
    mass = sum(begun[name] for name in warm)
    return {
        cell: {
            name: mass * found[name] if name in found else begun[name] * (name in open_)
            for name in known
        }
        for cell, found in chances.items()
    }, "; ".join(reasons) or "what the variants earn"


def _cells(known: Mapping[str, _Known], warm: Sequence[str], rules: SelectionRules) -> list[str]:
    """The cells with shares of their own, besides the one that stands for the others."""
    counts: dict[str, dict[str, int]] = {}
    for name in warm:
        for episode, _ in known[name].values:
            cell = counts.setdefault(episode.cell, dict.fromkeys(warm, 0))
            cell[name] += 1
    enough = [
        (-sum(found.values()), cell)
        for cell, found in counts.items()
        if min(found.values()) >= rules.cell_episodes
    ]
    return [ANYWHERE, *(cell for _, cell in sorted(enough)[: rules.cells])]


def _observed(known: _Known, rules: SelectionRules) -> list[Observation]:
    newest = len(known.values) - 1
    return [
        Observation(
            cell=episode.cell, value=value, weight=0.5 ** ((newest - place) / rules.half_life)
        )
        for place, (episode, value) in enumerate(known.values)
    ]


def _differences(
    known: Mapping[str, _Known], rules: SelectionRules
) -> tuple[VariantDifference, ...]:
    """Between the variants that no guard rail stopped, once each has warmed up."""
    names = [name for name, one in known.items() if one.guard is None]
    if any(len(known[name].values) < rules.warmup for name in names):
        return ()
    pairs = [pair for name in names for pair in known[name].values]
    return compare_variants(
        [episode for episode, _ in pairs], [value for _, value in pairs], names, rules.confidence
    )


def _why_withheld(known: Mapping[str, _Known], rules: SelectionRules) -> str | None:
    """Why the differences between the variants that no guard rail stopped would be wrong."""
    compared = {name: one.outcomes for name, one in known.items() if one.guard is None}
    return find_uneven_rewards(compared, rules.guard.share)


def _floors(known: Mapping[str, _Known], rules: SelectionRules) -> dict[str, float]:
    least = min(rules.floor, 1 / len(known))
    is_open = any(one.guard is None for one in known.values())
    return {
        name: min(rules.guard.share, least) if one.guard is not None and is_open else least
        for name, one in known.items()
    }


def _target(
    target: RouteTarget, name: str, shares: Mapping[str, Mapping[str, float]]
) -> RouteTarget:
    return msgspec.structs.replace(
        target,
        weight=shares[ANYWHERE][name],
        cell_weights={cell: found[name] for cell, found in shares.items() if cell != ANYWHERE},
    )


def _report(name: str, known: _Known, share: float) -> VariantReport:
    episodes = [one.episode for one in known.outcomes if one.is_rewarded]
    prices = [one.price for one in episodes if one.price is not None]
    count = len(episodes)
    return VariantReport(
        variant=name,
        episodes=count,
        failed=sum(one.is_failed for one in known.outcomes),
        reward=sum(one.reward for one in episodes) / count if count else None,
        price=sum(prices) / count if count and len(prices) == count else None,
        seconds=sum(one.seconds for one in episodes) / count if count else None,
        earned=_mean(known) if known.values else None,
        share=share,
        guard=known.guard,
    )


def _mean(known: _Known) -> float:
    return sum(value for _, value in known.values) / len(known.values)


def verdict_of(shares: Shares, rules: SelectionRules) -> tuple[bool, str | None, str]:
    """Whether a comparison has ended, with which winner, and for people, why."""
    if shares.differences and all(one.low > 0 for one in shares.differences):
        winner = shares.differences[0].better
        against = "; ".join(
            f"{one.better} is better than {one.worse} by {one.mean:.3g} "
            f"[{one.low:.3g}, {one.high:.3g}]"
            for one in shares.differences
        )
        return True, winner, f"{against}, at {rules.confidence:.0%} confidence"
    if shares.counted >= rules.most_episodes:
        why = f"no variant is better than all others after {shares.counted} episodes"
        return True, None, f"{why}: {shares.withheld}" if shares.withheld else why
    return False, None, ""


def is_changed(targets: Sequence[RouteTarget], others: Sequence[RouteTarget], least: float) -> bool:
    """Whether two routes differ in their variants, or in a share by more than `least`."""
    old, new = _by_share(targets), _by_share(others)
    if [one[0] for one in old] != [one[0] for one in new]:
        return True
    cells = {cell for _, _, found in (*old, *new) for cell in found}
    return any(
        abs(found.get(cell, share) - other.get(cell, another)) > least
        for (_, share, found), (_, another, other) in zip(old, new, strict=True)
        for cell in (ANYWHERE, *cells)
    )


def _by_share(
    targets: Sequence[RouteTarget],
) -> list[tuple[RouteTarget, float, Mapping[str, float]]]:
    """The targets without shares, their shares, and those by cell; each adds up to 1."""
    live = [target for target in targets if target.weight > 0]
    total = sum(target.weight for target in live)
    sums: dict[str, float] = {}
    for target in live:
        for cell, weight in target.cell_weights.items():
            sums[cell] = sums.get(cell, 0.0) + weight
    return [
        (
            msgspec.structs.replace(target, weight=1.0, cell_weights={}),
            target.weight / total,
            {cell: weight / sums[cell] for cell, weight in target.cell_weights.items()},
        )
        for target in live
    ]
