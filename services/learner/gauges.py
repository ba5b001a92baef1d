"""Shows on the metrics port what a learner holds, and its newest version."""

from __future__ import annotations

from fulgurite.events import PolicyUpdate
from fulgurite.learning.batching import RowBatcher
from fulgurite.versions import Version
from services.common.runtime import metrics

_BATCHES = "fulgurite_learner_batches_total"


def show_start(policy: str) -> None:
    """Show the outcomes of batches before there is one."""
    for outcome in ("trained", "refused"):
        metrics.start_counter(_BATCHES, policy, outcome)


def show_groups(batcher: RowBatcher, version: Version) -> None:
    """Show how many groups wait, and for what."""
    complete = batcher.complete()
    counts = {
        "incomplete": batcher.waiting() - complete,
        "complete": complete,
        "ready": batcher.ready(version),
    }
    metrics.put(
        "fulgurite_learner_groups",
        {(version.policy, state): float(count) for state, count in counts.items()},
    )


def show_update(update: PolicyUpdate) -> None:
    """Show the newest version and its metrics."""
    metrics.count(_BATCHES, update.policy, "trained")
    metrics.put("fulgurite_learner_step", {(update.policy,): float(update.step)})
    metrics.put(
        "fulgurite_learner_update",
        {(update.policy, name): value for name, value in update.metrics.items()},
    )


def show_refusal(policy: str) -> None:
    """Show that a batch made no step."""
    metrics.count(_BATCHES, policy, "refused")
