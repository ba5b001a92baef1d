"""Reduces the live episodes of an alias to what versions are compared by while they serve.

An episode counts for the variant that answered all its calls of the alias. What is left out of
training is left out here, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from fulgurite.calls.training_use import is_left_out
from fulgurite.enums import CallOutcome, Mode
from fulgurite.events import AgentReward, Choice, Episode, Event, EventStruct, LlmCall
from fulgurite.failures import FailureKind
from fulgurite.groups.group_state import GroupState
from fulgurite.groups.rewards import EpisodeRewards, combine, counted

_UPSTREAM_ERRORS = frozenset({CallOutcome.upstream_error, CallOutcome.upstream_timeout})
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
        self._alias = alias
        self._since_ms = since_ms
        self._groups: dict[str, GroupState] = {}

    def apply(self, event: Event | None) -> None:
        """Add an event of `episodes` or `agent.rewards`, in any order; others change nothing."""
        if isinstance(event, Episode):
            if self._counts(event):
                self._group(event.group_id).add(replace(event, calls=self._light_calls(event)))
        elif isinstance(event, AgentReward) and event.event_time >= self._since_ms:
            self._group(event.group_id).add(event)

    def by_variant(self) -> Mapping[str, list[LiveEpisode]]:
        """The episodes of each variant, by their end."""
        found: dict[str, list[LiveEpisode]] = {}
        for group in self._groups.values():
            for episode in group.episodes.values():
                variants = {call.variant for call in episode.calls}
                variant = variants.pop() if len(variants) == 1 else None
                if variant is not None:
                    found.setdefault(variant, []).append(_reduced(episode, group))
        for episodes in found.values():
            episodes.sort(key=lambda one: (one.ended_at, one.person))
        return found

    def _counts(self, episode: Episode) -> bool:
        return (
            episode.mode is Mode.live
            and episode.started_at >= self._since_ms
            and any(call.alias == self._alias and call.backend for call in episode.calls)
        )

    def _light_calls(self, episode: Episode) -> tuple[LlmCall, ...]:
        """The calls of the alias without texts and tokens, of which there may be thousands.

        None if the episode is left out. It takes the place of an earlier revision that was not.
        """
        if any(map(is_left_out, episode.calls)):
            return ()
        return tuple(
            replace(
                call,
                request=None,
                response=None,
                prompt_token_ids=None,
                choices=tuple(
                    Choice(index=choice.index, finish_reason=choice.finish_reason)
                    for choice in call.choices
                ),
            )
            for call in episode.calls
            if call.alias == self._alias and call.backend
        )

    def _group(self, group_id: str) -> GroupState:
        return self._groups.setdefault(group_id, GroupState())


def _reduced(episode: Episode, group: GroupState) -> LiveEpisode:
    calls = episode.calls
    combined = combine(episode.declaration, counted(episode, group.rewards.values()))
    return LiveEpisode(
        person=episode.subject or episode.rollout_id,
        reward=combined.total if isinstance(combined, EpisodeRewards) else None,
        failed=episode.failure in _MODEL_ERRORS
        or any(call.outcome in _UPSTREAM_ERRORS for call in calls),
        truncated=any(choice.finish_reason == _CUT for call in calls for choice in call.choices),
        seconds=sum(call.finished_at - call.started_at for call in calls) / len(calls) / 1000,
        ended_at=episode.ended_at,
    )
