"""A reward function over rebuilt episodes: a bounded number at a time, each time-limited, failures told and never raised.

A verdict has the id that a live reward worker would have given it. One that this very code (`source` has the file's hash) has already
given to an episode is reused, unless everything is to be judged anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from fulgurite.closing import members
from fulgurite.errors import BadClaim
from fulgurite.events import AgentReward, Episode
from fulgurite.ids import derive_id
from services.claims import redeemed
from services.replay.groups import Group
from services.rewarder.reward_plugins import RewardFailed, RewardPlugin


class Judge:
    """Judges groups with one function; `failed`, `given` and `reused` count verdicts."""

    def __init__(self, plugin: RewardPlugin, *, concurrency: int, timeout_s: float, anew: bool) -> None:
        self._plugin = plugin
        self._places = asyncio.Semaphore(concurrency)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="reward")
        self._timeout_s = timeout_s
        self._anew = anew
        self.given = 0
        self.failed = 0
        self.reused = 0

    async def rewards(self, group: Group, episodes: Sequence[Episode]) -> tuple[AgentReward, ...]:
        """The group's rewards with this function's in place of those that had their names."""
        finals = [member.final for member in members(group.declaration, episodes) if member.final is not None]
        judged = await asyncio.gather(*(self._rewards(episode, group.rewards) for episode in finals))
        mine = [reward for rewards in judged for reward in rewards]
        replaced = {(reward.rollout_id, reward.name) for reward in mine} | {(final.rollout_id, self._plugin.name) for final in finals}
        kept = [r for r in group.rewards if (r.rollout_id, r.name) not in replaced and r.source != self._plugin.source]
        return (*kept, *mine)

    def close(self) -> None:
        """A function that hangs is left to itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _rewards(self, episode: Episode, known: Sequence[AgentReward]) -> list[AgentReward]:
        if not self._anew:
            before = [r for r in known if r.source == self._plugin.source and _is_about(r, episode)]
            if before:
                self.reused += len(before)
                return before
        async with self._places:
            values, error = await self._judge(episode)
        self.given += len(values)
        self.failed += error is not None
        return [
            AgentReward(
                event_id=derive_id("reward", name, self._plugin.source, episode.event_id),
                event_time=episode.event_time,
                group_id=episode.group_id,
                rollout_id=episode.rollout_id,
                attempt=episode.attempt,
                name=name,
                value=value,
                final=True,
                source=self._plugin.source,
                error=error,
            )
            for name, value in sorted(values.items())
        ]

    async def _judge(self, episode: Episode) -> tuple[dict[str, float | None], str | None]:
        try:
            whole = msgspec.structs.replace(episode, calls=tuple(redeemed(call) for call in episode.calls))
            return dict(await self._plugin.judge(whole, self._pool, self._timeout_s)), None
        except (BadClaim, RewardFailed) as error:
            return {self._plugin.name: None}, str(error)


def _is_about(reward: AgentReward, episode: Episode) -> bool:
    """Whether a verdict was given to this revision of the episode."""
    return reward.event_id == derive_id("reward", reward.name, reward.source, episode.event_id)
