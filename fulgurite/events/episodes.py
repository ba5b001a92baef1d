"""The record of one attempt. Topic `episodes`."""

from __future__ import annotations

from fulgurite.enums import EpisodeOutcome, Mode
from fulgurite.events.base import Event
from fulgurite.events.calls import LlmCall
from fulgurite.events.rollouts import Declaration
from fulgurite.failures import FailureKind


class Episode(Event, frozen=True, kw_only=True):
    """The record of one attempt: a function of the set of its input events. Topic `episodes`."""

    episode_id: str
    """`rollout/attempt`."""
    revision: str
    """Hash of the sorted inputs and of the rule."""
    supersedes: str | None = None
    """Revision this one replaces."""
    group_id: str
    """Group of rollouts of one task sample; the Kafka key."""
    rollout_id: str
    """One run of an agent on one task."""
    attempt: int
    """Try at the rollout, from 0."""
    mode: Mode
    """What the rollout is for."""
    rule: str
    """Version of the stitching rule."""
    inputs: tuple[str, ...] = ()
    """Sorted ids of all input events."""
    outcome: EpisodeOutcome
    """How it ended."""
    failure: FailureKind | None = None
    """Why it failed."""
    message: str | None = None
    """Free text of the closing status."""
    will_retry: bool
    """Whether another attempt follows."""
    started_at: int
    """First input, Unix milliseconds."""
    ended_at: int
    """Closing input, Unix milliseconds."""
    declaration: Declaration | None = None
    """The group's declaration; null for undeclared traffic."""
    calls: tuple[LlmCall, ...] = ()
    """All calls, by start and id."""
    subject: str | None = None
    """The person whose data this is, for per-person erasure."""
    payload_key_id: str | None = None
    """Id of the key the payload is encrypted with (crypto-shredding); null when in clear."""
