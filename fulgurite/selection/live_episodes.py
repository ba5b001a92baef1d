"""Reduces the live episodes of an alias to what versions are compared by while they serve.

An episode counts for the variant that answered all its calls of the alias. What is left out of
training is left out here, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from fulgurite.calls.training_use import is_left_out
from fulgurite.enums import Mode
from fulgurite.events import Episode, Event, EventStruct
from fulgurite.failures import FailureKind
from fulgurite.selection.answered import answered_calls, is_failed_by_server, variant_of
from fulgurite.selection.rollout_fold import RolloutFold

_MODEL_ERRORS = frozenset(
    {
        FailureKind.context_overflow,
        FailureKind.invalid_output,
        FailureKind.loop_detected,
        FailureKind.tool_parse_error,
    }
)
_CUT = "length"
"""The finish reason of an answer that its length limit cut."""


class LiveEpisode(EventStruct, frozen=True, kw_only=True):
    """One live episode."""

    person: str
    """The end user; without a subject, the rollout stands for one."""
    reward: float | None
    failed: bool
    """Whether an upstream failed, or the model's answers could not be used."""
    truncated: bool
    """Whether an answer was cut by its length limit."""
    seconds: float
    """Mean time of a call."""
    ended_at: int
    """Unix milliseconds."""


class LiveEpisodes:
    """The live episodes of an alias since a time: a function of the set of events."""

    def __init__(self, alias: str, since_ms: int) -> None:
        self._fold = RolloutFold(lambda episode: _served_of(episode, alias, since_ms), _paid)

    def apply(self, event: Event | None) -> None:
        """Add an event of `episodes` or `agent.rewards`, in any order; others change nothing."""
        self._fold.apply(event)

    def by_variant(self) -> Mapping[str, list[LiveEpisode]]:
        """The episodes of each variant, by their end."""
        found: dict[str, list[LiveEpisode]] = {}
        for served in self._fold.values():
            if served.variant is not None:
                found.setdefault(served.variant, []).append(served.episode)
        for episodes in found.values():
            episodes.sort(key=lambda one: (one.ended_at, one.person))
        return found


class _Served(EventStruct, frozen=True):
    variant: str | None
    """None: it counts for none. It stays, for earlier revisions may come after it."""
    episode: LiveEpisode


def _served_of(episode: Episode, alias: str, since_ms: int) -> _Served | None:
    calls = answered_calls(episode, alias)
    if not calls or episode.mode is not Mode.live or episode.started_at < since_ms:
        return None
    variant = None if any(map(is_left_out, episode.calls)) else variant_of(calls)
    found = LiveEpisode(
        person=episode.subject or episode.rollout_id,
        reward=None,
        failed=episode.failure in _MODEL_ERRORS or any(map(is_failed_by_server, calls)),
        truncated=any(choice.finish_reason == _CUT for call in calls for choice in call.choices),
        seconds=sum(call.finished_at - call.started_at for call in calls) / len(calls) / 1000,
        ended_at=episode.ended_at,
    )
    return _Served(variant, found)


def _paid(served: _Served, reward: float, _: int) -> _Served:
    return replace(served, episode=replace(served.episode, reward=reward))
