"""A reward function by its reference (see `services.rewards.functions`), and the events that its
verdicts become.

What a function raises, returns wrongly or takes too much time or memory for is an error of the
function, told in the reward event. So is a name that the group waits for and the function, which
gave others, did not give: it would wait until its deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fulgurite.events import AgentReward, Episode
from fulgurite.ids import derive_id
from services.rewards.errors import RewardFailed
from services.rewards.functions import source_of
from services.rewards.sandbox import LOAD_TIMEOUT_S, Limits, Sandbox, check


class Verdict(NamedTuple):
    """What the log is told of an episode; `failure` says why there is no value."""

    rewards: list[AgentReward]
    failure: RewardFailed | None = None


class RewardPlugin:
    """A function that can be loaded. `source` tells which code gives its verdicts."""

    def __init__(self, reference: str, name: str, load_timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Raises PluginError."""
        self.name = name
        self.source = source_of(reference)
        self._reference = reference
        check(reference, load_timeout_s)

    def sandbox(self, limits: Limits) -> Sandbox:
        """Processes that run it."""
        return Sandbox(self._reference, self.name, limits)

    async def judge(self, sandbox: Sandbox, episode: Episode) -> Verdict:
        """Its verdict on an episode, by one of its own sandboxes."""
        try:
            values = await sandbox.judge(episode)
            self._require(episode, values)
        except RewardFailed as failure:
            return self.failed(episode, failure)
        return Verdict(self._verdicts(episode, values))

    def failed(self, episode: Episode, failure: RewardFailed) -> Verdict:
        """There is no value."""
        return Verdict(self._verdicts(episode, {self.name: None}, str(failure)), failure)

    def _require(self, episode: Episode, values: Mapping[str, float]) -> None:
        expected = episode.declaration.expected_rewards if episode.declaration else ()
        if values and self.name in expected and self.name not in values:
            given = ", ".join(map(repr, values))
            raise RewardFailed(
                f"it gave {given}, and not {self.name!r}, which the group waits for: give it "
                f"that too, or another name"
            )

    def _verdicts(
        self, episode: Episode, values: Mapping[str, float | None], error: str | None = None
    ) -> list[AgentReward]:
        """Expected names come last: a group may close with the last of them, and the others should
        be in it.
        """
        expected = episode.declaration.expected_rewards if episode.declaration else ()
        return [
            AgentReward(
                event_id=verdict_id(name, self.source, episode),
                # Of verdicts on an episode's revisions the last one's counts: it has more inputs,
                # but perhaps no later time.
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


def verdict_id(name: str, source: str, episode: Episode) -> str:
    """The same function's verdict on the same revision is the same event, whoever asks for it."""
    return derive_id("reward", name, source, episode.event_id)
