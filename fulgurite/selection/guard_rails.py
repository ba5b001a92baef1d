"""Guard rails: a variant that fails, or is too slow, loses its traffic.

They count the episodes of a variant that ended last, whenever their rewards came. One that fails
always has lost its traffic once `error_rate * window` of its episodes failed and one more did. It
gets its traffic back when half as many of its latest episodes are bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest

from fulgurite.selection.outcomes import Outcome
from fulgurite.selection.rules import GuardRules


def guard_reason(outcomes: Sequence[Outcome], rules: GuardRules, *, is_held: bool) -> str | None:
    """Why a variant loses its traffic; None if it does not.

    `outcomes`: those of the variant, in any order. `is_held`: it has lost its traffic already.
    """
    latest = nlargest(rules.window, outcomes, key=lambda one: (one.ended_at, one.rollout_id))
    factor = 0.5 if is_held else 1.0
    failed = sum(one.is_failed for one in latest)
    if failed > factor * rules.error_rate * rules.window:
        return f"{failed} of its latest {len(latest)} episodes failed"
    slow = sum(one.call_seconds > rules.call_seconds for one in latest) if rules.call_seconds else 0
    if slow > factor * rules.window / 2:
        return (
            f"in {slow} of its latest {len(latest)} episodes a call took more than "
            f"{rules.call_seconds:g} s on average"
        )
    return None
