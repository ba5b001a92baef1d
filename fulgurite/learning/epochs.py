"""Folds claims: who holds the newest epoch. The first claim of an epoch wins."""

from __future__ import annotations


class Epochs:
    """The fold. Apply claims in log order.

    A claimed epoch shuts out lower ones: what a superseded holder still writes does not count.
    """

    def __init__(self) -> None:
        self.epoch = -1
        """The epoch whose holder counts; -1 before any claim."""
        self.highest = 0
        """The highest epoch that any event names, whether it counts or not; 0 before any."""
        self.holder: str | None = None
        """Who claimed `epoch` first."""

    def claim(self, epoch: int, claimant: str) -> None:
        """Apply a claim."""
        self.highest = max(self.highest, epoch)
        if epoch > self.epoch:
            self.epoch, self.holder = epoch, claimant

    def counts(self, epoch: int, writer: str) -> bool:
        """Whether an event of this epoch and writer counts."""
        self.highest = max(self.highest, epoch)
        return (epoch, writer) == (self.epoch, self.holder)
