"""Defines what detectors see of an attempt: its calls and how it ended, in any order of arrival."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from fulgurite.calls.transcript import answer_of, body_of, messages_in
from fulgurite.enums import CallOutcome
from fulgurite.episodes.episode_deltas import Expand
from fulgurite.events import AgentStatus, LlmCall
from fulgurite.untrusted_json import Json


class Evidence:
    """The calls of one attempt, and `closing`, the status that ended it."""

    def __init__(
        self, closing: AgentStatus, calls: Sequence[LlmCall], expand: Expand | None = None
    ) -> None:
        self._expand = expand
        self.closing = closing
        self.calls = sorted(
            calls, key=lambda call: (call.finished_at, call.started_at, call.call_id)
        )
        """In the order in which they ended. They may be deltas, without their texts."""

    @cached_property
    def last(self) -> LlmCall | None:
        """The call that ended last, with any outcome."""
        return self.calls[-1] if self.calls else None

    @cached_property
    def answered(self) -> LlmCall | None:
        """The last call that was answered, expanded."""
        found = next(
            (
                call
                for call in reversed(self.calls)
                if call.outcome is CallOutcome.success and call.choices
            ),
            None,
        )
        return found if found is None or self._expand is None else self._expand(found)

    @cached_property
    def body(self) -> Json:
        """The request body of that call; empty if it cannot be read."""
        return body_of(self.answered) if self.answered is not None else {}

    @cached_property
    def messages(self) -> list[Json]:
        """The messages of that request; empty if they cannot be read."""
        return messages_in(self.body, self.answered.api) if self.answered is not None else []

    @cached_property
    def answers(self) -> list[Json]:
        """The choices of that call that can be read, as messages."""
        choices = self.answered.choices if self.answered is not None else ()
        return [answer for answer in map(answer_of, choices) if answer is not None]
