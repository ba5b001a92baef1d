"""Names the metrics of an update event, and measures what a learner's phases take."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Literal

Phase = Literal["read", "wait", "prepare", "train", "export", "checkpoint", "publish"]

METRICS: Mapping[str, str] = {
    "groups": "Groups that were settled since the update before",
    "groups_with_signal": "Those of them that were trained",
    "share_without_signal": "Share of them that teach nothing",
    "episodes": "Episodes of them that have rows",
    "reward_mean": "Mean reward of their scored episodes, trained or not",
    "reward_std": "Standard deviation of the same",
    "reward/component/NAME": "Mean of each named reward, without weights; of the 20 most frequent",
    "reward/agent/NAME": "Mean reward of the episodes in which an agent has actions that carry "
    "loss; of the 20 most frequent agents",
    "credit/agent/NAME": "Mean credit of the actions of an agent",
    "reward/failure/KIND": "Mean reward of the episodes that ended with a failure; `none`: without",
    "actions/trained": "Actions that carried loss",
    "actions/stale": "Actions that were too old",
    "actions/dead_lettered": "Actions of groups that the trainer failed on, now in `dead.letters`",
    "actions/filtered/REASON": "Actions that carry no loss, by reason (docs/reference/ledger.md)",
    "drop_rate/length_decile_N": "Of the shortest tenth of the episodes (1) to the longest (10), "
    "the share of actions that are stale or filtered. Groups that teach nothing do not count. If "
    "it rises with the length, the policy learns from short episodes alone",
    "rows_per_episode": "Mean rows of an episode; more than 1 means that prefixes break",
    "prefix_breaks/KIND": "Rows that do not extend the one before, by why",
    "tokens/trained": "Tokens of trained actions",
    "tokens/computed": "Tokens that the optimizer steps computed, shared prefixes counted once",
    "tokens/discarded/REASON": "Generated tokens that are not trained: `stale`, `dead_lettered`, "
    "`truncated`, or another reason",
    "row_tokens": "Tokens of the rows of a mini-batch, prefixes included",
    "forest_tokens": "The same with shared prefixes counted once",
    "micro_batches": "Micro-batches of an optimizer step",
    "optimizer_steps": "Optimizer steps of the batch",
    "loss": "Loss, with entropy bonus and KL term",
    "preference/margin": "With `fulgurite dpo`, how much more the chosen episode of a pair is "
    "preferred than by the reference",
    "preference/accuracy": "With `fulgurite dpo`, the share of pairs in which it is",
    "policy_loss": "Loss of the policy alone",
    "grad_norm": "Norm of the gradient before it is clipped",
    "clip_fraction": "Share of trained tokens whose ratio was clipped",
    "entropy": "Mean entropy of the trained tokens, in nats",
    "kl": "Mean KL to the base model, in nats, with `algorithm.kl` above 0",
    "lr": "Learning rate",
    "k3": "Mean k3 estimate of KL(engine ‖ trainer) over trained tokens",
    "k3/age/VERSIONS": "The same for tokens whose version was so many steps old",
    "ess": "Effective sample size of the ratios trainer/engine, as a share of the trained tokens",
    "ess/age/VERSIONS": "The same by age",
    "version_step": "Step of the version that was trained from",
    "seconds/read": "Seconds in which records were read",
    "seconds/wait": "Seconds in which there was nothing to read",
    "seconds/prepare": "Seconds in which the batch was made",
    "seconds/train": "Seconds in the trainer",
    "seconds/export": "Seconds in which the version was written",
    "seconds/checkpoint": "Seconds that the loop spent on checkpoints since the update before, its "
    "own included; weights and optimizer are written beside it",
    "seconds/publish": "Seconds in which events were published, in the same span",
    "train_seconds": "Seconds of the batch's optimizer steps",
    "step_seconds": "Seconds from the batch to its version",
}
"""Each metric and its meaning. Words in capitals stand for names."""


def meaning_of(name: str) -> str | None:
    """The meaning of a metric of an update."""
    return METRICS.get(name) or next(
        (
            meaning
            for pattern, meaning in METRICS.items()
            if re.fullmatch(re.sub(r"[A-Z]+", ".+", re.escape(pattern)), name)
        ),
        None,
    )


class Stopwatch:
    """Adds up the seconds of phases."""

    def __init__(self) -> None:
        self._seconds: defaultdict[Phase, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: Phase) -> Generator[None]:
        """Count the time inside as a phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - began)

    def add(self, name: Phase, seconds: float) -> None:
        """Count seconds as a phase."""
        self._seconds[name] += seconds

    def metrics(self) -> dict[str, float]:
        """Each phase's seconds since this was asked before."""
        seconds = {f"seconds/{name}": value for name, value in self._seconds.items()}
        self._seconds.clear()
        return seconds
