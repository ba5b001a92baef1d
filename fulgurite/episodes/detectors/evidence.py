"""What detectors look at: the calls of one attempt and how it ended. Nothing depends on the order
in which calls came.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from fulgurite.calls.transcript import answer_of, body_of, messages_in
from fulgurite.enums import CallOutcome
from fulgurite.episodes.episode_deltas import Whole
from fulgurite.events import AgentStatus, LlmCall
from fulgurite.untrusted_json import Json


class Evidence:
    """One attempt. `closing` is the status that ended it."""

    def __init__(
        self, closing: AgentStatus, calls: Sequence[LlmCall], whole: Whole | None = None
    ) -> None:
        self._whole = whole
        self.closing = closing
        self.calls = sorted(
            calls, key=lambda call: (call.finished_at, call.started_at, call.call_id)
        )
        """As they ended; without a look at what they say, which deltas have not."""

    @cached_property
    def last(self) -> LlmCall | None:
        """The call that ended last, however it did."""
        return self.calls[-1] if self.calls else None

    @cached_property
    def answered(self) -> LlmCall | None:
        """The last call that was answered, whole."""
        found = next(
            (
                call
                for call in reversed(self.calls)
                if call.outcome is CallOutcome.success and call.choices
            ),
            None,
        )
        return found if found is None or self._whole is None else self._whole(found)

    @cached_property
    def body(self) -> Json:
        """What that call asked for; empty if it cannot be read."""
        return body_of(self.answered) if self.answered is not None else {}

    @cached_property
    def messages(self) -> list[Json]:
        """What that call was made with; empty if it cannot be read."""
        return messages_in(self.body, self.answered.api) if self.answered is not None else []

    @cached_property
    def answers(self) -> list[Json]:
        """Its choices, as far as they can be read."""
        choices = self.answered.choices if self.answered is not None else ()
        return [answer for answer in map(answer_of, choices) if answer is not None]
