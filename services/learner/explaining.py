"""Explains in words why a batch, or a part of it, is not trained, or not as meant. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fulgurite.enums import FilterReason, LedgerTerm
from fulgurite.learning.batching import BatchGroup
from fulgurite.ledger.remedies import REMEDIES
from services.learner.algorithms.algorithm import Algorithm


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


def misplaced_rule(groups: Sequence[BatchGroup], algorithm: Algorithm) -> str | None:
    """Return a line for the log if a credit rule's own baseline is not the one that the credits of
    a group are compared with; None otherwise.
    """
    misplaced = [
        group.group_id
        for group in groups
        if group.rule_has_baseline and (group.is_lone or algorithm.comparison == "batch")
    ]
    if not misplaced:
        return None
    return (
        f"group {misplaced[0]} has a credit rule with a baseline of its own (last_step, gigpo or "
        "per_role), which needs a comparison within the group, but is compared with other groups: "
        "its advantages are not those of the rule. Declare the rule `identical`, `step` or "
        "`discounted`, or run groups of two or more under an algorithm that compares with the "
        "group, such as `grpo`"
    )
