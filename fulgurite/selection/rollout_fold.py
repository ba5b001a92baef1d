"""Folds `episodes` and `agent.rewards` into one value for each rollout.

The result depends on the set of events alone, not on their order or on how often they come: of an
attempt the revision with the most inputs counts, of a rollout its last attempt, and rewards are
combined as when a group closes. A reward may come before its episode, or long after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from fulgurite.events import AgentReward, Episode
from fulgurite.groups.closing import members
from fulgurite.groups.rewards import EpisodeRewards, combine, counted

T = TypeVar("T")

_WAITING = 100_000
"""Rollouts whose rewards are kept while their episode has not come."""


class _Rollout(msgspec.Struct, Generic[T]):
    attempts: dict[int, Episode] = {}
    """The last revision of each attempt, without texts and tokens."""
    rewards: dict[str, AgentReward] = {}
    reduced: dict[int, T | None] = {}
    """Attempts as without rewards."""


class RolloutFold(Generic[T]):
    """The fold."""

    def __init__(
        self,
        reduce: Callable[[Episode], T | None],
        pay: Callable[[T, float, int], T],
        remembered: int | None = None,
    ) -> None:
        """`reduce`: what an episode says without rewards; None: it does not count. `pay`: the same
        with its reward, and with the event time of the newest reward in Unix milliseconds.
        `remembered`: the latest rollouts that are kept; None: all of them.
        """
        self._reduce = reduce
        self._pay = pay
        self._remembered = remembered
        self._rollouts: dict[str, _Rollout[T]] = {}
        self._waiting: dict[str, dict[str, AgentReward]] = {}
        """Rewards of rollouts without an episode, the oldest first."""
        self._values: dict[str, tuple[int, T]] = {}
        """With the event time of the newest event that each is made of."""

    def apply(self, event: object) -> bool:
        """Apply an event; False if it changes no value."""
        if isinstance(event, Episode):
            return self._apply_episode(event)
        return isinstance(event, AgentReward) and self._apply_reward(event)

    def values(self) -> Iterable[T]:
        """The values of all rollouts that have one."""
        return (value for _, value in self._values.values())

    def _apply_episode(self, episode: Episode) -> bool:
        found = self._reduce(episode)
        known = self._rollouts.get(episode.rollout_id)
        if found is None and known is None:
            return False
        if known is None:
            known = self._rollouts[episode.rollout_id] = _Rollout(
                rewards=self._waiting.pop(episode.rollout_id, {})
            )
        earlier = known.attempts.get(episode.attempt)
        if earlier is not None and _rank(earlier) >= _rank(episode):
            return False
        known.attempts[episode.attempt] = _slim(episode)
        known.reduced[episode.attempt] = found
        return self._renew(episode.rollout_id, known)

    def _apply_reward(self, reward: AgentReward) -> bool:
        known = self._rollouts.get(reward.rollout_id)
        if known is None:
            self._waiting.setdefault(reward.rollout_id, {})[reward.event_id] = reward
            if len(self._waiting) > _WAITING:
                del self._waiting[next(iter(self._waiting))]
            return False
        if reward.event_id in known.rewards:
            return False
        known.rewards[reward.event_id] = reward
        return self._renew(reward.rollout_id, known)

    def _renew(self, rollout_id: str, known: _Rollout[T]) -> bool:
        before = self._values.pop(rollout_id, None)
        found = self._combined(known)
        if found is not None:
            self._values[rollout_id] = found
            if self._remembered is not None and len(self._values) > self._remembered:
                oldest = min(self._values, key=lambda name: self._values[name][0])
                del self._values[oldest], self._rollouts[oldest]
        return before != found

    def _combined(self, known: _Rollout[T]) -> tuple[int, T] | None:
        """The value of the rollout's final attempt; None while another one follows."""
        attempts = list(known.attempts.values())
        declaration = attempts[0].declaration
        final = next(
            (
                member.final
                for member in members(declaration, attempts)
                if member.final is not None and member.rollout_id == attempts[0].rollout_id
            ),
            None,
        )
        found = None if final is None else known.reduced.get(final.attempt)
        if final is None or found is None:
            return None
        paid = counted(final, known.rewards.values())
        combined = combine(declaration, paid)
        if not isinstance(combined, EpisodeRewards):
            return final.event_time, found
        paid_at = max(final.event_time, *(reward.event_time for reward in paid))
        return paid_at, self._pay(found, combined.total, paid_at)


def _rank(episode: Episode) -> tuple[int, str]:
    return len(episode.inputs), episode.revision


def _slim(episode: Episode) -> Episode:
    """The episode without what combining its rewards does not need."""
    calls = tuple(
        msgspec.structs.replace(
            call,
            request=None,
            response=None,
            prompt_token_ids=None,
            choices=tuple(type(choice)(index=choice.index) for choice in call.choices),
            pieces=(),
        )
        for call in episode.calls
    )
    return msgspec.structs.replace(episode, calls=calls)
