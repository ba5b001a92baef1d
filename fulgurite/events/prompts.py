"""Versions of the prompts of an alias, and how they were tuned. Topic `prompt.updates`."""

from __future__ import annotations

import msgspec

from fulgurite.enums import PromptKind, TuningStage
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


class PromptCost(EventStruct, frozen=True, kw_only=True):
    """What calls of a tuning cost."""

    calls: int
    """Calls of models."""
    prompt_tokens: int
    """Tokens of their prompts, as far as they are known."""
    completion_tokens: int
    """Tokens that were generated, as far as they are known."""
    money: float | None = None
    """By the price file, with unknown caches as not cached; null without one."""


class PromptUpdate(Event, frozen=True, kw_only=True):
    """A version of an alias's prompt, or what became of one. Topic `prompt.updates`."""

    alias: str
    """Model name that agents ask for; the Kafka key."""
    role: str | None = None
    """Role of the agent whose calls it is for; null: every role without a version of its own."""
    kind: PromptKind
    """What the event does."""
    version: str | None = None
    """`prompt@N`, counted per alias; of a rollback the version it returns to, null for none; null
    for a refused text.
    """
    parent: str | None = None
    """The version that was in force before, or that a candidate was made from; null: none."""
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
    tuning: str | None = None
    """Id of the tuning that wrote it; null: a person did."""
    examples: tuple[str, ...] = ()
    """Rollouts that its demonstrations are from."""
    reflection: str | None = None
    """Hash of the prompt in reply to which a model wrote it."""
    cost: PromptCost | None = None
    """What writing it cost; null: nothing."""


class PromptTuning(Event, frozen=True, kw_only=True):
    """A tuning of an alias's prompt began. Topic `prompt.updates`."""

    alias: str
    """Model name that agents ask for; the Kafka key."""
    role: str | None = None
    """Role of the agent whose prompt is tuned; null: every role without a version of its own."""
    tuning: str
    """Id of the tuning."""
    method: str
    """`demonstrations` or `gepa`."""
    baseline: str | None = None
    """The version that was in force when it began, which candidates are compared with; null: what
    the agent sends.
    """
    train_tasks: int
    """Number of training tasks."""
    validation_tasks: int
    """Number of validation tasks."""
    seed: int
    """Seed of the search."""
    author: str
    """Who started it."""


class PromptScore(Event, frozen=True, kw_only=True):
    """What a version of a prompt earned on one task of a tuning. Topic `prompt.updates`."""

    alias: str
    """Model name that agents ask for; the Kafka key."""
    tuning: str
    """Id of the tuning."""
    version: str | None = None
    """The version that the rollouts were served with; null: what the agent sends."""
    stage: TuningStage
    """What the score is for."""
    task: str
    """Hash of the task as the agent gets it."""
    group_id: str
    """Group of the rollouts."""
    rewards: tuple[float, ...] = ()
    """Rewards of the rollouts that have one."""
    unscored: int
    """Rollouts without a reward."""
    cost: PromptCost
    """What the rollouts' calls cost."""
