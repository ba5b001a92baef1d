"""What a rollout's events say of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.enums import Mode, StatusKind
from fulgurite.events import AgentStatus
from fulgurite.failures import FailureKind
from fulgurite.ids import parse_rollout
from services.gateway.recording.rollout_view import MOST, RolloutEvents, call_view, rollout_view
from tests.synthetic import make_call, make_declared, make_reward, make_status, rollout_id

REF = parse_rollout(rollout_id(0, 0))


def view(*statuses: AgentStatus, with_rewards: bool = True, **events: Any) -> dict[str, Any]:
    return rollout_view(REF, RolloutEvents(statuses=statuses, **events), with_rewards=with_rewards)


def test_a_declared_rollout_without_a_call() -> None:
    shown = view(make_declared(deadline=9_000))
    assert (shown["state"], shown["deadline"], shown["mode"]) == ("declared", 9_000, "train")
    assert (shown["task"], shown["expected_rewards"]) == ({"question": "1+1"}, ("reward",))
    assert (shown["attempts"], shown["calls"], shown["rewards"]) == ([], [], [])
    assert shown["left_out"] is None


def test_a_call_shows_everything_but_its_text() -> None:
    call = make_call(messages=[{"role": "user", "content": "secret"}], version="policy@1.2")
    shown = view(calls=(call_view(call),))
    assert (shown["state"], shown["deadline"], shown["task"]) == ("running", None, None)
    [seen] = shown["calls"]
    assert (seen["completion_id"], seen["alias"], seen["version"]) == (
        call.call_id,
        "policy",
        "policy@1.2",
    )
    assert seen["choices"] == ({"index": 0, "finish_reason": "stop"},)
    assert "secret" not in str(shown)
    assert "answer 0" not in str(shown)


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (StatusKind.finished, None),
        (StatusKind.failed, FailureKind.agent_exception),
        (StatusKind.timed_out, FailureKind.agent_silent),
    ],
)
def test_the_status_that_ended_a_rollout_is_its_state(
    kind: StatusKind, failure: FailureKind | None
) -> None:
    ended = make_status(kind=kind, failure=failure, message="why", at=5)
    shown = view(make_status(kind=StatusKind.started, at=1), ended)
    assert shown["state"] == kind
    [attempt] = shown["attempts"]
    assert (attempt["state"], attempt["ended_at"], attempt["message"]) == (kind, 5, "why")
    assert attempt["failure"] == failure


def test_the_earliest_end_counts_as_in_the_episode() -> None:
    late, early = (
        make_status(kind=StatusKind.failed, at=9),
        make_status(kind=StatusKind.finished, at=8),
    )
    assert view(late, early)["state"] == "finished"


@pytest.mark.parametrize(("most", "state"), [(1, "failed"), (2, "running")])
def test_a_rollout_whose_next_attempt_is_promised_is_running(most: int, state: str) -> None:
    failed = make_status(kind=StatusKind.failed, will_retry=True)
    shown = view(make_declared(max_attempts=most), failed)
    assert (shown["state"], shown["attempts"][0]["state"]) == (state, "failed")


def test_the_last_attempt_says_what_became_of_the_rollout() -> None:
    statuses = (
        make_status(kind=StatusKind.failed, will_retry=True),
        make_status(kind=StatusKind.heartbeat, attempt=1),
    )
    shown = view(make_declared(max_attempts=2), *statuses)
    assert shown["state"] == "running"
    assert [attempt["state"] for attempt in shown["attempts"]] == ["failed", "running"]


def test_rewards_come_with_value_source_and_time_by_time() -> None:
    later, first = (
        make_reward(value=1.0, at=7),
        msgspec.structs.replace(
            make_reward(at=6), event_id="first", value=None, error="ZeroDivisionError", source="f"
        ),
    )
    failed, paid = view(rewards=(later, first))["rewards"]
    assert (failed["value"], failed["error"], failed["source"], failed["at"]) == (
        None,
        "ZeroDivisionError",
        "f",
        6,
    )
    assert (paid["reward_id"], paid["value"], paid["at"]) == (later.event_id, 1.0, 7)


def test_the_agent_sees_neither_task_nor_rewards() -> None:
    shown = view(make_declared(), rewards=(make_reward(),), with_rewards=False)
    assert (shown["task"], shown["rewards"]) == (None, None)


def test_what_is_left_out_is_said() -> None:
    call = call_view(make_call(mode=Mode.live))
    calls = tuple(
        msgspec.structs.replace(call, completion_id=str(number), started_at=number)
        for number in range(MOST + 3)
    )
    shown = view(calls=calls, unread=("llm.calls",))
    assert [shown["calls"][0]["completion_id"], len(shown["calls"])] == ["3", MOST]
    assert shown["left_out"] == (
        "older records of llm.calls were not read: the time limit was reached; 3 older calls are "
        "not shown"
    )
