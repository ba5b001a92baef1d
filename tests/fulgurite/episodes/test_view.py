"""What a reward function sees."""

from __future__ import annotations

import msgspec

from fulgurite.enums import CallOutcome, EpisodeOutcome, StatusKind
from fulgurite.episodes.stitching import Input, stitch
from fulgurite.episodes.view import EpisodeView
from fulgurite.events import Episode
from fulgurite.failures import FailureKind
from tests.synthetic import make_call, make_declared, make_status, rollout_id

QUESTION: dict[str, object] = {"role": "user", "content": "1+1"}
TOOL: dict[str, object] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"function": {"name": "calc", "arguments": '{"e": "1+1"}'}},
        {"function": {"name": "calc", "arguments": "1+"}},
    ],
}


def record(*events: Input) -> Episode:
    episode = stitch(
        [
            *events,
            make_status(
                kind=StatusKind.failed, failure=FailureKind.agent_exception, message="boom"
            ),
        ]
    )
    assert episode is not None
    return episode


def test_conversation_and_answer() -> None:
    view = EpisodeView(
        record(
            make_declared(),
            make_call(turn=0, at=1, messages=[QUESTION], replies=[TOOL]),
            make_call(
                turn=1,
                at=2,
                messages=[QUESTION, TOOL],
                replies=[{"role": "assistant", "content": "2"}],
            ),
            make_call(turn=2, at=3, outcome=CallOutcome.upstream_error),
        )
    )
    assert view.task == {"question": "1+1"}
    assert [message["role"] for message in view.messages] == ["user", "assistant", "assistant"]
    assert view.final_text() == "2"
    assert len(view.calls) == 2
    assert [(turn.agent, turn.message, turn.text) for turn in view.turns] == [
        (view.calls[0].agent, TOOL, ""),
        (view.calls[1].agent, {"role": "assistant", "content": "2"}, "2"),
    ]
    assert [turn.call_id for turn in view.turns] == [call.call_id for call in view.calls]
    assert view.tool_calls() == [
        {"name": "calc", "arguments": {"e": "1+1"}},
        {"name": "calc", "arguments": "1+"},
    ]
    assert (view.failure, view.outcome, view.message) == (
        FailureKind.agent_exception,
        EpisodeOutcome.failed,
        "boom",
    )
    assert view.rollout_id == rollout_id(0, 0)


def test_calls_that_answer_nothing_do_not_hide_the_answer() -> None:
    counted = msgspec.structs.replace(make_call(turn=1, at=2), api="embeddings", choices=())
    view = EpisodeView(
        record(
            make_call(
                turn=0, at=1, messages=[QUESTION], replies=[{"role": "assistant", "content": "2"}]
            ),
            counted,
        )
    )
    assert view.final_text() == "2"


def test_nothing_said() -> None:
    view = EpisodeView(record())
    assert (view.task, view.messages, view.final_text(), view.tool_calls()) == (None, [], "", [])


def test_what_cannot_be_read_is_empty() -> None:
    tool_only = EpisodeView(
        record(make_declared(task="plain words"), make_call(messages=[QUESTION], replies=[TOOL]))
    )
    assert tool_only.task == "plain words"
    assert tool_only.final_text() == ""
    unanswered = msgspec.structs.replace(make_call(messages=[QUESTION]), choices=())
    assert EpisodeView(record(unanswered)).final_text() == ""
    broken = make_call(messages=[])
    broken = msgspec.structs.replace(
        broken, choices=(msgspec.structs.replace(broken.choices[0], message="{"),)
    )
    assert EpisodeView(record(broken)).messages == []
