"""Explains in words why a batch, or a part of it, is not trained. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.learning.batching import BatchGroup
from fulgurite.ledger.remedies import REMEDIES


def shortcomings(groups: Sequence[BatchGroup], max_row_tokens: int) -> list[str]:
    """Return lines for the log: if nothing of the batch is trained, or rows are too long."""
    outcomes = Counter(outcome for group in groups for outcome in group.outcomes.values())
    total = sum(outcomes.values())
    trained = sum(count for (term, _), count in outcomes.items() if term is LedgerTerm.trained)
    oversized = outcomes[LedgerTerm.filtered, FilterReason.oversized]
    lines: list[str] = []
    if not trained:
        counted = ", ".join(
            f"{count} {reason or term}" for (term, reason), count in outcomes.most_common()
        )
        remedy = next(
            (
                f"; {reason}: {REMEDIES[reason]}"
                for (_, reason), _ in outcomes.most_common()
                if reason is not None
            ),
            "",
        )
        lines.append(
            f"0 of {total} actions of {len(groups)} groups are trained: "
            f"{counted or 'the groups have no actions'}{remedy}"
        )
    if oversized:
        lines.append(
            f"{oversized} of {total} actions are in rows longer than "
            f"batch.max_row_tokens = {max_row_tokens} and are not trained (oversized): raise it, "
            "or keep conversations shorter"
        )
    return lines
