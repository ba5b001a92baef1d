"""Folds `episodes` and `agent.rewards` into the outcomes of an alias's rollouts.

The result depends on the set of events alone, not on their order or on how often they come: of an
attempt the revision with the most inputs counts, of a rollout its last attempt, and rewards are
combined as when a group closes. A reward may come before its episode, or long after it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fulgurite.cost.prices import Prices
from fulgurite.enums import CallOutcome, Mode
from fulgurite.events import AgentReward, Episode, EventStruct
from fulgurite.failures import FailureKind
from fulgurite.groups.closing import members
from fulgurite.groups.rewards import EpisodeRewards, combine, counted
from fulgurite.selection.logged import LoggedEpisode, logged_episode

_FAILURES = frozenset(
    {
        FailureKind.upstream_error,
        FailureKind.upstream_timeout,
        FailureKind.rate_limited,
        FailureKind.context_overflow,
        FailureKind.infrastructure,
    }
)
"""What a variant may do to a call. A request that every model server refuses is not among it."""
_WAITING = 100_000
"""Rollouts whose rewards are kept while their episode has not come."""


class Outcome(EventStruct, frozen=True, kw_only=True):
    """What became of one rollout."""

    rollout_id: str
    episode: LoggedEpisode
    """Its reward is 0 where there is none."""
    is_rewarded: bool
    is_failed: bool
    """Whether the model server failed a call of the alias."""
    call_seconds: float
    """Mean time of the alias's calls."""
    started_at: int
    """First call of the alias, Unix milliseconds."""
    known_at: int
    """Event time of the newest event that it is made of."""


class _Rollout(msgspec.Struct):
    attempts: dict[int, Episode] = {}
    """The last revision of each attempt, without texts and tokens."""
    rewards: dict[str, AgentReward] = {}
    logged: dict[int, Outcome] = {}
    """Attempts with calls of the alias, as without rewards."""


class AliasOutcomes:
    """The outcomes of one alias."""

    def __init__(self, alias: str, prices: Prices | None, remembered: int) -> None:
        """`remembered`: the latest outcomes that are kept."""
        self._alias = alias
        self._prices = prices
        self._remembered = remembered
        self._rollouts: dict[str, _Rollout] = {}
        self._waiting: dict[str, dict[str, AgentReward]] = {}
        """Rewards of rollouts without an episode, the oldest first."""
        self._outcomes: dict[str, Outcome] = {}

    def apply(self, event: object) -> bool:
        """Apply an event; False if it changes no outcome."""
        if isinstance(event, Episode):
            return event.mode is not Mode.val and self._apply_episode(event)
        return isinstance(event, AgentReward) and self._apply_reward(event)

    def ordered(self) -> list[Outcome]:
        """All outcomes, in the order in which they became known."""
        return sorted(self._outcomes.values(), key=lambda one: (one.known_at, one.rollout_id))

    def _apply_episode(self, episode: Episode) -> bool:
        found = _outcome_of(episode, self._alias, self._prices)
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
        if found is not None:
            known.logged[episode.attempt] = found
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

    def _renew(self, rollout_id: str, known: _Rollout) -> bool:
        before = self._outcomes.pop(rollout_id, None)
        found = self._combined(known)
        if found is not None:
            self._outcomes[rollout_id] = found
            if len(self._outcomes) > self._remembered:
                oldest = min(self._outcomes.values(), key=lambda one: one.known_at).rollout_id
                del self._outcomes[oldest], self._rollouts[oldest]
        return before != found

    def _combined(self, known: _Rollout) -> Outcome | None:
        """The outcome of the rollout's final attempt; None while another one follows."""
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
        found = None if final is None else known.logged.get(final.attempt)
        if final is None or found is None:
            return None
        paid = counted(final, known.rewards.values())
        combined = combine(declaration, paid)
        if not isinstance(combined, EpisodeRewards):
            return found
        return msgspec.structs.replace(
            found,
            episode=msgspec.structs.replace(found.episode, reward=combined.total),
            is_rewarded=True,
            known_at=max(found.known_at, *(reward.event_time for reward in paid)),
        )


def of_variants(outcomes: Iterable[Outcome], variants: Iterable[str]) -> dict[str, list[Outcome]]:
    """The outcomes of each variant, in their order."""
    found: dict[str, list[Outcome]] = {variant: [] for variant in variants}
    for one in outcomes:
        if one.episode.variant in found:
            found[one.episode.variant].append(one)
    return found


def _outcome_of(episode: Episode, alias: str, prices: Prices | None) -> Outcome | None:
    logged = logged_episode(episode, alias, 0.0, prices)
    if logged is None:
        return None
    calls = [call for call in episode.calls if call.alias == alias and call.backend]
    return Outcome(
        rollout_id=episode.rollout_id,
        episode=logged,
        is_rewarded=False,
        is_failed=any(
            call.outcome is not CallOutcome.success and call.failure in _FAILURES for call in calls
        ),
        call_seconds=logged.seconds / len(calls),
        started_at=calls[0].started_at,
        known_at=episode.event_time,
    )


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
