"""A judge's questions over HTTP, against a server that does as it is told: every failure is typed,
what may pass is asked again.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.judge.errors import BadVerdict, JudgeFailed, JudgeRefused, JudgeUnreachable
from services.judge.model import JudgeModel
from services.judge.prompt import DEFAULT_RUBRIC, Score, question
from services.judge.settings import JudgeSettings
from tests.integration.stub_upstream import running_stub

ASKED = question(
    [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]], DEFAULT_RUBRIC, 1_000
)
SCORES = [
    {"trajectory_id": "1", "explanation": "worse", "score": 0},
    {"trajectory_id": "2", "explanation": "better", "score": 1},
]
KEY = "sk-very-secret"


def settings(url: str, **changed: Any) -> JudgeSettings:
    return JudgeSettings.model_validate(
        {
            "base_url": f"{url}/v1/",
            "api_key": KEY,
            "retries": 2,
            "retry_wait_s": 0.0,
            "timeout_s": 5.0,
            **changed,
        }
    )


def test_the_gateway_is_asked_unless_another_server_is_named_which_never_gets_its_key() -> None:
    both = {"FULGURITE_GATEWAY_URL": "http://gateway:8080/", "FULGURITE_API_KEYS": "first, second"}
    asked = JudgeSettings.model_validate(both)
    assert (asked.url, asked.key()) == ("http://gateway:8080/v1", "first")
    assert JudgeSettings.model_validate({**both, "api_key": "own"}).key() == "own"
    elsewhere = JudgeSettings.model_validate({**both, "base_url": "http://other/v1/"})
    assert (elsewhere.url, elsewhere.key()) == ("http://other/v1", "")
    with pytest.raises(ValueError, match="no key for the gateway"):
        JudgeSettings.model_validate({}).key()


@pytest.mark.parametrize(
    ("given", "named"), [({"api_key": KEY}, "FULGURITE_JUDGE_API_KEY"), ({}, "FULGURITE_API_KEYS")]
)
async def test_a_key_that_is_refused_is_named_by_where_it_comes_from(
    given: dict[str, str], named: str
) -> None:
    async with running_stub() as stub:
        found = {"FULGURITE_GATEWAY_URL": stub.url, "FULGURITE_API_KEYS": KEY, **given}
        stub.reset(status=401, error="who are you?")
        async with JudgeModel("big", "judge", JudgeSettings.model_validate(found)) as model:
            with pytest.raises(JudgeRefused, match=f"does not accept the key in {named}$"):
                await model.scores(ASKED)


async def test_a_good_answer_is_asked_for_once() -> None:
    async with (
        running_stub() as stub,
        JudgeModel("big", "judge", settings(stub.url, temperature=0.0)) as model,
    ):
        stub.reset(words=[json.dumps({"scores": SCORES})])
        assert await model.scores(ASKED) == [Score("1", "worse", 0.0), Score("2", "better", 1.0)]
        [body] = stub.requests
        assert (body["model"], body["temperature"], body["response_format"]) == (
            "big",
            0.0,
            ASKED.response_format(),
        )
        [headers] = stub.headers
        assert (headers["Authorization"], headers["x-fulgurite-agent"]) == (
            f"Bearer {KEY}",
            "judge",
        )


@pytest.mark.parametrize(
    ("script", "failure", "times"),
    [
        ({"words": ["nonsense"]}, BadVerdict, 3),
        ({"words": []}, BadVerdict, 3),
        ({"finish_reason": "length"}, BadVerdict, 3),
        ({"finish_reason": "content_filter"}, JudgeRefused, 1),
        ({"status": 500, "error": "broken"}, JudgeUnreachable, 3),
        ({"status": 429, "error": "slow down"}, JudgeUnreachable, 3),
        ({"status": 400, "error": "no such format"}, JudgeRefused, 1),
        ({"status": 401, "error": f"bad key {KEY}"}, JudgeRefused, 1),
        ({"hang": True}, JudgeUnreachable, 3),
    ],
)
async def test_a_failure_is_typed_and_asked_again_if_that_may_help(
    script: dict[str, Any], failure: type[JudgeFailed], times: int
) -> None:
    async with (
        running_stub() as stub,
        JudgeModel("big", "judge", settings(stub.url, timeout_s=0.2)) as model,
    ):
        stub.reset(**script)
        with pytest.raises(failure) as told:
            await model.scores(ASKED)
        assert len(stub.requests) == times
        assert KEY not in told.value.text()


async def test_a_server_that_is_away_is_told() -> None:
    async with running_stub() as stub:
        url = stub.url
    async with JudgeModel("big", "judge", settings(url)) as model:
        with pytest.raises(JudgeUnreachable, match="ClientConnectorError"):
            await model.scores(ASKED)
