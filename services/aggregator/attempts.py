"""What the aggregator holds of attempts and groups: inputs not yet acknowledged, and what was
written of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import reduce

from msgspec.structs import replace

from fulgurite.calls.deltas import restore
from fulgurite.enums import Mode, StatusKind
from fulgurite.episodes.deadlines import AttemptProgress
from fulgurite.episodes.episode_deltas import pack
from fulgurite.episodes.stitching import (
    Input,
    adds_nothing,
    is_input,
    is_terminal,
    stitch,
    supersede,
)
from fulgurite.events import AgentStatus, Episode, LlmCall
from services.common.streaming.event_clock import bounded_by_record
from services.common.streaming.memory import EVENT_BYTES, call_weight
from services.common.streaming.worker import Ack

Key = tuple[str, int]
"""Rollout id and attempt."""


_COMPLETE_CALLS = 2
"""Calls of an attempt that are held complete, the last ones: the next one is mostly a delta of one
of them.
"""


class Attempt:
    """One attempt: its inputs by id, and the last revision written. Calls are held as the log has
    them, deltas of one another.
    """

    def __init__(
        self, key: Key, group_id: str, mode: Mode, published: Episode | None = None
    ) -> None:
        self.key = key
        self.rollout_id, self.attempt = key
        self.group_id = group_id
        self.mode = mode
        self.published = published
        """Without its calls, where they are among the inputs."""
        self.revisions = 0
        """That were written, as far as is known."""
        self.inputs: dict[str, Input] = {}
        """A delta comes after its parent, and never without it."""
        self._last: dict[str, LlmCall] = {}
        self.held_bytes = 0
        """By inputs, as `weight` has it."""
        self.given_up = ""
        """Why, if it is: nothing more is taken in."""
        self.unacked: list[Ack] = []
        self.last_event_time = 0
        self.dirty = False
        self.barrier: int | None = None
        """`llm.calls` must be read up to here before the attempt may close; None: not known yet."""
        if published is not None:
            self._hold(published.calls)

    def take(self, event: Input, ack: Ack, delta: LlmCall | None = None) -> None:
        """Hold an input until a revision with it has been written. `delta`: how the log has it."""
        if (
            is_input(event)
            and event.event_id not in self.inputs
            and not self._comes_too_late(event)
        ):
            parent = (
                self.inputs.get(delta.parent.call_id)
                if delta is not None and delta.parent is not None
                else None
            )
            self._hold([event if delta is None or not isinstance(parent, LlmCall) else delta])
        self.follow(event, ack.logged_at)
        self.unacked.append(ack)
        self.dirty = True
        if is_terminal(event):
            self.barrier = None

    def _comes_too_late(self, event: Input) -> bool:
        if (
            self.published is not None
            and isinstance(event, AgentStatus)
            and event.kind is StatusKind.started
        ):
            return event.event_id not in self.published.inputs
        return adds_nothing(event, self.inputs.values())

    def follow(self, event: Input, logged_at: int | None) -> None:
        """Note that an input came, and what the next one may be a delta of. `logged_at`: record
        time, Unix milliseconds.
        """
        if isinstance(event, LlmCall) and event.event_id not in self._last:
            self._last[event.event_id] = event
            if len(self._last) > _COMPLETE_CALLS:
                del self._last[next(iter(self._last))]
        at = max(event.event_time, event.finished_at if isinstance(event, LlmCall) else 0)
        self.last_event_time = max(self.last_event_time, bounded_by_record(at, logged_at))

    def give_up(self, why: str) -> tuple[list[Input], list[Ack]]:
        """Drop all inputs. Return those that are in no revision, and what is to be acknowledged."""
        self.given_up = why
        written = set(self.published.inputs) if self.published else set[str]()
        inputs, acks = (
            [event for event_id, event in self.inputs.items() if event_id not in written],
            self.unacked,
        )
        self.inputs, self.unacked, self.held_bytes = {}, [], 0
        self.dirty = False
        return inputs, acks

    def _hold(self, events: Iterable[Input]) -> None:
        for event in events:
            if event.event_id not in self.inputs:
                self.held_bytes += weight(event)
            self.inputs[event.event_id] = event

    def complete_call(self, call_id: str) -> LlmCall | None:
        """Return a call, restored from its parents, if it is held."""
        chain: list[LlmCall] = []
        while True:
            call = self._last.get(call_id) or self.inputs.get(call_id)
            if not isinstance(call, LlmCall):
                return None
            chain.append(call)
            if call.parent is None:
                break
            call_id = call.parent.call_id
        return reduce(lambda parent, delta: restore(delta, parent, proven=True), reversed(chain))

    def revision(self, declared: AgentStatus | None) -> Episode | None:
        """The next revision, its calls packed as they are held; None if there is nothing new to
        tell.
        """
        calls: dict[str, LlmCall] = {}

        def complete(call: LlmCall) -> LlmCall:
            if call.parent is None:
                return call
            last = self._last.get(call.event_id)
            if last is not None:
                return last
            calls.update(calls or self._calls())
            return calls[call.event_id]

        candidate = stitch([*self._counted(), *([declared] if declared else [])], complete)
        episode = supersede(self.published, candidate) if candidate else None
        return episode and replace(episode, calls=pack(episode.calls, complete))

    def _counted(self) -> Iterable[Input]:
        """Without a `started` that came when nobody knew that the attempt had ended long before."""
        if self.published is None:
            return self.inputs.values()
        written = self.published.inputs
        return [
            e
            for e in self.inputs.values()
            if isinstance(e, LlmCall) or e.kind is not StatusKind.started or e.event_id in written
        ]

    def _calls(self) -> dict[str, LlmCall]:
        calls: dict[str, LlmCall] = {}
        for event_id, event in self.inputs.items():
            if isinstance(event, LlmCall):
                calls[event_id] = (
                    event
                    if event.parent is None
                    else restore(event, calls[event.parent.call_id], proven=True)
                )
        return calls

    def remember(self, episode: Episode) -> None:
        """A revision that was written before, unless a larger one is known."""
        if not self.given_up and (
            self.published is None or set(episode.inputs) > set(self.published.inputs)
        ):
            self.published = episode
            self._hold(episode.calls)

    def written(self, episode: Episode) -> None:
        """A revision of all inputs is in the log."""
        self.revisions += 1
        self.published = replace(episode, calls=())

    @property
    def ended(self) -> bool:
        """Whether a terminal status is known, or none is awaited any more."""
        return (
            bool(self.given_up)
            or self.published is not None
            or any(is_terminal(event) for event in self.inputs.values())
        )

    @property
    def will_retry(self) -> bool:
        """Whether the revision that was written promises another attempt."""
        return self.published is not None and self.published.will_retry

    @property
    def progress(self) -> AttemptProgress:
        """How far the attempt has come, for timeouts."""
        return AttemptProgress(attempt=self.attempt, ended=self.ended, will_retry=self._promised())

    def _promised(self) -> bool:
        return self.will_retry or any(
            isinstance(event, AgentStatus) and event.will_retry for event in self.inputs.values()
        )


def weight(event: Input) -> int:
    """Bytes that an input takes in memory, roughly."""
    if isinstance(event, LlmCall):
        return call_weight(event)
    return EVENT_BYTES + sys.getsizeof(event.message) + sys.getsizeof(event.source)


class Group:
    """A declared group: its declaration is not acknowledged until every rollout's last attempt is
    written.
    """

    def __init__(self) -> None:
        self.declared: AgentStatus | None = None
        self.unacked: list[Ack] = []
        self.attempts: dict[Key, Attempt] = {}
        self.timed_out = False
        """Whether the timeouts of its deadline have been published."""
        self.reloaded = False
        """Whether what the log holds of it was read again."""
        self.given_up = False
        """Whether its timeouts cannot be published."""

    @classmethod
    def of_episodes(cls, group_id: str, episodes: Mapping[Key, Episode]) -> Group:
        """A group of which an earlier worker wrote these."""
        group = cls()
        for key, episode in episodes.items():
            group.attempts[key] = Attempt(key, group_id, episode.mode, episode)
        return group

    @property
    def episodes(self) -> list[Episode]:
        """The last revision of each attempt that was written."""
        return [attempt.published for attempt in self.attempts.values() if attempt.published]

    @property
    def was_declared(self) -> bool:
        """Whether an episode names a declaration, be it at hand or not."""
        return any(episode.declaration is not None for episode in self.episodes)

    @property
    def held_bytes(self) -> int:
        """By inputs, as `weight` has it."""
        return sum(attempt.held_bytes for attempt in self.attempts.values())

    def remember(self, event: Episode | AgentStatus) -> None:
        """What the log holds of it: every revision, then statuses."""
        if isinstance(event, AgentStatus) and event.rollout_id is None:
            self.declared = self.declared or event
            return
        key = (str(event.rollout_id), event.attempt)
        attempt = self.attempts.get(key)
        if isinstance(event, Episode):
            if attempt is None:
                self.attempts[key] = Attempt(key, event.group_id, event.mode, event)
            else:
                attempt.remember(event)
        elif (
            attempt is not None
            and attempt.published is not None
            and event.event_id in attempt.published.inputs
        ):
            attempt.inputs.setdefault(event.event_id, event)

    def heard(self) -> Mapping[str, Iterable[AttemptProgress]]:
        """Progress by rollout."""
        by_rollout: dict[str, list[AttemptProgress]] = {}
        for attempt in self.attempts.values():
            by_rollout.setdefault(attempt.rollout_id, []).append(attempt.progress)
        return by_rollout

    def is_over(self, before: int) -> bool:
        """Whether nothing is awaited. Of an attempt that was given up, calls are, until it has been
        silent since `before`.
        """
        goes_on = any(
            attempt.given_up and attempt.last_event_time >= before
            for attempt in self.attempts.values()
        )
        return not (self.unacked or goes_on) and self.complete()

    def complete(self) -> bool:
        """Whether every declared rollout's last attempt is written and nothing waits."""
        if self.given_up:
            return True
        if any(
            attempt.unacked or not (attempt.given_up or attempt.published)
            for attempt in self.attempts.values()
        ):
            return False
        declaration = self.declared.declaration if self.declared else None
        if declaration is None:
            return True
        for rollout_id in declaration.rollout_ids:
            tried = [
                attempt for attempt in self.attempts.values() if attempt.rollout_id == rollout_id
            ]
            last = max(tried, key=lambda attempt: attempt.attempt, default=None)
            if last is None or (last.will_retry and last.attempt + 1 < declaration.max_attempts):
                return False
        return True
