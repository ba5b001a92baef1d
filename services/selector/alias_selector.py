"""Selects the variants of one alias: a fold of the log, and what is to be written next.

It has no state but the fold, and neither clock nor Kafka. What it returns counts once it has come
back through the log. So a selector that is killed at any point goes on where the log ends: what was
not written is decided again, with the same id if nothing new is known, and what was written is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fulgurite.cost.prices import Prices
from fulgurite.enums import SelectionKind, SelectionMode
from fulgurite.events import PolicyRoute, RouteTarget, SelectionDecision
from fulgurite.ids import derive_id
from fulgurite.selection.deciding import Posterior, Shares, decide, is_changed, verdict_of
from fulgurite.selection.guard_rails import guard_reason
from fulgurite.selection.history import Base, SelectionHistory, route_of
from fulgurite.selection.outcomes import AliasOutcomes, Outcome, of_variants
from fulgurite.selection.rules import Objective, SelectionRules
from services.selector.errors import Superseded


class AliasSelector:
    """One alias. Apply every event of the four topics, then ask what to write."""

    def __init__(
        self,
        alias: str,
        selector_id: str,
        mode: SelectionMode,
        rules: SelectionRules,
        posterior: Posterior,
        prices: Prices | None,
        remembered: int,
    ) -> None:
        self.alias = alias
        self.history = SelectionHistory(alias)
        self._id = selector_id
        self._mode = mode
        self._rules = rules
        self._posterior = posterior
        self._outcomes = AliasOutcomes(alias, prices, remembered)
        self._epoch: int | None = None
        """The epoch that this selector claimed."""
        self._awaited: set[str] = set()
        """Events that were written and have not come back yet."""
        self._changed = True

    def apply(self, event: object) -> None:
        """Apply an event of `episodes`, `agent.rewards`, `policy.routes` or
        `selection.decisions`.
        """
        if isinstance(event, PolicyRoute | SelectionDecision):
            self._changed |= self.history.apply(event)
            self._awaited.discard(event.event_id)
        else:
            self._changed |= self._outcomes.apply(event)

    def claim(self, now_ms: int) -> SelectionDecision:
        """The event that takes the alias over. Ask for it once, when all of the log is applied."""
        self._epoch = self.history.epochs.highest + 1
        event = SelectionDecision(
            event_id=derive_id("selection-claim", self.alias, self._epoch, self._id),
            event_time=now_ms,
            alias=self.alias,
            kind=SelectionKind.claim,
            mode=self._mode,
            epoch=self._epoch,
            selector_id=self._id,
            reason="started",
            config=msgspec.json.encode(self._rules).decode(),
        )
        self._awaited.add(event.event_id)
        return event

    def due(self, now_ms: int) -> PolicyRoute | SelectionDecision | None:
        """What to write now, if anything. Raises Superseded."""
        if self._epoch is None or self._awaited:
            return None
        epochs = self.history.epochs
        if (epochs.epoch, epochs.holder) != (self._epoch, self._id):
            raise Superseded(self.alias, epochs.epoch, epochs.holder or "")
        base, route = self.history.base(), self.history.route
        if not self._changed or base is None or route is None:
            return None
        is_automatic = self._mode is SelectionMode.automatic
        unapplied = self.history.unapplied() if is_automatic else None
        found = (
            self._decided(base, route, now_ms)
            if unapplied is None
            else route_of(unapplied, f"selector {self._id}", route.targets)
        )
        self._changed = found is not None
        if found is not None:
            self._awaited.add(found.event_id)
        return found

    def _decided(self, base: Base, route: PolicyRoute, now_ms: int) -> SelectionDecision | None:
        if len(base.variants()) < 2:
            return None
        last = self.history.shares()
        outcomes = [one for one in self._outcomes.ordered() if one.started_at >= base.time]
        guards = last.variants if last is not None else ()
        held = {one.variant for one in guards if one.guard}
        if not self._is_due(base, route, outcomes, held, last):
            return None
        verdict = self.history.verdict()
        ends = self._rules.objective is Objective.verdict
        ended = verdict.winner if verdict is not None and ends else None
        shares = decide(base, outcomes, self._rules, held, ended, self._posterior)
        has_ended, winner, why = verdict_of(shares, self._rules)
        if verdict is None and has_ended:
            return self._event(base, route, shares, route.targets, now_ms, winner, why)
        before = self._in_force(base, route, last)
        is_new = is_changed(before, shares.targets, self._rules.least_change)
        is_new |= shares.guarded() != held or self.history.is_overtaken()
        return self._event(base, route, shares, shares.targets if is_new else before, now_ms)

    def _is_due(
        self,
        base: Base,
        route: PolicyRoute,
        outcomes: Sequence[Outcome],
        held: set[str],
        last: SelectionDecision | None,
    ) -> bool:
        known_until = last.known_until if last is not None else 0
        if sum(one.known_at > known_until for one in outcomes) >= self._rules.every:
            return True
        if self.history.is_overtaken() and (last is None or last.replaces != route.event_id):
            return True
        found = of_variants(outcomes, base.variants())
        guarded = {
            variant
            for variant, latest in found.items()
            if guard_reason(latest, self._rules.guard, is_held=variant in held)
        }
        return guarded != held

    def _in_force(
        self, base: Base, route: PolicyRoute, last: SelectionDecision | None
    ) -> tuple[RouteTarget, ...]:
        """The shares to compare new ones with."""
        if self._mode is SelectionMode.automatic:
            return route.targets
        return last.targets if last is not None else base.targets

    def _event(
        self,
        base: Base,
        route: PolicyRoute,
        shares: Shares,
        targets: tuple[RouteTarget, ...],
        now_ms: int,
        winner: str | None = None,
        verdict: str | None = None,
    ) -> SelectionDecision:
        kind = SelectionKind.shares if verdict is None else SelectionKind.verdict
        assert self._epoch is not None, "only a holder decides"
        basis = (base.route_id, route.event_id, shares.known_until, len(shares.variants))
        return SelectionDecision(
            event_id=derive_id("selection", self.alias, self._epoch, kind, *basis, shares.reason),
            event_time=now_ms,
            alias=self.alias,
            kind=kind,
            mode=self._mode,
            epoch=self._epoch,
            selector_id=self._id,
            base_id=base.route_id,
            base_time=base.time,
            base_targets=base.targets,
            replaces=route.event_id,
            targets=targets,
            known_until=shares.known_until,
            variants=shares.variants,
            differences=shares.differences,
            winner=winner,
            reason=verdict or shares.reason,
        )
