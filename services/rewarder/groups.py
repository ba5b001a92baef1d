"""A group in the rewarder's memory: open, to be re-closed, or closed and kept for a while for
what comes late.
"""

from __future__ import annotations

from typing import NamedTuple

from fulgurite.events import AgentReward, Episode
from fulgurite.groups.group_state import GroupState
from services.common.streaming.event_clock import SKEW_MS, EventClock
from services.common.streaming.memory import call_weight
from services.common.streaming.worker import Ack
from services.rewarder.settings import RewarderSettings

_NEVER = 1 << 62


class Group:
    """Inputs of a group that wait, and what is known of it."""

    __slots__ = (
        "closed_at",
        "gathered",
        "heard_until",
        "incomplete",
        "look_at",
        "maybe_incomplete",
        "news",
        "revision",
        "supersedes",
        "taken",
        "unacked",
    )

    def __init__(
        self,
        revision: str | None = None,
        *,
        incomplete: bool = False,
        maybe_incomplete: bool = False,
    ) -> None:
        self.gathered = GroupState()
        self.unacked: list[Ack] = []
        self.taken: list[Ack] = []
        """Of those, the inputs that are being written."""
        self.revision = revision
        """Newest in the log; None if it has not been closed, as far as is known. Empty for a
        closing that wrote nothing.
        """
        self.supersedes: str | None = None
        """Revision of the group's last `GroupClosed`, which the next one supersedes."""
        self.incomplete = incomplete
        """Whether it may have been closed and forgotten: the log is to be read before anything is
        done.
        """
        self.maybe_incomplete = maybe_incomplete
        """As `incomplete`, but unlikely: the log is read only before its rewards are given up."""
        self.news = False
        """Whether anything came since it was closed."""
        self.closed_at = 0
        self.look_at = _NEVER
        self.heard_until: int | None = None
        """Latest record time of its inputs and a little more: no event is younger, whatever a clock
        that was wrong says.
        """

    @property
    def is_open(self) -> bool:
        """Whether it waits for its first closing."""
        return self.revision is None and not self.incomplete

    def take(self, event: Episode | AgentReward, ack: Ack) -> None:
        """Hold an input until it is written of."""
        self.unacked.append(ack)
        if ack.logged_at is not None:
            self.heard_until = max(self.heard_until or 0, ack.logged_at + SKEW_MS)
        self.news |= self.gathered.add(event)

    def take_up(self) -> None:
        """All so far is about to be written: inputs that come from now on are news to it."""
        self.taken += self.unacked
        self.unacked = []
        self.news = False
        self.look_at = _NEVER

    def ack_taken(self) -> None:
        """Nothing depends on what was taken up any more."""
        taken, self.taken = self.taken, []
        for ack in taken:
            ack()

    def ack(self) -> None:
        """Nothing depends on the inputs so far any more."""
        self.take_up()
        self.ack_taken()

    def await_more(self, now: int, settings: RewarderSettings) -> None:
        """What comes late waits for what comes with it, and for the last revision to be of some
        age.
        """
        if self.look_at == _NEVER:
            self.look_at = max(
                now + int(settings.amend_wait_s * 1000),
                self.closed_at + int(settings.amend_every_s * 1000),
            )

    def is_due(self, clock: EventClock, settings: RewarderSettings) -> bool:
        """Whether it is written with what there is.

        A wait for what comes late is over by our clock alone: events that are ahead of it do not
        shorten the wait.
        """
        if not self.is_open:
            return self.look_at <= clock.our_time
        return self.closes_at(settings) <= clock.now

    def closes_at(self, settings: RewarderSettings) -> int:
        """Unix milliseconds after which it is closed for the first time, whatever is missing."""
        if not self.gathered.episodes:
            first = min(reward.event_time for reward in self.gathered.rewards.values())
            return (first if self.heard_until is None else min(first, self.heard_until)) + int(
                settings.orphan_s * 1000
            )
        return settings.due_at(
            self.gathered.declaration, self.gathered.episodes.values(), self.heard_until
        )

    def weight(self) -> int:
        """Bytes it takes in memory, roughly."""
        return (
            2_000
            + 1_000 * len(self.gathered.rewards)
            + sum(call_weight(call) for e in self.gathered.episodes.values() for call in e.calls)
        )


class Closing(NamedTuple):
    """What is remembered of a group that was closed and evicted."""

    revision: str | None
    """Newest in the log; None if the group was given up."""
    at: int
    """When it was closed, Unix milliseconds."""
