"""Reward functions over rebuilt episodes: a bounded number at a time, each in bounded time and
memory, failures told and never raised.

A verdict has the id that a live reward worker would have given it. One that this very code
(`source` has the file's hash) has already given to an episode under this name is reused, unless
everything is to be judged anew.
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
from services.rewards.plugins import RewardPlugin, Verdict, verdict_id
from services.rewards.sandbox import Limits, Sandbox

_AT_ONCE = 64
"""Groups that are in memory while their episodes are judged."""


class Judged(NamedTuple):
    """A group and its rewards by other functions."""

    group: Group
    episodes: tuple[Episode, ...]
    rewards: tuple[AgentReward, ...]


class Judge:
    """Judges groups with one function or several. Close it, or use it in a `with`.

    `given`, `failed` and `reused` count verdicts, `why` failures by what was told; a failure that
    is reused is one of both.
    """

    def __init__(self, plugins: Sequence[RewardPlugin], limits: Limits, *, anew: bool) -> None:
        """`limits`: of each of them."""
        self._functions = [(plugin, plugin.sandbox(limits)) for plugin in plugins]
        self._anew = anew
        self.given = 0
        self.failed = 0
        self.reused = 0
        self.why: Counter[str] = Counter()

    async def rewards(self, group: Group, episodes: Sequence[Episode]) -> tuple[AgentReward, ...]:
        """The group's rewards with these functions' in place of those that had their names."""
        finals = [
            member.final
            for member in members(group.declaration, episodes)
            if member.final is not None
        ]
        asked = list(product(self._functions, finals))
        judged = await asyncio.gather(
            *(self._rewards(*function, episode, group.rewards) for function, episode in asked)
        )
        mine = [reward for rewards in judged for reward in rewards]
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
        """Ends the functions' processes."""
        for _, sandbox in self._functions:
            sandbox.close()

    async def _rewards(
        self, plugin: RewardPlugin, sandbox: Sandbox, episode: Episode, known: Sequence[AgentReward]
    ) -> list[AgentReward]:
        if not self._anew:
            before = [r for r in known if r.source == plugin.source and _is_about(r, episode)]
            # Where its name is not among them, the function may have been asked under another one.
            if any(reward.name == plugin.name for reward in before):
                self.reused += len(before)
                for failed in [reward for reward in before if reward.value is None]:
                    self.failed += 1
                    self.why[failed.error or "no reason was told"] += 1
                return before
        rewards, failure = await _judge(plugin, sandbox, episode)
        self.given += len(rewards)
        if failure is not None:
            self.failed += 1
            self.why[str(failure)] += 1
        return rewards


async def _judge(plugin: RewardPlugin, sandbox: Sandbox, episode: Episode) -> Verdict:
    try:
        redeemed = redeemed_episode(episode)
    except BadClaim as error:
        # A live worker leaves a dead letter instead: a replay writes none.
        return plugin.failed(episode, RewardFailed(str(error)))
    return await plugin.judge(sandbox, redeemed)


def _is_about(reward: AgentReward, episode: Episode) -> bool:
    """Whether a verdict was given to this revision of the episode."""
    return reward.event_id == verdict_id(reward.name, reward.source, episode)


def judged(groups: Iterable[Group], judge: Judge) -> Iterator[Judged]:
    """Groups in their order, each with its episodes and the rewards that the judge gives them."""
    remaining = iter(groups)
    with asyncio.Runner() as runner:
        while batch := list(islice(remaining, _AT_ONCE)):
            yield from runner.run(_judged(batch, judge))


async def _judged(batch: Sequence[Group], judge: Judge) -> list[Judged]:
    episodes = [group.episodes() for group in batch]
    rewards = await asyncio.gather(
        *(judge.rewards(group, own) for group, own in zip(batch, episodes, strict=True))
    )
    return [Judged(*one) for one in zip(batch, episodes, rewards, strict=True)]
