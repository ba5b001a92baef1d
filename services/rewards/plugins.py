"""Scores episodes with a reward function, and turns its values into reward events.

`services.rewards.functions` says how a function is named. The reward event has no value and an
`error` if the function raises, returns a wrong type, exceeds its time or memory limit, or does not
return a name that the group expects. Without an event the group would wait until its deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fulgurite.events import AgentReward, Episode
from fulgurite.ids import derive_id
from services.rewards.errors import RewardFailed
from services.rewards.functions import source_of
from services.rewards.sandbox import LOAD_TIMEOUT_S, Limits, Sandbox, check


class Scored(NamedTuple):
    """The reward events of one episode; `failure` says why they have no value."""

    rewards: list[AgentReward]
    failure: RewardFailed | None = None


class RewardPlugin:
    """A reward function that can be loaded. `source` is its name with the hash of its code."""

    def __init__(self, reference: str, name: str, load_timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Check that the function can be loaded. Raises PluginError."""
        self.name = name
        self.source = source_of(reference)
        self._reference = reference
        check(reference, load_timeout_s)

    def sandbox(self, limits: Limits) -> Sandbox:
        """Make the processes that run the function."""
        return Sandbox(self._reference, self.name, limits)

    async def score(self, sandbox: Sandbox, episode: Episode) -> Scored:
        """Score an episode in `sandbox`. Failures of the function are returned, not raised."""
        try:
            values = await sandbox.score(episode)
            self._require(episode, values)
        except RewardFailed as failure:
            return self.failed(episode, failure)
        return Scored(self._reward_events(episode, values))

    def failed(self, episode: Episode, failure: RewardFailed) -> Scored:
        """Return the event that says why the episode has no value."""
        return Scored(self._reward_events(episode, {self.name: None}, str(failure)), failure)

    def _require(self, episode: Episode, values: Mapping[str, float]) -> None:
        expected = episode.declaration.expected_rewards if episode.declaration else ()
        if values and self.name in expected and self.name not in values:
            given = ", ".join(map(repr, values))
            raise RewardFailed(
                f"it returned {given}, but not {self.name!r}, which the group waits for: return "
                "that too, or choose another --name"
            )

    def _reward_events(
        self, episode: Episode, values: Mapping[str, float | None], error: str | None = None
    ) -> list[AgentReward]:
        """Make reward events, expected names last: the last of these may close the group."""
        expected = episode.declaration.expected_rewards if episode.declaration else ()
        return [
            AgentReward(
                event_id=reward_event_id(name, self.source, episode),
                # The reward of the last revision must be the newest: a revision has more
                # inputs, but perhaps no later time.
                event_time=episode.event_time + len(episode.inputs),
                group_id=episode.group_id,
                rollout_id=episode.rollout_id,
                attempt=episode.attempt,
                name=name,
                value=value,
                final=True,
                source=self.source,
                error=error,
            )
            for name, value in sorted(
                values.items(), key=lambda item: (item[0] in expected, item[0])
            )
        ]


def reward_event_id(name: str, source: str, episode: Episode) -> str:
    """Derive the event id from function and revision, so that scoring again repeats the event."""
    return derive_id("reward", name, source, episode.event_id)
