"""Makes the rows of `tables.sql` from events. Pure: no database, no clock.

A row is a dictionary from column to value. Times are Unix milliseconds. Texts that agents and
models wrote are shortened; `payloads` has them in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from fulgurite.calls.transcript import answer_of, messages_of, shown, text_of
from fulgurite.cost.tokens import tokens_of
from fulgurite.enums import StatusKind
from fulgurite.events import (
    AgentReward,
    AgentStatus,
    Choice,
    DeadLetter,
    Declaration,
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
    SelectionDecision,
    Tombstone,
    Trajectory,
)
from fulgurite.tokens import token_count, unpack_logprobs
from fulgurite.untrusted_json import Json, called_functions
from services.common.runtime.redaction import without_secrets

Row = dict[str, Any]
Place = tuple[int, int]
"""Partition and offset."""

LONGEST_ERROR = 2_000
"""Characters of an error or of a status's message."""


def shortened(text: str, most: int) -> str:
    """Cut a text to `most` characters, and make it valid UTF-8."""
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return cut if cut.isascii() else cut.encode("utf-8", "replace").decode()


def call_row(call: LlmCall, place: Place, most: int) -> Row:
    """Make the row of a call, which may be a delta. `most`: characters of each text."""
    tokens = tokens_of(call)
    first = call.choices[0] if call.choices else None
    answer = None if first is None or first.message is None else answer_of(first)
    return {
        "call_id": call.call_id,
        "event_id": call.event_id,
        "group_id": call.group_id,
        "rollout_id": call.rollout_id,
        "attempt": call.attempt,
        "mode": call.mode.value,
        "training_use": call.training_use.value,
        "agent": call.agent,
        "parent_agent": call.parent_agent,
        "identity": call.identity.value,
        "api": call.api,
        "alias": call.alias,
        "policy": call.policy,
        "backend": call.backend,
        "version_first": call.version_first,
        "version_last": call.version_last,
        "variant": call.variant,
        "propensity": call.propensity,
        "prompt_version": call.prompt_version,
        "stream": call.stream,
        "outcome": call.outcome.value,
        "status_code": call.status_code,
        "failure": _value(call.failure),
        "error": _error(call.error),
        "prompt_tokens": tokens.prompt,
        "cached_tokens": tokens.cached,
        "completion_tokens": tokens.sampled,
        "choices": len(call.choices),
        "finish_reason": None if first is None else first.finish_reason,
        "question": _question(call, most),
        "answer": None if answer is None else shortened(shown(answer), most),
        "tools_called": [] if answer is None else _tools(answer),
        "mean_logprob": None if first is None else _mean_logprob(first),
        "temperature": call.sampling.temperature,
        "started_at": call.started_at,
        "first_token_at": call.first_token_at,
        "finished_at": call.finished_at,
        "milliseconds": call.finished_at - call.started_at,
        "traceparent": call.traceparent,
        **_at(place),
    }


def status_row(status: AgentStatus, place: Place) -> Row | None:
    """Make the row of a status; None for a heartbeat."""
    if status.kind is StatusKind.heartbeat:
        return None
    return {
        **_event(status),
        "group_id": status.group_id,
        "rollout_id": status.rollout_id,
        "attempt": status.attempt,
        "mode": status.mode.value,
        "kind": status.kind.value,
        "source": status.source,
        "failure": _value(status.failure),
        "message": _error(status.message),
        "exit_code": status.exit_code,
        "will_retry": status.will_retry,
        **_at(place),
    }


def group_row(status: AgentStatus, declaration: Declaration, place: Place) -> Row:
    """Make the row of a declared group."""
    return {
        "group_id": status.group_id,
        "declared_at": status.event_time,
        "run_id": declaration.run_id,
        "mode": status.mode.value,
        "alias": declaration.alias,
        "policy": declaration.policy,
        "task": declaration.task,
        "rollout_ids": list(declaration.rollout_ids),
        "deadline": declaration.deadline,
        "expected_rewards": list(declaration.expected_rewards),
        "reward_weights": declaration.reward_weights,
        "credit_rule": declaration.credit_rule,
        "max_attempts": declaration.max_attempts,
        **_at(place),
    }


def episode_row(episode: Episode, place: Place) -> Row:
    """Make the row of an episode's revision."""
    return {
        "episode_id": episode.episode_id,
        "revision": episode.revision,
        "revisions": 1,
        "group_id": episode.group_id,
        "rollout_id": episode.rollout_id,
        "attempt": episode.attempt,
        "mode": episode.mode.value,
        "outcome": episode.outcome.value,
        "failure": _value(episode.failure),
        "message": _error(episode.message),
        "will_retry": episode.will_retry,
        "inputs": len(episode.inputs),
        "calls": len(episode.calls),
        "started_at": episode.started_at,
        "ended_at": episode.ended_at,
        **_at(place),
    }


def reward_row(reward: AgentReward, place: Place, most: int) -> Row:
    """Make the row of a reward. `most`: characters of its metadata."""
    return {
        **_event(reward),
        "group_id": reward.group_id,
        "rollout_id": reward.rollout_id,
        "attempt": reward.attempt,
        "call_id": reward.call_id,
        "choice": reward.choice,
        "name": reward.name,
        "value": reward.value,
        "final": reward.final,
        "fallback": reward.fallback,
        "source": reward.source,
        "error": _error(reward.error),
        "metadata": None if reward.metadata is None else shortened(reward.metadata, most),
        **_at(place),
    }


def closing_row(closed: GroupClosed, place: Place, written_at: int) -> Row:
    """Make the row of a closing. `written_at`: time of its record."""
    return {
        "group_id": closed.group_id,
        "group_revision": closed.group_revision,
        "supersedes": closed.supersedes,
        "closings": 1,
        "mode": closed.mode.value,
        "closed_at": written_at,
        "episodes": len(closed.episode_revisions),
        "rewards": len(closed.reward_ids),
        "rows": len(closed.row_ids),
        "entries": len(closed.entry_ids),
        **_at(place),
    }


def trajectory_row(row: Trajectory, place: Place) -> Row:
    """Make the row of a trajectory."""
    return {
        "trajectory_id": row.trajectory_id,
        "group_id": row.group_id,
        "group_revision": row.group_revision,
        "rollout_id": row.rollout_id,
        "attempt": row.attempt,
        "mode": row.mode.value,
        "policy": row.policy,
        "episode_revision": row.episode_revision,
        "row_index": row.row_index,
        "rows_in_episode": row.rows_in_episode,
        "group_size": row.group_size,
        "group_members_scored": row.group_members_scored,
        "tokens": token_count(row.token_ids),
        "episode_reward": row.episode_reward,
        "rewards": row.rewards,
        "credit_rule": row.credit_rule,
        "break_kind": _value(row.break_kind),
        "failure": _value(row.failure),
        "event_time": row.event_time,
        **_at(place),
    }


def action_rows(row: Trajectory, place: Place) -> Iterator[Row]:
    """Make the rows of a trajectory's actions."""
    for action in row.actions:
        yield {
            "trajectory_id": row.trajectory_id,
            "group_id": row.group_id,
            "group_revision": row.group_revision,
            "rollout_id": row.rollout_id,
            "call_id": action.call_id,
            "choice": action.choice,
            "start_token": action.start,
            "end_token": action.end,
            "reward": action.reward,
            "credit": action.credit,
            "loss": action.loss,
            "mask": _value(action.mask),
            "version": action.version,
            "agent": action.agent,
            "turn": action.turn,
            **_at(place),
        }


def tombstone_row(row: Tombstone, place: Place) -> Row:
    """Make the row of a member without a trajectory."""
    return {
        **_event(row),
        "group_id": row.group_id,
        "group_revision": row.group_revision,
        "rollout_id": row.rollout_id,
        "attempt": row.attempt,
        "mode": row.mode.value,
        "policy": row.policy,
        "group_size": row.group_size,
        "group_members_scored": row.group_members_scored,
        "reason": row.reason.value,
        "episode_reward": row.episode_reward,
        "failure": _value(row.failure),
        **_at(place),
    }


def ledger_row(entry: LedgerEntry, place: Place) -> Row:
    """Make the row of a ledger entry."""
    return {
        **_event(entry),
        "policy": entry.policy,
        "group_id": entry.group_id,
        "group_revision": entry.group_revision,
        "term": entry.term.value,
        "reason": _value(entry.reason),
        "version": entry.version,
        "source": entry.source,
        "actions": len(entry.actions),
        **_at(place),
    }


def outcome_rows(entry: LedgerEntry, place: Place) -> Iterator[Row]:
    """Make the rows of a ledger entry's actions."""
    for action in entry.actions:
        call_id, choice = split_action(action)
        yield {
            "call_id": call_id,
            "choice": choice,
            "group_id": entry.group_id,
            "group_revision": entry.group_revision,
            "policy": entry.policy,
            "term": entry.term.value,
            "reason": _value(entry.reason),
            "version": entry.version,
            "source": entry.source,
            "event_time": entry.event_time,
            **_at(place),
        }


def update_row(update: PolicyUpdate, place: Place, *, counts: bool, elsewhere: bool) -> Row:
    """Make the row of a claim or version."""
    artifact = update.artifact
    return {
        **_event(update),
        "policy": update.policy,
        "kind": update.kind.value,
        "counts": counts,
        "elsewhere": elsewhere,
        "epoch": update.epoch,
        "step": update.step,
        "version": update.version,
        "parent_version": update.parent_version,
        "learner_id": update.learner_id,
        "artifact_uri": None if artifact is None else without_secrets(artifact.uri),
        "artifact_sha256": None if artifact is None else artifact.sha256,
        "artifact_bytes": None if artifact is None else artifact.size,
        "artifact_format": None if artifact is None else artifact.format.value,
        "topic": update.topic,
        "trained_actions": update.trained_actions,
        "metrics": update.metrics,
        "config": None if update.config is None else without_secrets(update.config),
        "offline_method": update.offline_method,
        "offset": place[1],
    }


def route_row(route: PolicyRoute, place: Place) -> Row:
    """Make the row of a route."""
    return {
        **_event(route),
        "alias": route.alias,
        "targets": route.targets,
        "reason": route.reason,
        "author": route.author,
        "selection": route.selection,
        "offset": place[1],
    }


def selection_row(decision: SelectionDecision, place: Place) -> Row:
    """Make the row of a selector's decision."""
    return {
        **_event(decision),
        "alias": decision.alias,
        "kind": decision.kind.value,
        "mode": decision.mode.value,
        "epoch": decision.epoch,
        "selector_id": decision.selector_id,
        "targets": _json(decision.targets),
        "variants": _json(decision.variants),
        "differences": _json(decision.differences),
        "winner": decision.winner,
        "reason": decision.reason,
        "offset": place[1],
    }


def applied_row(applied: PolicyApplied, place: Place) -> Row:
    """Make the row of a backend's report."""
    return {
        **_event(applied),
        "policy": applied.policy,
        "backend": applied.backend,
        "engine_id": applied.engine_id,
        "version": applied.version,
        "previous": applied.previous,
        "outcome": applied.outcome.value,
        "error": _error(applied.error),
        "probe_error": applied.probe_error,
        "seconds": applied.seconds,
        "offset": place[1],
    }


def prompt_row(update: PromptUpdate, place: Place) -> Row:
    """Make the row of a prompt version, or of what became of one."""
    return {
        **_event(update),
        "alias": update.alias,
        "role": update.role,
        "kind": update.kind.value,
        "version": update.version,
        "parent": update.parent,
        "system": update.system,
        "prefix": update.prefix,
        "sections": update.sections,
        "demonstrations": _json(update.demonstrations),
        "tools": update.tools,
        "reason": update.reason,
        "author": update.author,
        "tuning": update.tuning,
        "offset": place[1],
    }


def prompt_tuning_row(tuning: PromptTuning, place: Place) -> Row:
    """Make the row of a tuning's start."""
    return {
        **_event(tuning),
        "alias": tuning.alias,
        "role": tuning.role,
        "tuning": tuning.tuning,
        "method": tuning.method,
        "baseline": tuning.baseline,
        "train_tasks": tuning.train_tasks,
        "validation_tasks": tuning.validation_tasks,
        "author": tuning.author,
        "offset": place[1],
    }


def prompt_score_row(score: PromptScore, place: Place) -> Row:
    """Make the row of what a prompt version earned on a task."""
    return {
        **_event(score),
        "alias": score.alias,
        "tuning": score.tuning,
        "version": score.version,
        "stage": score.stage.value,
        "task": score.task,
        "group_id": score.group_id,
        "rewards": list(score.rewards),
        "unscored": score.unscored,
        "calls": score.cost.calls,
        "prompt_tokens": score.cost.prompt_tokens,
        "completion_tokens": score.cost.completion_tokens,
        "money": score.cost.money,
        "offset": place[1],
    }


def dead_letter_row(letter: DeadLetter, place: Place, topic: str, actions: int) -> Row:
    """Make the row of a dead letter. `topic`: without the deployment's prefix."""
    return {
        **_event(letter),
        "stage": letter.stage,
        "error_type": letter.error_type,
        "error": shortened(without_secrets(letter.error), LONGEST_ERROR),
        "topic": topic,
        "source_partition": letter.partition,
        "source_offset": letter.offset,
        "key": None if letter.key is None else letter.key.decode("utf-8", "replace"),
        "bytes": None if letter.value is None else len(letter.value),
        "actions": actions,
        **_at(place),
    }


def split_action(action: str) -> tuple[str, int]:
    """Split `call_id#choice`."""
    call_id, _, choice = action.rpartition("#")
    return (call_id, int(choice)) if choice.isdecimal() else (action, 0)


def _question(call: LlmCall, most: int) -> str | None:
    if call.parent is not None or call.request is None:
        return None
    said = [message for message in messages_of(call) if message.get("role") == "user"]
    return shortened(text_of(said[-1]), most) if said else None


def _tools(answer: Json) -> list[str]:
    names = (function.get("name") for function in called_functions(answer))
    return [shortened(name, 200) for name in names if isinstance(name, str)]


def _mean_logprob(choice: Choice) -> float | None:
    if not choice.logprobs or len(choice.logprobs) % 4:
        return None
    values = unpack_logprobs(choice.logprobs)
    # `mean` takes twice as long for so few.
    mean = float(np.add.reduce(values, dtype=np.float64)) / len(values)
    return mean if math.isfinite(mean) else None


def _event(event: Event) -> Row:
    return {"event_id": event.event_id, "event_time": event.event_time}


def _at(place: Place) -> Row:
    return {"partition": place[0], "offset": place[1]}


def _value(kind: Any) -> str | None:
    return None if kind is None else str(kind.value)


def _error(text: str | None) -> str | None:
    return None if text is None else shortened(without_secrets(text), LONGEST_ERROR)


def _json(value: object) -> str:
    """Encode a list for a column of text. A number that is not finite becomes null."""
    return msgspec.json.encode(value).decode()
