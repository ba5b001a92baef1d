"""The client of the reflection model against a server that fails in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from fulgurite.cost.prices import Price
from services.tuner.errors import ReflectionFailed
from services.tuner.reflection import ReflectionModel
from services.tuner.settings import TunerSettings

GOOD = {
    "choices": [{"message": {"content": "better"}}],
    "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 500_000},
}


@asynccontextmanager
async def server(*answers: tuple[int, Any]) -> AsyncGenerator[tuple[str, list[Any]]]:
    left, seen = list(answers), list[Any]()

    async def answer(request: web.Request) -> web.Response:
        seen.append((await request.json(), request.headers.get("authorization")))
        status, body = left.pop(0)
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", seen
    finally:
        await runner.cleanup()


def model(url: str, price: Price | None = None, **settings: Any) -> ReflectionModel:
    given = TunerSettings(base_url=url, api_key=SecretStr("k"), retry_wait_s=0.0, **settings)
    return ReflectionModel("teacher", given, price)


async def test_an_answer_comes_with_its_cost() -> None:
    async with server((200, GOOD)) as (url, seen):
        text, cost = await asyncio.to_thread(model(url, Price(input=2, output=4)).ask, "why?")
    assert text == "better"
    assert (cost.calls, cost.prompt_tokens, cost.money) == (1, 1_000_000, 4.0)
    [(body, key)] = seen
    assert (body["model"], body["messages"][0]["content"], key) == ("teacher", "why?", "Bearer k")


async def test_what_may_pass_is_asked_again() -> None:
    without_usage = {"choices": GOOD["choices"]}
    async with server((503, {}), (200, {"choices": []}), (200, without_usage)) as (url, seen):
        text, cost = await asyncio.to_thread(model(url).ask, "why?")
    assert (text, cost.money, cost.prompt_tokens, len(seen)) == ("better", None, 0, 3)


async def test_what_does_not_pass_is_an_error() -> None:
    async with server((429, {}), (500, {}), (502, {})) as (url, _):
        with pytest.raises(ReflectionFailed, match=r"gave no answer: .*502"):
            await asyncio.to_thread(model(url).ask, "why?")
    async with server((404, {"error": "no such model"})) as (url, seen):
        with pytest.raises(ReflectionFailed, match=r"404: .*no such model.*--reflection-model"):
            await asyncio.to_thread(model(url).ask, "why?")
    assert len(seen) == 1
    with pytest.raises(ReflectionFailed, match="Client"):
        await asyncio.to_thread(model("http://127.0.0.1:1/v1", retries=0).ask, "why?")


async def test_a_refused_key_is_not_repeated() -> None:
    async with server((401, {"error": "bad key k-very-secret"})) as (url, _):
        with pytest.raises(ReflectionFailed, match="FULGURITE_TUNER_API_KEY") as told:
            await asyncio.to_thread(model(url).ask, "why?")
    assert "very-secret" not in str(told.value)


def test_a_key_of_a_rollout_is_refused() -> None:
    settings = TunerSettings(api_key=SecretStr("fg-of-a-rollout"))
    with pytest.raises(ValueError, match="FULGURITE_TUNER_API_KEY is a rollout's key"):
        ReflectionModel("teacher", settings, None)


def test_a_key_of_the_gateway_goes_to_no_other_server() -> None:
    keys = {"FULGURITE_API_KEYS": SecretStr("plain, other")}
    assert TunerSettings(**keys).key() == "plain"  # type: ignore[arg-type]
    assert TunerSettings(**keys).url.endswith("/v1")  # type: ignore[arg-type]
    assert TunerSettings(base_url="http://x/v1", **keys).key() == ""  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="set FULGURITE_TUNER_API_KEY"):
        TunerSettings().key()
