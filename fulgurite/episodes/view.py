"""Shows an episode to reward functions: the task, the conversation and the last answer.

`EpisodeView(episode)` never raises for what an agent did: unparsable values are None or empty.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from fulgurite.calls.transcript import answer_of, messages_of
from fulgurite.enums import CallOutcome, EpisodeOutcome
from fulgurite.events import Episode, LlmCall
from fulgurite.failures import FailureKind
from fulgurite.untrusted_json import Json, called_functions, parsed


class Turn(NamedTuple):
    """One answer of a model."""

    call_id: str
    """The call, by which a reward function can pay it alone."""
    agent: str
    """Role of the agent; empty if it has none."""
    message: Json
    """The answer as a chat message; empty if it cannot be read."""

    @property
    def text(self) -> str:
        """What it says; empty for tool calls alone."""
        content = self.message.get("content")
        return content if isinstance(content, str) else ""


class EpisodeView:
    """A read-only view of one attempt. `record` is the episode itself, token ids included."""

    def __init__(self, record: Episode) -> None:
        self.record = record

    @cached_property
    def task(self) -> Any:
        """The task as parsed JSON, else as text; None for undeclared traffic."""
        if self.record.declaration is None:
            return None
        return _parsed(self.record.declaration.task)

    @cached_property
    def calls(self) -> tuple[LlmCall, ...]:
        """The successful calls, in order of time."""
        return tuple(call for call in self.record.calls if call.outcome is CallOutcome.success)

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The first answer of each successful call that has one, in order of time."""
        return tuple(
            Turn(call.call_id, call.agent, answer_of(call.choices[0]) or {})
            for call in self.calls
            if call.choices
        )

    @cached_property
    def messages(self) -> list[Json]:
        """The messages of the last answered call and its answer, as chat messages; empty without
        one.

        Messages of other APIs are converted to chat messages.
        """
        last = next((call for call in reversed(self.calls) if call.choices), None)
        if last is None:
            return []
        answer = answer_of(last.choices[0])
        return messages_of(last) + ([answer] if answer is not None else [])

    @property
    def failure(self) -> FailureKind | None:
        """The kind of failure; None without one."""
        return self.record.failure

    @property
    def outcome(self) -> EpisodeOutcome:
        """How the attempt ended."""
        return self.record.outcome

    @property
    def message(self) -> str | None:
        """The text of the closing status, for people."""
        return self.record.message

    @property
    def rollout_id(self) -> str:
        """Id of the rollout."""
        return self.record.rollout_id

    def final_text(self) -> str:
        """Text of the last answer; empty if there is none."""
        if not self.messages or self.messages[-1].get("role", "assistant") != "assistant":
            return ""
        content = self.messages[-1].get("content")
        return content if isinstance(content, str) else ""

    def tool_calls(self) -> list[Json]:
        """The model's tool calls in order, as `{"name": ..., "arguments": JSON value or text}`."""
        functions = [
            function for message in self.messages for function in called_functions(message)
        ]
        return [
            {"name": function.get("name"), "arguments": _parsed(function.get("arguments"))}
            for function in functions
        ]


def _parsed(text: Any) -> Any:
    try:
        return parsed(text)
    except ValueError:
        return text
