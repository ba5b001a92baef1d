"""What a list of rollouts says of each, which are wanted, and that one bad group or record ends no
list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import CallOutcome, Mode, StatusKind
from fulgurite.failures import FailureKind
from fulgurite.topics import LLM_CALLS
from fulgurite.untrusted_json import Json
from services.replay.groups import Group
from services.replay.leaving_out import LeftOut
from services.replay.listing import Wanted, listed
from tests.services.replay.memory_log import MemoryLog
from tests.synthetic import group_id, make_call, make_declared, make_reward, make_status, rollout_id

ASKED: dict[str, object] = {"role": "user", "content": "the colour of a Banana?"}


def group_of_two() -> Group:
    """One answers right and is paid; the other calls a tool, fails and is paid less."""
    log = MemoryLog()
    log.append(make_declared(1, 2, task='{"question": "colour"}', run_id="run-1"))
    tool: dict[str, object] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "function": {"name": "look", "arguments": '{"at": "orange"}'}}],
    }
    log.append(
        make_call(1, 0, messages=[ASKED], replies=[{"role": "assistant", "content": "yellow"}]),
        make_status(1, 0),
    )
    log.append(make_call(1, 1, messages=[ASKED], replies=[tool], version="policy@1.8"))
    log.append(make_status(1, 1, StatusKind.failed, failure=FailureKind.agent_exception))
    log.append(make_reward(1, 0, 1.0), make_reward(1, 1, 0.25))
    (group,) = log.groups()
    return group


def rows(group: Group, **wanted: object) -> list[Json]:
    return list(listed(group, Wanted(**wanted)))  # pyright: ignore[reportArgumentType]


def test_a_row_tells_what_was_asked_said_and_paid() -> None:
    first, second = rows(group_of_two())
    expected = {
        "rollout_id": rollout_id(1, 0), "group_id": group_id(1), "run_id": "run-1", "mode": "train", "outcome": "finished", "failure": None,
        "calls": 1, "tokens": 2, "versions": ["policy@0.0"], "reward": 1.0, "reason": None, "task": '{"question": '
                                                                                                    '"colour"}',
        "answer": "yellow",
    }  # fmt: skip
    assert {key: first[key] for key in expected} == expected
    assert (second["failure"], second["reward"], second["answer"]) == (
        "agent_exception",
        0.25,
        'look({"at": "orange"})',
    )
    json.dumps([first, second])


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        ({}, [0, 1]),
        ({"mode": Mode.val}, []),
        ({"mode": Mode.train}, [0, 1]),
        ({"reward_below": 0.5}, [1]),
        ({"reward_below": 0.25}, []),
        ({"reward_above": 0.5}, [0]),
        ({"failure": FailureKind.agent_exception}, [1]),
        ({"failure": FailureKind.truncated}, []),
        ({"version": "policy@1.8"}, [1]),
        ({"run_id": "run-1"}, [0, 1]),
        ({"run_id": "run-2"}, []),
        ({"group_id": group_id(2)}, []),
        ({"text": "BANANA"}, [0, 1]),
        ({"text": "yellow"}, [0]),
        ({"text": "orange"}, [1]),
        ({"text": "Colour"}, [0, 1]),
        ({"text": "apple"}, []),
    ],
)
def test_filters(wanted: dict[str, object], indices: list[int]) -> None:
    assert [row["rollout_id"] for row in rows(group_of_two(), **wanted)] == [
        rollout_id(1, index) for index in indices
    ]


def test_an_open_rollout_and_one_that_failed_upstream_have_no_answer() -> None:
    log = MemoryLog()
    log.append(make_declared(1, 2), make_call(1, 0, outcome=CallOutcome.upstream_error))
    (group,) = log.groups()
    assert [(row["outcome"], row["answer"], row["reward"]) for row in rows(group)] == [
        ("open", None, None)
    ] * 2
    assert rows(group, reward_below=1.0) == []


@given(st.binary(max_size=40), st.integers(0, 3))
def test_a_bad_record_is_named_and_the_rest_is_listed(value: bytes, place: int) -> None:
    log = MemoryLog()
    events = [make_declared(1, 1), make_call(1, 0), make_status(1, 0)]
    for number, event in enumerate([*events, None]):
        if number == place:
            log.append_bytes(LLM_CALLS, group_id(1).encode(), value)
        if event is not None:
            log.append(event)
    left_out = LeftOut()
    assert [
        row["rollout_id"]
        for row in left_out.each(log.groups(), lambda group: listed(group, Wanted()))
    ] == [rollout_id(1, 0)]
    assert len(left_out.lines) == 1
    assert left_out.lines[0].startswith("llm.calls[")


@pytest.mark.parametrize(
    "error",
    [
        OverflowError("too large"),
        ValueError("-inf + inf in fsum"),
        RecursionError("deep"),
        KeyError("role"),
    ],
)
def test_a_group_that_cannot_be_used_is_named_and_the_others_go_on(error: Exception) -> None:
    bad, good = group_of_two(), group_of_two()

    def make(group: Group) -> Iterable[str]:
        yield "first"
        if group is bad:
            raise error
        yield "second"

    left_out = LeftOut()
    assert list(left_out.each([bad, good], make)) == ["first", "second"], (
        "all of a group or nothing"
    )
    assert left_out.lines == [f"group {group_id(1)}: {type(error).__name__}: {error}"]
