"""Versions of the prompts of an alias. Topic `prompt.updates`."""

from __future__ import annotations

import msgspec

from fulgurite.enums import PromptKind
from fulgurite.events.base import Event, EventStruct


class DemonstrationCall(EventStruct, frozen=True, kw_only=True):
    """A tool call in a demonstration."""

    id: str
    """Id that the tool's result names."""
    name: str
    """Name of the tool."""
    arguments: str
    """JSON of the arguments."""


class Demonstration(EventStruct, frozen=True, kw_only=True):
    """One message of an example conversation, as in a chat."""

    role: str
    """`user`, `assistant` or `tool`."""
    content: str
    """Text of the message; may be empty beside tool calls."""
    tool_calls: tuple[DemonstrationCall, ...] = ()
    """What the assistant calls."""
    tool_call_id: str | None = None
    """With role `tool`: the call whose result it is."""


class PromptUpdate(Event, frozen=True, kw_only=True):
    """A version of an alias's prompt, or a return to an earlier one. Topic `prompt.updates`."""

    alias: str
    """Model name that agents ask for; the Kafka key."""
    role: str | None = None
    """Role of the agent whose calls it is for; null: every role without a version of its own."""
    kind: PromptKind
    """New version or rollback."""
    version: str | None = None
    """`prompt@N`, counted per alias; of a rollback the version it returns to, null for none."""
    parent: str | None = None
    """The version that was in force before; null: none."""
    system: str | None = None
    """Replaces the system prompt."""
    prefix: str | None = None
    """Put before the system prompt, with an empty line between."""
    sections: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Name → what stands between `<NAME>` and `</NAME>` in the system prompt."""
    demonstrations: tuple[Demonstration, ...] = ()
    """Messages inserted after the system prompt."""
    tools: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Name of a tool → its description, where the call offers that tool."""
    reason: str
    """For people: why."""
    author: str
    """Who wrote it."""
