"""Whatever agents and models write, nothing that reads it raises, and what is read does not depend
on the reader's stack.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.calls.conversations import atoms
from fulgurite.calls.transcript import answer_of, body_of, messages_of
from fulgurite.episodes.detectors import DETECTORS
from fulgurite.episodes.detectors.evidence import Evidence
from fulgurite.episodes.stitching import Input, stitch
from fulgurite.episodes.view import EpisodeView
from fulgurite.events import Episode, LlmCall
from fulgurite.groups.closing import close_group
from fulgurite.trajectories.building import build_trajectories
from fulgurite.trajectories.prefix_breaks import classify
from fulgurite.untrusted_json import DEEPEST, called_functions, encoded, mapping, mappings, parsed
from tests import foreign
from tests.synthetic import make_call, make_declared, make_reward, make_status

RULES = ("identical", "last_step", "step", "discounted(gamma=0.9)", "per_role", "gigpo(gamma=0.9)")


def episode_of(calls: list[LlmCall], task: str = "null", credit: str = "identical") -> Episode:
    declared = make_declared(0, 1, task=task, credit=credit)
    inputs: list[Input] = [declared, *calls, make_status(at=2_000)]
    episode = stitch(inputs)
    assert episode is not None
    return episode


@given(foreign.calls())
def test_no_detector_raises(calls: list[LlmCall]) -> None:
    for _, detect in DETECTORS:
        assert detect(Evidence(make_status(), calls)) in (True, False)


@given(foreign.calls(), foreign.texts)
def test_an_episode_s_view_never_raises(calls: list[LlmCall], task: str) -> None:
    view = EpisodeView(episode_of(calls, task))
    assert isinstance(view.final_text(), str)
    assert all(call.keys() == {"name", "arguments"} for call in view.tool_calls())
    assert all(isinstance(message, dict) for message in view.messages)
    assert view.task is None or view.task is not Ellipsis
    assert (view.rollout_id, view.failure, view.outcome) == (
        view.record.rollout_id,
        view.record.failure,
        view.record.outcome,
    )


@given(foreign.calls(), st.sampled_from(RULES))
def test_whatever_was_said_is_cut_and_credited(calls: list[LlmCall], rule: str) -> None:
    episode = episode_of(calls, credit=rule)
    assert len(build_trajectories(episode).rows) + len(build_trajectories(episode).left_out) >= 1
    assert close_group(episode.group_id, episode.declaration, [episode], [make_reward(0, 0, 1.0)])


@given(foreign.calls(turns=2))
def test_why_a_prompt_goes_elsewhere_is_told_of_any_messages(calls: list[LlmCall]) -> None:
    first, last = calls[0], calls[-1]
    assert classify(first, first.choices[0], last)


@given(foreign.anything)
def test_a_transcript_and_its_atoms_are_made_of_anything(body: Any) -> None:
    for api in ("chat.completions", "messages", "responses", "completions"):
        call = msgspec.structs.replace(make_call(), request=json.dumps(body), api=api)
        assert all(isinstance(message, dict) for message in messages_of(call))
        assert list(atoms(messages_of(call))) is not None
    answer_of(msgspec.structs.replace(make_call().choices[0], message=json.dumps(body)))


@given(foreign.anything)
def test_what_was_read_can_be_written_again(value: Any) -> None:
    line = encoded(value)
    assert b"\n" not in line
    json.loads(line)


@pytest.mark.parametrize("bad", [["x"], [{"function": "x"}], 5, {"a": 1}, [None], "x", True])
def test_tool_calls_that_are_none(bad: Any) -> None:
    message: dict[str, object] = {"role": "assistant", "content": "ok", "tool_calls": bad}
    hi: dict[str, object] = {"role": "user", "content": "hi"}
    call = make_call(messages=[hi, message, hi])
    assert episode_of([call]).failure is None
    assert {called["name"] for called in EpisodeView(episode_of([call])).tool_calls()} <= {None}
    # Six turns after it no detector looks at it, but a break between two prompts does.
    turns: list[dict[str, object]] = [
        {"role": role, "content": "x"} for _ in range(6) for role in ("user", "assistant")
    ]
    later = make_call(turn=1, at=1_100, prompt=(4, 5), messages=[message, *turns, hi])
    other = make_call(turn=2, at=1_200, prompt=(6, 5), messages=[message, *turns, message])
    assert len(build_trajectories(episode_of([call, later, other])).rows) == 3


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_nesting_is_read_down_to_a_bound_wherever_the_reader_stands() -> None:
    assert parsed(nested(DEEPEST)) is not None
    wide = json.dumps([[number] for number in range(2 * DEEPEST)])
    assert len(parsed(wide)) == 2 * DEEPEST
    for depth in (DEEPEST + 1, 900, 100_000):
        with pytest.raises(ValueError, match="nested"):
            parsed(nested(depth))
    assert (
        body_of(msgspec.structs.replace(make_call(), request='{"a":' * 500 + "1" + "}" * 500)) == {}
    )


@pytest.mark.parametrize("task", ["no JSON", nested(500), nested(100_000)])
def test_a_task_that_cannot_be_read_is_its_text(task: str) -> None:
    assert EpisodeView(episode_of([make_call()], task)).task == task


def test_what_has_not_the_form_is_left_out() -> None:
    assert (mapping([1]), mapping({"a": 1})) == ({}, {"a": 1})
    assert (mappings("ab"), mappings([1, {"a": 1}, None])) == ([], [{"a": 1}])
    assert called_functions({"tool_calls": [{"function": {"name": "f"}}, {"function": 5}, 7]}) == [
        {"name": "f"},
        {},
    ]
    with pytest.raises(ValueError, match="NoneType is not a JSON text"):
        parsed(None)
    assert parsed('"\\ud83d"') == "\ud83d"
    assert parsed(json.dumps("[" * 200)) == "[" * 200, "brackets within a text are no levels"
    assert encoded("\ud83d") == b'"\\ud83d"'
