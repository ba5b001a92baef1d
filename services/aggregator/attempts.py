"""What the aggregator holds of attempts and groups: inputs not yet acknowledged, and what was written of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fulgurite.deadlines import AttemptProgress
from fulgurite.events import AgentStatus, Episode, LlmCall
from fulgurite.kinds import Mode
from fulgurite.stitching import Input, is_input, is_terminal
from services.streams import Settle

Key = tuple[str, int]
"""Rollout id and attempt."""


class Attempt:
    """One attempt: its inputs by id, and the last revision written."""

    def __init__(self, key: Key, group_id: str, mode: Mode, published: Episode | None = None) -> None:
        self.rollout_id, self.attempt = key
        self.group_id = group_id
        self.mode = mode
        self.published = published
        self.inputs: dict[str, Input] = {}
        self.unsettled: list[Settle] = []
        self.last_event_time = 0
        self.dirty = False
        self.barrier: int | None = None
        """`llm.calls` must be read up to here before the attempt may close; None: not known yet."""
        if published is not None:
            self.inputs.update({call.event_id: call for call in published.calls})

    def take(self, event: Input, settle: Settle) -> None:
        """Hold an input until a revision with it has been written."""
        if is_input(event):
            self.inputs.setdefault(event.event_id, event)
        self.unsettled.append(settle)
        self.last_event_time = max(self.last_event_time, event.event_time, event.finished_at if isinstance(event, LlmCall) else 0)
        self.dirty = True
        if is_terminal(event):
            self.barrier = None

    @property
    def ended(self) -> bool:
        """Whether a terminal status is known."""
        return self.published is not None or any(is_terminal(event) for event in self.inputs.values())

    @property
    def will_retry(self) -> bool:
        """Whether the revision that was written promises another attempt."""
        return self.published is not None and self.published.will_retry

    @property
    def progress(self) -> AttemptProgress:
        """For verdicts."""
        return AttemptProgress(attempt=self.attempt, ended=self.ended, will_retry=self._promised())

    def _promised(self) -> bool:
        return self.will_retry or any(isinstance(event, AgentStatus) and event.will_retry for event in self.inputs.values())


class Group:
    """A declared group: its declaration stays unsettled until every rollout's last attempt is written."""

    def __init__(self) -> None:
        self.declared: AgentStatus | None = None
        self.unsettled: list[Settle] = []
        self.attempts: dict[Key, Attempt] = {}
        self.judged = False
        """Whether the verdicts of its deadline have been published."""

    def calls(self) -> Iterator[LlmCall]:
        """Those in memory."""
        for attempt in self.attempts.values():
            yield from (event for event in attempt.inputs.values() if isinstance(event, LlmCall))

    def heard(self) -> Mapping[str, Iterable[AttemptProgress]]:
        """Progress by rollout."""
        by_rollout: dict[str, list[AttemptProgress]] = {}
        for attempt in self.attempts.values():
            by_rollout.setdefault(attempt.rollout_id, []).append(attempt.progress)
        return by_rollout

    def complete(self) -> bool:
        """Whether every declared rollout's last attempt is written and nothing waits."""
        if any(attempt.unsettled or attempt.published is None for attempt in self.attempts.values()):
            return False
        declaration = self.declared.declaration if self.declared else None
        if declaration is None:
            return True
        for rollout_id in declaration.rollout_ids:
            tried = [attempt for attempt in self.attempts.values() if attempt.rollout_id == rollout_id]
            last = max(tried, key=lambda attempt: attempt.attempt, default=None)
            if last is None or (last.will_retry and last.attempt + 1 < declaration.max_attempts):
                return False
        return True
