"""A reward function by its reference (see `services.rewarder.functions`), and the events that its verdicts become.

What a function raises, returns wrongly or takes too much time or memory for is an error of the function, told in the reward event.
"""

from __future__ import annotations

from collections.abc import Mapping

from fulgurite.events import AgentReward, Episode
from fulgurite.ids import derive_id
from services.rewarder.functions import source_of
from services.rewarder.sandbox import Limits, Sandbox, check


class RewardPlugin:
    """A function that can be loaded. `source` tells which code gives its verdicts."""

    def __init__(self, reference: str, name: str) -> None:
        """Raises PluginError."""
        self.name = name
        self.source = source_of(reference)
        self._reference = reference
        check(reference)

    def sandbox(self, limits: Limits) -> Sandbox:
        """Processes that run it."""
        return Sandbox(self._reference, self.name, limits)

    def verdicts(self, episode: Episode, values: Mapping[str, float | None], error: str | None = None) -> list[AgentReward]:
        """What the log is told; `error` says why there is no value.

        Expected names come last: a group may close with the last of them, and the others should be in it.
        """
        expected = episode.declaration.expected_rewards if episode.declaration else ()
        return [
            AgentReward(
                event_id=verdict_id(name, self.source, episode),
                # Of verdicts on an episode's revisions the last one's counts: it has more inputs, but perhaps no later time.
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
            for name, value in sorted(values.items(), key=lambda item: (item[0] in expected, item[0]))
        ]


def verdict_id(name: str, source: str, episode: Episode) -> str:
    """The same function's verdict on the same revision is the same event, whoever asks for it."""
    return derive_id("reward", name, source, episode.event_id)
