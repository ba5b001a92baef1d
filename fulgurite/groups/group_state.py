"""Collects a group's events: the last revision of each attempt, and every reward once.

The state is a function of the set of events, in any order. Revisions of an episode contain one
another, so the one with the most inputs is the last.
"""

from __future__ import annotations

from collections.abc import Sequence

from fulgurite.episodes.failure_rules import FailureRules
from fulgurite.events import AgentReward, Declaration, Episode, GroupClosed
from fulgurite.groups.closing import awaits_episodes, awaits_rewards, close_group, members
from fulgurite.groups.group_revisions import Output, group_closed
from fulgurite.groups.rewards import counted, excess

Key = tuple[str, int]
"""Rollout id and attempt."""


class GroupState:
    """The episodes and rewards of one group."""

    __slots__ = ("episodes", "rewards")

    def __init__(self) -> None:
        self.episodes: dict[Key, Episode] = {}
        self.rewards: dict[str, AgentReward] = {}

    def add(self, event: Episode | AgentReward) -> bool:
        """Add an event; returns whether it is new: neither known nor superseded."""
        if isinstance(event, AgentReward):
            known = event.event_id in self.rewards
            self.rewards.setdefault(event.event_id, event)
            return not known
        key = (event.rollout_id, event.attempt)
        held = self.episodes.get(key)
        if held is not None and not set(event.inputs) > set(held.inputs):
            return False
        self.episodes[key] = event
        return True

    @property
    def declaration(self) -> Declaration | None:
        """The group's declaration; None for undeclared traffic."""
        return next(
            (episode.declaration for episode in self.episodes.values() if episode.declaration), None
        )

    def awaits_episodes(self) -> bool:
        """Whether any rollout's final attempt is missing."""
        return awaits_episodes(self.declaration, self.episodes.values())

    def is_complete(self, rules: FailureRules) -> bool:
        """Whether all episodes and rewards that the group waits for are here."""
        episodes = self.episodes.values()
        return bool(episodes) and not (
            self.awaits_episodes()
            or awaits_rewards(self.declaration, episodes, list(self.rewards.values()), rules)
        )

    def excesses(self) -> dict[str, str]:
        """Rollouts whose rewards are too large to be combined, with an explanation."""
        rewards = list(self.rewards.values())
        finals = [
            member.final
            for member in members(self.declaration, self.episodes.values())
            if member.final is not None
        ]
        found = {
            episode.rollout_id: excess(self.declaration, counted(episode, rewards))
            for episode in finals
        }
        return {rollout_id: why for rollout_id, why in found.items() if why is not None}

    def close(self, group_id: str, rules: FailureRules) -> tuple[Output, ...]:
        """Close the group with what is known; returns the events to write. Raises UnknownRule."""
        return close_group(
            group_id, self.declaration, self.episodes.values(), list(self.rewards.values()), rules
        )

    def closed(self, outputs: Sequence[Output], supersedes: str | None) -> GroupClosed | None:
        """Make the last record for the outputs of `close`; None if there are none.

        `supersedes`: see `group_closed`.
        """
        return group_closed(outputs, self.episodes.values(), self.rewards.values(), supersedes)
