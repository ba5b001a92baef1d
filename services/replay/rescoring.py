"""Scores rebuilt episodes with reward functions, within limits of time, memory and concurrency.

Failures of a function are counted and never raised. A reward has the event id that a live reward
worker would have given it. A reward that the same code (`source` has the file's hash) gave to the
episode under this name is reused, unless all episodes are to be scored again (`anew`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, product
from types import TracebackType
from typing import NamedTuple, Self

from fulgurite.errors import BadClaim
from fulgurite.events import AgentReward, Episode
from fulgurite.groups.closing import members
from services.common.blobs.blob_store import redeemed_episode
from services.replay.groups import Group
from services.rewards.errors import RewardFailed
from services.rewards.plugins import RewardPlugin, Scored, reward_event_id
from services.rewards.sandbox import Limits, Sandbox

_AT_ONCE = 64
"""Groups that are in memory while their episodes are rescored."""


class Rescored(NamedTuple):
    """A group with the rewards of other functions."""

    group: Group
    episodes: tuple[Episode, ...]
    rewards: tuple[AgentReward, ...]


class Rescorer:
    """Scores the episodes of groups with one or more functions. Close it, or use it in a `with`.

    `given`, `failed` and `reused` count rewards, `why` failures by their reason. A failure
    that is reused counts as both.
    """

    def __init__(self, plugins: Sequence[RewardPlugin], limits: Limits, *, anew: bool) -> None:
        """`limits`: apply to each function."""
        self._functions = [(plugin, plugin.sandbox(limits)) for plugin in plugins]
        self._anew = anew
        self.given = 0
        self.failed = 0
        self.reused = 0
        self.why: Counter[str] = Counter()

    async def rewards(self, group: Group, episodes: Sequence[Episode]) -> tuple[AgentReward, ...]:
        """The group's rewards; those of the functions replace others of the same name."""
        finals = [
            member.final
            for member in members(group.declaration, episodes)
            if member.final is not None
        ]
        asked = list(product(self._functions, finals))
        rescored = await asyncio.gather(
            *(self._rewards(*function, episode, group.rewards) for function, episode in asked)
        )
        mine = [reward for rewards in rescored for reward in rewards]
        replaced = {(reward.rollout_id, reward.name) for reward in mine} | {
            (one.rollout_id, plugin.name) for (plugin, _), one in asked
        }
        kept = [r for r in group.rewards if (r.rollout_id, r.name) not in replaced]
        return (*kept, *mine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the functions' processes."""
        for _, sandbox in self._functions:
            sandbox.close()

    async def _rewards(
        self, plugin: RewardPlugin, sandbox: Sandbox, episode: Episode, known: Sequence[AgentReward]
    ) -> list[AgentReward]:
        if not self._anew:
            before = [r for r in known if r.source == plugin.source and _is_about(r, episode)]
            # Where its name is not among them, the function may have been asked under another one.
            # Rewards of actions come before the episode's, which a crash may have kept away.
            if any(reward.name == plugin.name and reward.call_id is None for reward in before):
                self.reused += len(before)
                for failed in [reward for reward in before if reward.value is None]:
                    self.failed += 1
                    self.why[failed.error or "unknown reason"] += 1
                return before
        rewards, failure = await _score(plugin, sandbox, episode)
        self.given += len(rewards)
        if failure is not None:
            self.failed += 1
            self.why[str(failure)] += 1
        return rewards


async def _score(plugin: RewardPlugin, sandbox: Sandbox, episode: Episode) -> Scored:
    try:
        redeemed = redeemed_episode(episode)
    except BadClaim as error:
        # A live worker leaves a dead letter instead: a replay writes none.
        return plugin.failed(episode, RewardFailed(str(error)))
    return await plugin.score(sandbox, redeemed)


def _is_about(reward: AgentReward, episode: Episode) -> bool:
    """Whether the reward is for this revision of the episode."""
    return reward.event_id == reward_event_id(
        reward.name, reward.source, episode, reward.call_id, reward.choice
    )


def rescored(groups: Iterable[Group], rescorer: Rescorer) -> Iterator[Rescored]:
    """Yield the groups in their order, each with its episodes and new rewards."""
    remaining = iter(groups)
    with asyncio.Runner() as runner:
        while batch := list(islice(remaining, _AT_ONCE)):
            yield from runner.run(_rescored(batch, rescorer))


async def _rescored(batch: Sequence[Group], rescorer: Rescorer) -> list[Rescored]:
    episodes = [group.episodes() for group in batch]
    rewards = await asyncio.gather(
        *(rescorer.rewards(group, own) for group, own in zip(batch, episodes, strict=True))
    )
    return [Rescored(*one) for one in zip(batch, episodes, rewards, strict=True)]
