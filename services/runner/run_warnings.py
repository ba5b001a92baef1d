"""What a run warns people of, in words, each once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from fulgurite.enums import FilterReason, Mode
from fulgurite.events import AgentReward, LedgerEntry
from fulgurite.learning.learners import Learners
from fulgurite.ledger.remedies import REMEDIES
from services.runner.options import RunOptions

_REWARD_ERRORS = 5
"""How many different errors of reward functions are shown."""
_STOPPING = (FilterReason.drifted, FilterReason.collapsed)
"""Why learners make no step and end."""


class Warnings:
    """The warnings of one run."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` shows a warning."""
        self._tell = tell
        self._told: set[str] = set()
        self._reward_errors: set[tuple[str, str]] = set()
        self._stopped_learners: set[str] = set()

    def of_options(self, options: RunOptions, policy: str, learners: Learners) -> None:
        """Warn of options that cannot work, before anything is started."""
        if options.mode is not Mode.train or options.expert is not None:
            return
        config = learners.config(policy)
        if options.n == 1 and not config.trains_groups_of_one:
            self._tell(
                "-n 1: a group of one rollout has no baseline, so nothing is trained "
                "(no_baseline): use -n 2 or more, or set batch.baseline for the learner"
            )
        if not learners.train(policy):
            self._tell(
                f"no learner has claimed the policy {policy!r} (FULGURITE_POLICY): nothing is "
                "trained until one is started"
            )
        if config.groups and options.max_ahead is not None and options.max_ahead < config.groups:
            wait = f" ({config.max_wait_s:g} s)" if config.max_wait_s else ""
            self._tell(
                f"--max-ahead {options.max_ahead} is less than the learner's batch of "
                f"{config.groups} groups (batch.groups), so every step waits "
                f"for batch.max_wait_s{wait}: raise --max-ahead"
            )

    def of_reward(self, reward: AgentReward) -> None:
        """Warn if a reward function failed: of the first few different errors."""
        if (
            reward.value is not None
            or reward.error is None
            or len(self._reward_errors) >= _REWARD_ERRORS
        ):
            return
        kind = (reward.name, reward.error)
        if kind not in self._reward_errors:
            self._reward_errors.add(kind)
            self._tell(
                f"the reward {reward.name!r} failed for rollout {reward.rollout_id}: {reward.error}"
            )

    def of_entry(self, entry: LedgerEntry) -> None:
        """Warn if a learner has stopped. The run may go on without it."""
        reason = entry.reason
        if reason is None or reason not in _STOPPING or entry.policy in self._stopped_learners:
            return
        self._stopped_learners.add(entry.policy)
        self._tell(f"the learner of {entry.policy} has stopped ({reason}): {REMEDIES[reason]}")

    def of_state(self, problems: Iterable[str]) -> None:
        """Warn of what is wrong now, unless it was said before with other numbers."""
        new = [line for line in problems if _without_numbers(line) not in self._told]
        self._told.update(map(_without_numbers, new))
        if new:
            self._tell("\n".join(new))


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", text)
