"""Says in one line what an event says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fulgurite.calls.transcript import answer_of, text_of
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    DeadLetter,
    Episode,
    Event,
    GroupClosed,
    LedgerEntry,
    LlmCall,
    PolicyApplied,
    PolicyRoute,
    PolicyUpdate,
    PromptScore,
    PromptTuning,
    PromptUpdate,
    RouteTarget,
    SelectionDecision,
    Tombstone,
    Trajectory,
)
from fulgurite.ledger.outcomes import word_of
from fulgurite.untrusted_json import called_functions
from services.common.runtime.logs import hidden
from services.replay.timeline import shortened

_TEXT = 100
"""Longest text of a line, in characters."""


def line_of(event: Event) -> str:
    """Return what an event says, without its topic and time."""
    say = _LINES.get(type(event))
    parts = say(event) if say is not None else iter(())
    return str(hidden("  ".join(str(part) for part in parts if part not in (None, ""))))


def last_answer(call: LlmCall) -> str:
    """The text of a call's first choice, or the tools that it calls."""
    message = answer_of(call.choices[0]) if call.choices else None
    if message is None:
        return ""
    tools = ", ".join(f"{tool.get('name')}(…)" for tool in called_functions(message))
    return text_of(message) or (f"calls {tools}" if tools else "")


def _call(event: LlmCall) -> Iterator[Any]:
    yield event.rollout_id
    yield event.agent
    yield event.version_first or event.alias
    yield event.outcome
    yield f"{event.finished_at - event.started_at} ms"
    if event.completion_tokens is not None:
        yield f"{event.prompt_tokens or 0}+{event.completion_tokens} tokens"
    yield shortened(event.error or last_answer(event), _TEXT)


def _status(event: AgentStatus) -> Iterator[Any]:
    yield event.rollout_id or event.group_id
    yield event.kind
    yield event.failure
    if event.declaration is not None:
        yield f"{len(event.declaration.rollout_ids)} rollouts"
        yield shortened(event.declaration.task, _TEXT)
    yield event.message and shortened(event.message, _TEXT)


def _reward(event: AgentReward) -> Iterator[Any]:
    yield event.call_id or event.rollout_id
    yield f"{event.name} = {'none' if event.value is None else f'{event.value:g}'}"
    yield f"from {event.source}"
    yield event.error and shortened(event.error, _TEXT)


def _episode(event: Episode) -> Iterator[Any]:
    yield event.episode_id
    yield event.outcome
    yield event.failure
    yield f"{len(event.calls)} calls"
    yield shortened(last_answer(event.calls[-1]), _TEXT) if event.calls else ""


def _trajectory(event: Trajectory) -> Iterator[Any]:
    yield event.rollout_id
    yield f"row {event.row_index + 1} of {event.rows_in_episode}"
    yield f"{len(event.token_ids) // 4} tokens"
    yield f"{len(event.actions)} actions"
    yield "no reward" if event.episode_reward is None else f"reward {event.episode_reward:g}"


def _tombstone(event: Tombstone) -> Iterator[Any]:
    yield event.rollout_id
    yield f"no trajectory: {event.reason}"


def _closed(event: GroupClosed) -> Iterator[Any]:
    yield event.group_id
    yield f"closed with {len(event.episode_revisions)} episodes, {len(event.reward_ids)} rewards"


def _entry(event: LedgerEntry) -> Iterator[Any]:
    yield event.group_id
    yield f"{len(event.actions)} actions {word_of(event)}"
    yield event.version
    yield f"by {event.source}"


def _update(event: PolicyUpdate) -> Iterator[Any]:
    yield event.version or f"{event.policy} epoch {event.epoch}"
    yield event.kind
    names = ("reward_mean", "loss", "k3", "step_seconds")
    yield ", ".join(f"{name} {event.metrics[name]:.4g}" for name in names if name in event.metrics)


def _route(event: PolicyRoute) -> Iterator[Any]:
    yield event.alias
    yield _shares(event.targets) or "no route"
    yield f"by {event.author}: {shortened(event.reason, _TEXT)}"


def _selection(event: SelectionDecision) -> Iterator[Any]:
    yield event.alias
    yield f"{event.kind} by {event.selector_id}, {event.mode}"
    yield _shares(event.targets)
    yield event.winner and f"winner {event.winner}"
    yield shortened(event.reason, _TEXT)


def _shares(targets: Sequence[RouteTarget]) -> str:
    return ", ".join(
        f"{f'upstream:{one.upstream}' if one.upstream else one.version or one.policy}"
        f"={one.weight:g}"
        for one in targets
    )


def _applied(event: PolicyApplied) -> Iterator[Any]:
    yield event.version
    yield f"{event.outcome} on {event.backend} in {event.seconds:.1f} s"
    yield event.error and shortened(event.error, _TEXT)


def _prompt(event: PromptUpdate) -> Iterator[Any]:
    yield event.alias
    yield f"{event.kind} {event.version or 'no version'}"
    yield event.role and f"for {event.role}"
    yield f"by {event.author}: {shortened(event.reason, _TEXT)}"


def _tuning(event: PromptTuning) -> Iterator[Any]:
    yield event.alias
    yield f"tuning {event.tuning} by {event.method} begins"
    yield f"{event.train_tasks} training and {event.validation_tasks} validation tasks"
    yield f"by {event.author}"


def _score(event: PromptScore) -> Iterator[Any]:
    yield event.alias
    yield f"{event.version or 'as sent'} on a task of {event.stage}"
    yield ", ".join(f"{reward:g}" for reward in event.rewards) or "no reward"


def _letter(event: DeadLetter) -> Iterator[Any]:
    yield f"{event.topic}[{event.partition}]@{event.offset}"
    yield f"{event.stage}: {event.error_type}: {shortened(event.error, _TEXT)}"


_LINES: dict[type[Event], Callable[[Any], Iterator[Any]]] = {
    LlmCall: _call,
    AgentStatus: _status,
    AgentReward: _reward,
    Episode: _episode,
    Trajectory: _trajectory,
    Tombstone: _tombstone,
    GroupClosed: _closed,
    LedgerEntry: _entry,
    PolicyUpdate: _update,
    PolicyRoute: _route,
    PolicyApplied: _applied,
    PromptUpdate: _prompt,
    PromptTuning: _tuning,
    PromptScore: _score,
    SelectionDecision: _selection,
    DeadLetter: _letter,
}
