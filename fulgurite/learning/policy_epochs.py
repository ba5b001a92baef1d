"""Folds `policy.updates` of one policy: which learner holds its epoch, and which updates count.

The first claim of an epoch wins, and a claimed epoch shuts out lower ones: what a superseded
learner still publishes is ignored, what it had published before stays.
"""

from __future__ import annotations

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate


class PolicyEpochs:
    """The fold for one policy. Apply every event of the policy, in log order.

    Which of the updates that count is the newest is left to the caller: the greatest version for a
    backend that loads it, the last event for who reports it.
    """

    def __init__(self) -> None:
        self.epoch = -1
        """The epoch whose learner's updates count; -1 before any claim."""
        self.highest = 0
        """The highest epoch that any event names, whether it counts or not; 0 before any."""
        self.claims: dict[int, PolicyUpdate] = {}
        """The first claim of each epoch, in log order."""
        self._learner_id: str | None = None

    def apply(self, event: PolicyUpdate) -> bool:
        """Return whether the event is an update that counts: of the learner that holds the
        epoch.
        """
        self.highest = max(self.highest, event.epoch)
        if event.kind is UpdateKind.claim:
            self._apply_claim(event)
            return False
        return event.kind is UpdateKind.update and (event.epoch, event.learner_id) == (
            self.epoch,
            self._learner_id,
        )

    def _apply_claim(self, claim: PolicyUpdate) -> None:
        self.claims.setdefault(claim.epoch, claim)
        if claim.epoch > self.epoch:
            self.epoch, self._learner_id = claim.epoch, claim.learner_id
