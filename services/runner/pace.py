"""Decides whether the runner may start another group, or must wait for the learner. No I/O.

At most `max_ahead` groups are started and not settled, or any number where it is None. A group is
*settled* when the ledger entries of the policy's learner for it have come and the version they
name, or a later one, is served. A group is given up `GIVE_UP_MS` after its deadline.
"""

from __future__ import annotations

import math

from fulgurite.enums import ApplyOutcome
from fulgurite.events import LedgerEntry, PolicyApplied
from fulgurite.learning.batching import LEARNER, BatchRules
from fulgurite.versions import MalformedVersion, Version, base_version, parse_version

GIVE_UP_MS = 600_000
"""Milliseconds after a group's deadline. Long, because it is for groups that were lost: a slow
learner is no reason to start more groups.
"""


def usual_max_ahead(batch: int | None) -> int:
    """Return how many groups may wait for a learner with batches of so many groups. None: of the
    default size.

    They are a batch and a half. While a step is made, half a batch is sampled by the version before
    it. With more, whole batches would be; with fewer, an engine would have nothing to do meanwhile.
    """
    return math.ceil(1.5 * (batch or BatchRules().groups_per_step))


class Pace:
    """Counts the groups that wait for the learner, and the new versions."""

    def __init__(self, policy: str, max_ahead: int | None) -> None:
        self.max_ahead = max_ahead
        self._policy = policy
        self._deadlines: dict[str, int] = {}
        self._awaited: dict[str, Version] = {}
        self.served: Version = base_version(policy)
        self.updates: list[Version] = []
        self.settled = 0

    def start(self, group_id: str, deadline: int) -> None:
        """Note that a group has been declared."""
        self._deadlines[group_id] = deadline

    def may_start(self, now_ms: int) -> bool:
        """Whether another group may be started now."""
        self._give_up(now_ms)
        return self.max_ahead is None or len(self._deadlines) < self.max_ahead

    def is_idle(self, now_ms: int) -> bool:
        """Whether no group waits for the learner."""
        self._give_up(now_ms)
        return not self._deadlines

    @property
    def ahead(self) -> int:
        """How many groups are started and not settled."""
        return len(self._deadlines)

    def on_ledger(self, entry: LedgerEntry) -> None:
        """Settle a group, or note the version that settles it."""
        if (
            entry.source != LEARNER
            or entry.policy != self._policy
            or entry.group_id not in self._deadlines
        ):
            return
        version = _version(entry.version)
        if version is None or version <= self.served:
            self._settle(entry.group_id)
        else:
            self._awaited[entry.group_id] = version

    def on_applied(self, applied: PolicyApplied) -> None:
        """Note that a backend serves a version."""
        version = _version(applied.version)
        if (
            applied.policy != self._policy
            or applied.outcome is not ApplyOutcome.applied
            or version is None
            or version <= self.served
        ):
            return
        self.served = version
        if version.step > 0:
            self.updates.append(version)
        for group_id in [group for group, awaited in self._awaited.items() if awaited <= version]:
            self._settle(group_id)

    def pass_over(self, group_id: str) -> None:
        """Note that no action of the group is the policy's: its learner has nothing to settle."""
        self._settle(group_id)

    def begin_with(self, version: Version) -> None:
        """Note the version that is served when the run starts; it does not count as an update."""
        self.served = max(self.served, version)

    def _give_up(self, now_ms: int) -> None:
        for group_id in [
            group for group, deadline in self._deadlines.items() if deadline + GIVE_UP_MS < now_ms
        ]:
            self._settle(group_id)

    def _settle(self, group_id: str) -> None:
        if self._deadlines.pop(group_id, None) is not None:
            self.settled += 1
        self._awaited.pop(group_id, None)


def _version(text: str | None) -> Version | None:
    if text is None:
        return None
    try:
        return parse_version(text)
    except MalformedVersion:
        return None
