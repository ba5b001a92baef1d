"""Folds `policy.updates` of one policy: which learner holds its epoch, and which updates count.

The first claim of an epoch wins, and a claimed epoch shuts out lower ones: what a superseded
learner still publishes is ignored, what it had published before stays.
"""

from __future__ import annotations

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.learning.epochs import Epochs


class PolicyEpochs(Epochs):
    """The fold for one policy. Apply every event of the policy, in log order.

    Which of the updates that count is the newest is left to the caller: the greatest version for a
    backend that loads it, the last event for who reports it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.claims: dict[int, PolicyUpdate] = {}
        """The first claim of each epoch, in log order."""

    def apply(self, event: PolicyUpdate) -> bool:
        """Return whether the event is an update that counts: of the learner that holds the
        epoch.
        """
        if event.kind is UpdateKind.claim:
            self.claims.setdefault(event.epoch, event)
            self.claim(event.epoch, event.learner_id)
            return False
        return self.counts(event.epoch, event.learner_id) and event.kind is UpdateKind.update
