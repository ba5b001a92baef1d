"""What a selector decides: shares of an alias's variants, and verdicts on them.

Topic `selection.decisions`.
"""

from __future__ import annotations

from fulgurite.enums import SelectionKind, SelectionMode
from fulgurite.events.base import Event, EventStruct
from fulgurite.events.policies import RouteTarget


class VariantReport(EventStruct, frozen=True, kw_only=True):
    """What the log says of one variant when a decision is made."""

    variant: str
    """Its name, as calls record it."""
    episodes: int
    """Rewarded episodes that count."""
    failed: int
    """Episodes with a failed call, rewarded or not."""
    reward: float | None = None
    """Mean reward; null without an episode."""
    price: float | None = None
    """Mean price in the price file's currency; null where it is not known."""
    seconds: float | None = None
    """Mean seconds that the alias's calls took."""
    earned: float | None = None
    """Mean of reward minus weighted price and latency."""
    share: float
    """Its share of the decision's targets, where no context has shares of its own."""
    guard: str | None = None
    """Why a guard rail took its traffic away; null: none did."""


class VariantDifference(EventStruct, frozen=True, kw_only=True):
    """By how much the best variant earns more than another, per episode."""

    better: str
    """The variant with the higher mean."""
    worse: str
    """The other variant."""
    mean: float
    """Doubly robust estimate of the difference."""
    low: float
    """Lower bound of its interval, which holds at every moment at once."""
    high: float
    """Upper bound."""
    groups: int
    """Independent observations: groups of rollouts."""


class SelectionDecision(Event, frozen=True, kw_only=True):
    """A selector's claim, shares or verdict. Topic `selection.decisions`."""

    alias: str
    """Model name that agents ask for; the Kafka key."""
    kind: SelectionKind
    """Claim, shares or verdict."""
    mode: SelectionMode
    """What becomes of the shares."""
    epoch: int
    """Epoch of the selector that writes."""
    selector_id: str
    """Name of the selector."""
    base_id: str | None = None
    """Event id of the route whose variants are compared, which no selector wrote."""
    base_time: int = 0
    """Event time of that route: episodes that began before it do not count."""
    base_targets: tuple[RouteTarget, ...] = ()
    """Targets of that route."""
    replaces: str | None = None
    """Event id of the route in force when it was decided."""
    targets: tuple[RouteTarget, ...] = ()
    """Variants with their new shares; of a verdict, those in force."""
    known_until: int = 0
    """When the newest of the episodes that count became known, Unix milliseconds."""
    variants: tuple[VariantReport, ...] = ()
    """What the log says of each variant."""
    differences: tuple[VariantDifference, ...] = ()
    """The best variant against each other one."""
    winner: str | None = None
    """Of a verdict: the best variant; null: the comparison ended without one."""
    reason: str
    """For people: why."""
    config: str | None = None
    """JSON of the selector's settings, with claims."""
