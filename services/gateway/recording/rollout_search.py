"""Finds in the log what it holds of one rollout, and whether it holds a call or a rollout.
Blocking.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from fulgurite.avro.codec import Codec
from fulgurite.events import AgentReward, AgentStatus, Event, LlmCall
from fulgurite.ids import CompletionRef, RolloutRef
from fulgurite.topics import AGENT_REWARDS, AGENT_STATUS, LLM_CALLS, Topic
from services.common.kafka.settings import KafkaSettings
from services.gateway.recording.log_search import LogSearch, SearchTooLong, open_search
from services.gateway.recording.rollout_view import CallView, RolloutEvents, call_view

READ_S = 5.0
"""Seconds that records of one topic are read for the view of a rollout."""
LOOK_UP_S = 2.0
"""Seconds that records of one topic are read in search of what a reward is for."""
_RECORDED_IN = (AGENT_STATUS, AGENT_REWARDS, LLM_CALLS)
"""The topics that hold events of a rollout."""
_BEGINS_IN = (AGENT_STATUS, LLM_CALLS)
"""The topics of which one holds a rollout's first event."""


class RolloutSearch:
    """Searches `llm.calls`, `agent.status` and `agent.rewards`. For several threads."""

    def __init__(self, settings: KafkaSettings, codec: Codec) -> None:
        self._settings = settings
        self._codec = codec

    def read(self, ref: RolloutRef) -> RolloutEvents:
        """The events of a rollout, each once. Raises LogUnavailable."""
        events: dict[str, AgentStatus | AgentReward] = {}
        calls: dict[str, CallView] = {}
        unread: list[str] = []
        with open_search(self._settings, self._codec, *_RECORDED_IN) as search:
            for topic in _RECORDED_IN:
                try:
                    for event in _events(search, topic, ref, READ_S):
                        # A call's text may be long, and is not shown.
                        if isinstance(event, LlmCall):
                            calls[event.call_id] = call_view(event)
                        elif isinstance(event, AgentStatus | AgentReward):
                            events[event.event_id] = event
                except SearchTooLong:
                    unread.append(topic.name)
        return RolloutEvents(
            statuses=tuple(e for e in events.values() if isinstance(e, AgentStatus)),
            rewards=tuple(e for e in events.values() if isinstance(e, AgentReward)),
            calls=tuple(calls.values()),
            unread=tuple(unread),
        )

    def choices(self, ref: CompletionRef) -> tuple[int, ...] | None:
        """The indexes of a recorded call's choices; None if the log does not have it (any more).
        Raises LogUnavailable, SearchTooLong.
        """
        with open_search(self._settings, self._codec, LLM_CALLS) as search:
            for event in _events(search, LLM_CALLS, ref.rollout, LOOK_UP_S):
                if isinstance(event, LlmCall) and event.call_id == ref.completion_id:
                    return tuple(choice.index for choice in event.choices)
        return None

    def has_rollout(self, ref: RolloutRef) -> bool:
        """Whether the rollout was declared or has a call. Raises LogUnavailable, SearchTooLong."""
        with open_search(self._settings, self._codec, *_BEGINS_IN) as search:
            return any(True for topic in _BEGINS_IN for _ in _events(search, topic, ref, LOOK_UP_S))


def _events(search: LogSearch, topic: Topic, ref: RolloutRef, patience_s: float) -> Iterator[Event]:
    """The events of a topic that are about the rollout."""
    for events in search.newest_first(topic, ref.group_id, time.monotonic() + patience_s):
        yield from (event for event in events if _is_about(event, ref))


def _is_about(event: Event, ref: RolloutRef) -> bool:
    if isinstance(event, AgentStatus) and event.declaration is not None:
        return ref.rollout_id in event.declaration.rollout_ids
    return (
        isinstance(event, AgentStatus | AgentReward | LlmCall)
        and event.rollout_id == ref.rollout_id
    )
