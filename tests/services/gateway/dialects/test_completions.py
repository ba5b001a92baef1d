"""OpenAI's completions: what is asked of the upstream, and what becomes of the answer."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fulgurite.failures import FailureKind
from fulgurite.tokens import unpack_ids, unpack_logprobs
from services.gateway.dialects.completions import Completions
from services.gateway.errors import InvalidRequest
from tests.services.gateway.dialects.samples import (
    CALL,
    CORE,
    DEFAULTS,
    OTHER,
    VLLM,
    ask,
    passed,
    sent,
)

DIALECT = Completions()


def choice(index: int = 0, **fields: Any) -> dict[str, Any]:
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [None, None],
        "text_offset": [0, 1],
    }
    base: dict[str, Any] = {
        "index": index,
        "text": "ab",
        "logprobs": logprobs,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    return base | {"token_ids": [7, 8], "prompt_token_ids": [1, 2]} | fields


def reply(*choices: dict[str, Any]) -> dict[str, Any]:
    usage = {"prompt_tokens": 2, "completion_tokens": 2}
    return {
        "id": "cmpl-up",
        "object": "text_completion",
        "model": "served",
        "choices": list(choices),
        "usage": usage,
    }


@pytest.mark.parametrize("fields", [{}, {"prompt": 3}, {"prompt": {"text": "a"}}, {"prompt": None}])
def test_without_a_prompt_it_is_no_request(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(DIALECT, **fields)
    assert caught.value.param == "prompt"


def test_vllm_is_asked_for_tokens_unless_the_prompt_is_echoed() -> None:
    body = sent(DIALECT, ask(DIALECT, prompt="a", stream=True), VLLM)
    assert (body["model"], body["logprobs"], body["return_token_ids"]) == ("served", 0, True)
    assert body["stream_options"] == {"include_usage": True}
    assert sent(DIALECT, ask(DIALECT, prompt="a", logprobs=3), VLLM)["logprobs"] == 3
    echoed = sent(DIALECT, ask(DIALECT, prompt=[1, 2], echo=True), VLLM)
    assert echoed == {"model": "served", "prompt": [1, 2], "echo": True}
    assert sent(DIALECT, ask(DIALECT, prompt=["a"], suffix="b"), OTHER) == {
        "model": "gpt-5",
        "prompt": ["a"],
        "suffix": "b",
    }


def test_the_log_gets_the_tokens_and_the_agent_does_not() -> None:
    capture = DIALECT.capture(ask(DIALECT, prompt="a"), VLLM, CALL)
    body = passed(capture, reply(choice()))
    assert (body["id"], body["model"]) == (f"cmpl-{CORE}", "policy")
    assert body["choices"] == [
        {"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    [taken] = capture.recorded_choices()
    assert unpack_ids(taken.token_ids or b"").tolist() == [7, 8]
    assert unpack_logprobs(taken.logprobs or b"").tolist() == [-0.5, -1.0]
    assert taken.message == '{"text":"ab"}'
    assert capture.prompt_token_ids == [1, 2]
    assert (capture.prompt_tokens, capture.completion_tokens) == (2, 2)


@pytest.mark.parametrize("asked", [0, 2])
def test_the_agent_gets_the_logprobs_that_it_asked_for(asked: int) -> None:
    capture = DIALECT.capture(
        ask(DIALECT, prompt="a", logprobs=asked, return_token_ids=True), VLLM, CALL
    )
    [got] = passed(capture, reply(choice()))["choices"]
    assert got["logprobs"]["token_logprobs"] == [-0.5, -1.0]
    assert (got["token_ids"], got["prompt_token_ids"]) == ([7, 8], [1, 2])


def test_choices_of_one_prompt_share_it_and_several_prompts_are_nobodys() -> None:
    capture = DIALECT.capture(ask(DIALECT, prompt="a", n=2), VLLM, CALL)
    passed(capture, reply(choice(), choice(1)))
    assert capture.prompt_token_ids == [1, 2]
    capture = DIALECT.capture(ask(DIALECT, prompt=["a", "b"]), VLLM, CALL)
    passed(
        capture,
        reply(choice(), choice(1, prompt_token_ids=[9]), choice(2, prompt_token_ids=[1, 2])),
    )
    assert capture.prompt_token_ids is None
    assert len(capture.recorded_choices()) == 3


@pytest.mark.parametrize(
    "broken",
    [
        {"token_ids": None},
        {"logprobs": {"token_logprobs": [None, -1.0]}},
        {"logprobs": {"token_logprobs": [-1.0]}},
    ],
)
def test_what_does_not_pair_is_null(broken: dict[str, Any]) -> None:
    capture = DIALECT.capture(ask(DIALECT, prompt="a"), VLLM, CALL)
    passed(capture, reply(choice(**broken)))
    assert capture.recorded_choices()[0].logprobs is None


def test_a_stream_adds_up() -> None:
    capture = DIALECT.capture(ask(DIALECT, prompt="a", stream=True), VLLM, CALL)
    one = {"tokens": ["a"], "token_logprobs": [-0.5]}
    chunks = [
        choice(text="a", token_ids=[7], logprobs=one, finish_reason=None),
        choice(text="", token_ids=[9], logprobs=one, finish_reason=None, prompt_token_ids=None),
        choice(
            text="b", token_ids=[8], logprobs=one, finish_reason="length", prompt_token_ids=None
        ),
    ]
    out = [
        capture.parse_chunk({"id": "up", "model": "served", "choices": [chunk]}) for chunk in chunks
    ]
    assert out[1] is None, "a token without text is there only because we asked for ids"
    assert "token_ids" not in msgspec.json.decode(out[0] or b"")["choices"][0]
    [taken] = capture.recorded_choices()
    assert (taken.message, taken.finish_reason) == ('{"text":"ab"}', "length")
    assert unpack_ids(taken.token_ids or b"").tolist() == [7, 9, 8]
    assert capture.prompt_token_ids == [1, 2]
    assert capture.failure() is FailureKind.truncated


def test_what_is_no_completion_is_none() -> None:
    assert (
        DIALECT.capture(ask(DIALECT, prompt="a"), VLLM, CALL).parse_reply({"object": "list"})
        is None
    )


def test_sampling() -> None:
    sampling = DIALECT.sampling(
        ask(DIALECT, prompt="a", temperature=0.5, max_tokens=9, seed=3), DEFAULTS
    )
    assert (sampling.temperature, sampling.max_tokens, sampling.seed, sampling.grammar) == (
        0.5,
        9,
        3,
        False,
    )
