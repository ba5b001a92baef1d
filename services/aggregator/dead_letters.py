"""Dead letters of what the aggregator gives up: attempts, and episodes that no message can hold."""

from __future__ import annotations

from collections.abc import Collection

from fulgurite.episodes.stitching import Input
from fulgurite.events import DeadLetter, Episode, LlmCall
from fulgurite.ids import derive_id
from fulgurite.topics import LLM_CALLS, MAX_MESSAGE_BYTES
from services.aggregator.attempts import Attempt
from services.common.kafka.dead_letters import Lost, actions_of, lost, lost_episode
from services.common.kafka.settings import KafkaSettings
from services.common.runtime import logs

logger = logs.get()

STAGE = "aggregator"
"""Of dead letters."""

_ROOM = 64 * 1024
"""For a record's headers and framing, within the log's message limit."""

LARGEST_EPISODE = MAX_MESSAGE_BYTES - _ROOM
"""Bytes of an encoded episode. A larger one would stop the partition for good."""


def letter_of_attempt(
    attempt: Attempt,
    inputs: Collection[Input],
    kafka: KafkaSettings,
    partition: int,
    error_type: str,
    why: str,
) -> DeadLetter:
    """Return the letter of an attempt that is given up, with the actions of its `inputs`: those
    that are in no episode. `why` completes "attempt 0 of rollout R …".
    """
    calls = sorted(
        (event for event in inputs if isinstance(event, LlmCall)),
        key=lambda call: (call.started_at, call.call_id),
    )
    logger.error(
        "an attempt is given up",
        rollout_id=attempt.rollout_id,
        attempt=attempt.attempt,
        error=why,
        calls=len(calls),
    )
    about = derive_id(
        attempt.rollout_id, attempt.attempt, *sorted(event.event_id for event in inputs)
    )
    return lost(
        Lost(about, attempt.last_event_time, attempt.group_id, actions_of(attempt.mode, calls)),
        kafka,
        partition,
        STAGE,
        error_type=error_type,
        error=f"{name_of(attempt)} {why}; {len(calls)} calls, which are in no episode, are in "
        f"{kafka.topic(LLM_CALLS)}",
    )


def letter_of_episode(
    episode: Episode, size: int, kafka: KafkaSettings, partition: int
) -> DeadLetter:
    """Return the letter of an episode that takes `size` bytes, more than a message can hold."""
    logger.error(
        "an episode is too large for a message",
        episode_id=episode.episode_id,
        bytes=size,
        calls=len(episode.calls),
    )
    return lost(
        lost_episode(episode),
        kafka,
        partition,
        STAGE,
        error_type="EpisodeTooLarge",
        error=f"episode {episode.episode_id} of {len(episode.calls)} calls takes {size:,} bytes, "
        f"and a message holds {LARGEST_EPISODE:,}; its calls are in {kafka.topic(LLM_CALLS)}; use "
        "more rollouts of fewer calls",
    )


def name_of(attempt: Attempt) -> str:
    """Return what errors call an attempt."""
    return f"attempt {attempt.attempt} of rollout {attempt.rollout_id}"
