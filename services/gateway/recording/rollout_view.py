"""What `GET /v1/rollouts/{id}` says of a rollout: its state, attempts, calls and rewards, without
any text of a message. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import msgspec

from fulgurite.enums import CallOutcome, Mode
from fulgurite.episodes.stitching import is_terminal
from fulgurite.events import AgentReward, AgentStatus, LlmCall
from fulgurite.failures import FailureKind
from fulgurite.ids import RolloutRef

MOST = 1000
"""Calls, and rewards, in one view: the newest."""
RUNNING = "running"


class ChoiceView(msgspec.Struct, frozen=True):
    """A choice of a call."""

    index: int
    finish_reason: str | None


class CallView(msgspec.Struct, frozen=True):
    """A call; times in Unix milliseconds."""

    completion_id: str
    attempt: int
    mode: Mode
    agent: str
    api: str
    alias: str
    version: str | None
    """Of the first token, as the engine reported it."""
    outcome: CallOutcome
    failure: FailureKind | None
    started_at: int
    finished_at: int
    choices: tuple[ChoiceView, ...]


class RewardView(msgspec.Struct, frozen=True):
    """A reward; its time in Unix milliseconds."""

    reward_id: str
    name: str
    value: float | None
    error: str | None
    """Why there is no value."""
    source: str
    at: int
    attempt: int | None
    completion_id: str | None
    choice: int | None
    final: bool


class AttemptView(msgspec.Struct, frozen=True):
    """An attempt; its state is `running` or the kind of the status that ended it."""

    attempt: int
    state: str
    ended_at: int | None
    failure: FailureKind | None
    message: str | None
    exit_code: int | None
    will_retry: bool


class RolloutEvents(msgspec.Struct, frozen=True, kw_only=True):
    """What the log holds of a rollout, in any order."""

    statuses: tuple[AgentStatus, ...] = ()
    """Its own, and the declaration of its group."""
    rewards: tuple[AgentReward, ...] = ()
    calls: tuple[CallView, ...] = ()
    unread: tuple[str, ...] = ()
    """Topics of which older records were not read, for lack of time."""

    @property
    def is_empty(self) -> bool:
        """Whether the log holds nothing of the rollout."""
        return not (self.statuses or self.rewards or self.calls)


def call_view(call: LlmCall) -> CallView:
    """What is shown of a call."""
    return CallView(
        call.call_id,
        call.attempt,
        call.mode,
        call.agent,
        call.api,
        call.alias,
        call.version_first,
        call.outcome,
        call.failure,
        call.started_at,
        call.finished_at,
        tuple(ChoiceView(choice.index, choice.finish_reason) for choice in call.choices),
    )


def rollout_view(ref: RolloutRef, found: RolloutEvents, *, with_rewards: bool) -> dict[str, Any]:
    """The view in JSON's types. Without `with_rewards`, what the agent itself must not see (task
    and rewards) is null.
    """
    declared = next((s for s in found.statuses if s.declaration is not None), None)
    declaration = None if declared is None else declared.declaration
    calls = sorted(found.calls, key=attrgetter("started_at"))
    rewards = sorted(found.rewards, key=attrgetter("event_time"))
    attempts = _attempts(found)
    modes = [event.mode for event in (*found.statuses, *calls)]
    shown = {
        "rollout_id": ref.rollout_id,
        "group_id": ref.group_id,
        "index": ref.index,
        "mode": modes[0] if modes else None,
        "state": _state(attempts, declaration.max_attempts if declaration else 1),
        "deadline": declaration.deadline if declaration else None,
        "run_id": declaration.run_id if declaration else None,
        "expected_rewards": declaration.expected_rewards if declaration else (),
        "task": msgspec.json.decode(declaration.task) if declaration and with_rewards else None,
        "attempts": attempts,
        "calls": calls[-MOST:],
        "rewards": [_reward_view(reward) for reward in rewards[-MOST:]] if with_rewards else None,
        "left_out": _left_out(found),
    }
    return msgspec.to_builtins(shown)


def _attempts(found: RolloutEvents) -> list[AttemptView]:
    own = [status for status in found.statuses if status.rollout_id is not None]
    numbers = {status.attempt for status in own} | {call.attempt for call in found.calls}
    return [
        _attempt(number, [status for status in own if status.attempt == number])
        for number in sorted(numbers)
    ]


def _attempt(number: int, statuses: Iterable[AgentStatus]) -> AttemptView:
    """The attempt; of several statuses that end it the earliest counts, as in its episode."""
    ends = sorted(
        (status for status in statuses if is_terminal(status)),
        key=attrgetter("event_time", "event_id"),
    )
    if not ends:
        return AttemptView(number, RUNNING, None, None, None, None, False)
    end = ends[0]
    return AttemptView(
        number,
        end.kind.value,
        end.event_time,
        end.failure,
        end.message,
        end.exit_code,
        end.will_retry,
    )


def _state(attempts: list[AttemptView], most: int) -> str:
    if not attempts:
        return "declared"
    last = attempts[-1]
    return RUNNING if last.will_retry and last.attempt + 1 < most else last.state


def _reward_view(reward: AgentReward) -> RewardView:
    return RewardView(
        reward.event_id,
        reward.name,
        reward.value,
        reward.error,
        reward.source,
        reward.event_time,
        reward.attempt,
        reward.call_id,
        reward.choice,
        reward.final,
    )


def _left_out(found: RolloutEvents) -> str | None:
    reasons = [
        f"older records of {topic} were not read: the time limit was reached"
        for topic in found.unread
    ]
    reasons += [
        f"{count - MOST} older {what} are not shown"
        for what, count in (("calls", len(found.calls)), ("rewards", len(found.rewards)))
        if count > MOST
    ]
    return "; ".join(reasons) or None
