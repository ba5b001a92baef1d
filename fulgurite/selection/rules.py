"""What a user may decide about a selector."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from fulgurite.events import EventStruct
from fulgurite.selection.logged import Weights


class Objective(StrEnum):
    """What shares are for."""

    earn = "earn"
    """To earn as much as possible while learning."""
    verdict = "verdict"
    """To find out soon which variant is best, and then to stop."""


class GuardRules(EventStruct, frozen=True, kw_only=True):
    """When a variant loses its traffic."""

    window: int = 20
    """The latest episodes of a variant that are looked at."""
    error_rate: float = 0.25
    """More failed episodes than this part of the window are too many."""
    call_seconds: float = 0.0
    """More than half of the window with slower calls is too slow; 0: no limit."""
    share: float = 0.01
    """What the variant keeps, so that it is seen when it recovers."""


class SelectionRules(EventStruct, frozen=True, kw_only=True):
    """How shares are made from episodes."""

    objective: Objective = Objective.earn
    weights: Weights = Weights()
    warmup: int = 30
    """Rewarded episodes that a variant needs before its rewards count."""
    every: int = 50
    """New episodes between two decisions; a guard rail does not wait."""
    floor: float = 0.05
    """Least share of a variant in any context."""
    half_life: float = 500.0
    """Later episodes of the same variant after which an episode counts half."""
    cell_episodes: int = 30
    """Rewarded episodes of each variant that a context needs for shares of its own."""
    cells: int = 16
    """At most so many contexts have shares of their own, those with the most episodes."""
    least_change: float = 0.02
    """A smaller change of all shares is not written."""
    confidence: float = 0.95
    """Of a verdict."""
    most_episodes: int = 5_000
    """Rewarded episodes after which a comparison ends without a winner."""
    guard: GuardRules = msgspec.field(default_factory=GuardRules)
