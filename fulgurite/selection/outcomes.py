"""Reduces the rollouts of an alias to the outcomes that shares are decided by."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fulgurite.cost.prices import Prices
from fulgurite.enums import Mode
from fulgurite.events import Episode, EventStruct
from fulgurite.selection.answered import answered_calls, is_failed_by_server
from fulgurite.selection.logged import LoggedEpisode, logged_episode
from fulgurite.selection.rollout_fold import RolloutFold


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
    ended_at: int
    """End of the episode, Unix milliseconds. A late reward does not move it."""
    known_at: int
    """Event time of the newest event that it is made of."""


class AliasOutcomes:
    """The outcomes of one alias: a function of the set of events."""

    def __init__(self, alias: str, prices: Prices | None, remembered: int) -> None:
        """`remembered`: the latest outcomes that are kept."""
        self._fold = RolloutFold(
            lambda episode: _outcome_of(episode, alias, prices), _paid, remembered
        )

    def apply(self, event: object) -> bool:
        """Apply an event; False if it changes no outcome."""
        return self._fold.apply(event)

    def ordered(self) -> list[Outcome]:
        """All outcomes, in the order in which they became known."""
        return sorted(self._fold.values(), key=lambda one: (one.known_at, one.rollout_id))


def of_variants(outcomes: Iterable[Outcome], variants: Iterable[str]) -> dict[str, list[Outcome]]:
    """The outcomes of each variant, in their order."""
    found: dict[str, list[Outcome]] = {variant: [] for variant in variants}
    for one in outcomes:
        if one.episode.variant in found:
            found[one.episode.variant].append(one)
    return found


def _outcome_of(episode: Episode, alias: str, prices: Prices | None) -> Outcome | None:
    logged = None if episode.mode is Mode.val else logged_episode(episode, alias, 0.0, prices)
    if logged is None:
        return None
    calls = answered_calls(episode, alias)
    return Outcome(
        rollout_id=episode.rollout_id,
        episode=logged,
        is_rewarded=False,
        is_failed=any(map(is_failed_by_server, calls)),
        call_seconds=logged.seconds / len(calls),
        started_at=calls[0].started_at,
        ended_at=episode.ended_at,
        known_at=episode.event_time,
    )


def _paid(outcome: Outcome, reward: float, known_at: int) -> Outcome:
    return msgspec.structs.replace(
        outcome,
        episode=msgspec.structs.replace(outcome.episode, reward=reward),
        is_rewarded=True,
        known_at=known_at,
    )
