"""Folds `policy.routes` and `selection.decisions` of one alias: what a selector goes on from.

The *base* is the last route that no service wrote. Its targets are the variants to compare, and
episodes that began before it do not count: when a person sets a route, a selector starts again from
it. While a gate or an evaluation holds the alias there is no base: an alias has one author of its
shares. An evaluation puts back the route that it replaced, and the base is what it was.
`policy.routes` is compacted, so a decision repeats its base.
"""

from __future__ import annotations

from fulgurite.enums import SelectionKind, SelectionMode
from fulgurite.events import EventStruct, PolicyRoute, RouteTarget, SelectionDecision
from fulgurite.ids import derive_id
from fulgurite.learning.epochs import Epochs
from fulgurite.selection.authors import GATE, is_evaluation
from fulgurite.selection.variants import name_variant


class Base(EventStruct, frozen=True, kw_only=True):
    """The route that a selector starts from."""

    route_id: str
    time: int
    """Its event time, Unix milliseconds."""
    targets: tuple[RouteTarget, ...]

    def variants(self) -> dict[str, RouteTarget]:
        """The targets that have a share, by the names of their variants."""
        return {name_variant(target): target for target in self.targets if target.weight > 0}


class SelectionHistory:
    """The fold. Apply each topic's events in log order; the two topics in any order."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.epochs = Epochs()
        self.route: PolicyRoute | None = None
        """The route in force."""
        self._own: PolicyRoute | None = None
        """The last route that no service wrote."""
        self._bases: dict[str, Base] = {}
        """Of each decision, by its event id."""
        self._shares: SelectionDecision | None = None
        self._verdict: SelectionDecision | None = None

    def apply(self, event: object) -> bool:
        """Apply an event; False if it is of another alias or topic, or does not count."""
        if isinstance(event, PolicyRoute) and event.alias == self.alias:
            self.route = event
            if event.selection is None and not _is_held(event):
                self._own = event
            return True
        if isinstance(event, SelectionDecision) and event.alias == self.alias:
            return self._apply_decision(event)
        return False

    def base(self) -> Base | None:
        """What a selector starts from; None without a route, and while another service holds it."""
        route = self.route
        if route is None or not route.targets or _is_held(route):
            return None
        known = self._bases.get(route.selection) if route.selection is not None else None
        if known is not None and self._own is None:
            return known
        own = self._own or route
        return Base(route_id=own.event_id, time=own.event_time, targets=own.targets)

    def shares(self) -> SelectionDecision | None:
        """The last decision on shares from this base."""
        return self._of_this_base(self._shares)

    def verdict(self) -> SelectionDecision | None:
        """The verdict on this base's variants."""
        return self._of_this_base(self._verdict)

    def unapplied(self) -> SelectionDecision | None:
        """An automatic decision that `policy.routes` does not have yet, and that changes the route
        for which it was made.
        """
        last, route = self.shares(), self.route
        if last is None or route is None or last.mode is not SelectionMode.automatic:
            return None
        is_new = last.replaces == route.event_id and last.targets != route.targets
        return last if is_new else None

    def is_overtaken(self) -> bool:
        """Whether the route in force applies a decision that was made before the base was set.

        So it is if somebody set a route just before a selector applied a decision.
        """
        route, base = self.route, self.base()
        made_from = self._bases.get(route.selection or "") if route is not None else None
        return made_from is not None and made_from != base

    def _apply_decision(self, event: SelectionDecision) -> bool:
        if event.kind is SelectionKind.claim:
            self.epochs.claim(event.epoch, event.selector_id)
            return True
        if event.base_id is not None:
            self._bases[event.event_id] = Base(
                route_id=event.base_id, time=event.base_time, targets=event.base_targets
            )
        if not self.epochs.counts(event.epoch, event.selector_id):
            return False
        if event.kind is SelectionKind.shares:
            self._shares = event
        elif event.kind is SelectionKind.verdict:
            self._verdict = event
        return True

    def _of_this_base(self, event: SelectionDecision | None) -> SelectionDecision | None:
        base = self.base()
        return event if event and base and event.base_id == base.route_id else None


def _is_held(route: PolicyRoute) -> bool:
    """Whether a gate or an evaluation holds the alias, while its selector waits."""
    return route.author == GATE or is_evaluation(route.author)


def route_of(
    decision: SelectionDecision, author: str, previous: tuple[RouteTarget, ...]
) -> PolicyRoute:
    """The route that applies a decision. Applying it twice gives the same event."""
    return PolicyRoute(
        event_id=derive_id("selection-route", decision.event_id),
        event_time=decision.event_time,
        alias=decision.alias,
        targets=decision.targets,
        reason=decision.reason,
        author=author,
        previous=previous,
        selection=decision.event_id,
    )
