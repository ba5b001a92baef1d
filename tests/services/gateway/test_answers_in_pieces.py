"""However the bytes of an answer arrive, the agent and the log get the same; whatever becomes of
them, they get one error and one event.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Generator
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulgurite.enums import CallOutcome
from fulgurite.failures import FailureKind
from fulgurite.tokens import pack_ids
from tests.services.gateway.answering import Answer, Gateway, running
from tests.services.gateway.valid_answers import ASKED, Valid, pieces_of, valid_answer

RANDOMS = st.randoms(use_true_random=False)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
_T = TypeVar("_T")


class Loop:
    """A gateway and the event loop that it lives in: Hypothesis calls plain functions."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._context = running(folder)
        self.gateway: Gateway = self._runner.run(self._context.__aenter__())

    def run(self, asked: Coroutine[Any, Any, _T]) -> _T:
        return self._runner.run(asked)

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Generator[Loop]:
    made = Loop(tmp_path_factory.mktemp("gateway"))
    yield made
    made.close()


def streamed(loop: Loop, valid: Valid, pieces: list[bytes]) -> Answer:
    return loop.run(
        loop.gateway.answer(valid.path, pieces, model=valid.alias, stream=True, **ASKED[valid.path])
    )


def said(answer: Answer) -> bytes:
    """The body, without the ids that differ from call to call."""
    return re.sub(rb"01[0-9a-z_]{40,}", b"ID", answer.body)


def check_record(answer: Answer, valid: Valid) -> None:
    call = answer.call
    expected = FailureKind.truncated if valid.reason == "length" else None
    assert (call.outcome, call.failure, answer.status) == (CallOutcome.success, expected, 200)
    [choice] = call.choices
    assert msgspec.json.decode(choice.message or "") == valid.message
    assert choice.finish_reason == valid.reason
    assert choice.token_ids == (None if valid.tokens is None else pack_ids(valid.tokens))
    assert (choice.logprobs is None) == (valid.tokens is None)


@given(random=RANDOMS, line_end=LINE_ENDS)
def test_a_stream_is_the_same_however_it_comes(loop: Loop, random: Random, line_end: bytes) -> None:
    valid = valid_answer(random)
    whole, pieces = (
        streamed(loop, valid, [valid.stream]),
        pieces_of(random, valid.stream.replace(b"\n", line_end)),
    )
    in_pieces = streamed(loop, valid, pieces)
    check_record(whole, valid)
    check_record(in_pieces, valid)
    assert said(in_pieces) == said(whole)


@given(random=RANDOMS)
def test_a_whole_answer_has_the_record_of_its_stream(loop: Loop, random: Random) -> None:
    valid = valid_answer(random)
    body = pieces_of(random, valid.whole)
    check_record(
        loop.run(loop.gateway.answer(valid.path, body, model=valid.alias, **ASKED[valid.path])),
        valid,
    )


@given(random=RANDOMS, line_end=LINE_ENDS)
def test_a_stream_that_is_cut_off_is_complete_or_an_error(
    loop: Loop, random: Random, line_end: bytes
) -> None:
    valid = valid_answer(random)
    data = valid.stream.replace(b"\n", line_end)
    answer = streamed(loop, valid, pieces_of(random, data[: random.randint(0, len(data) - 1)]))
    if answer.call.outcome is CallOutcome.success:
        check_record(answer, valid)
        return
    assert answer.call.outcome is CallOutcome.upstream_error
    errors = [event for event in answer.events if event != "[DONE]" and event.get("error")]
    assert (len(errors), errors[-1]) == (1, answer.events[-1])
    assert "[DONE]" not in answer.events


@given(random=RANDOMS)
def test_a_whole_answer_that_is_cut_off_is_an_error(loop: Loop, random: Random) -> None:
    valid = valid_answer(random)
    body = valid.whole[: random.randint(0, len(valid.whole) - 1)]
    answer = loop.run(
        loop.gateway.answer(valid.path, [body], model=valid.alias, **ASKED[valid.path])
    )
    assert (answer.status, answer.call.outcome, answer.call.choices) == (
        502,
        CallOutcome.upstream_error,
        (),
    )
    assert json.loads(answer.body)["error"]["message"]
