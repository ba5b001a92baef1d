"""No client of ours goes where a redirect sends it: a prompt or a key would go along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from aiohttp import web

from services import client as client_package
from services.applier.engine import Engine, EngineRefused
from services.gateway.errors import UpstreamRejected
from services.gateway.settings import GatewaySettings
from services.gateway.upstream.client import UpstreamClient
from services.gateway.upstream.route import Route
from services.runner.gateway_client import GatewayClient, GatewayRefused
from tests.serving import serving


class Redirecting:
    """A server whose every path leads to `/stolen`, which notes who came."""

    def __init__(self) -> None:
        self.stolen: list[bytes] = []
        self.url = ""
        self.status = 307

    async def answer(self, request: web.Request) -> web.Response:
        if request.path != "/stolen":
            return web.Response(status=self.status, headers={"location": "/stolen"})
        self.stolen.append(await request.read())
        return web.json_response({})


@pytest_asyncio.fixture
async def server() -> AsyncGenerator[Redirecting]:
    made = Redirecting()
    async with serving(made.answer) as made.url:
        yield made


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_gateway(server: Redirecting, status: int) -> None:
    server.status = status
    client = UpstreamClient(GatewaySettings.model_validate({"signing_keys": "k1:0123456789abcdef"}))
    route = Route("a", "b", server.url, "vllm", "m", None, "sk-upstream")
    with pytest.raises(UpstreamRejected, match="not followed") as caught:
        await client.post(route, "/v1/chat/completions", b"a prompt", "c", None, {})
    assert caught.value.status == 502
    assert not await client.reachable(route)
    await client.close()
    assert server.stolen == []


async def test_the_applier(server: Redirecting) -> None:
    async with Engine(server.url, "sk-upstream") as engine:
        with pytest.raises(EngineRefused, match="307"):
            await engine.resume()
    assert server.stolen == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_client(server: Redirecting, status: int) -> None:
    server.status = status
    client = client_package.Client(server.url, "the-admin-key")
    with pytest.raises(client_package.GatewayRefused, match=str(status)):
        await asyncio.to_thread(client.rollout, "secret")
    with pytest.raises(client_package.GatewayRefused, match=str(status)):
        await asyncio.to_thread(client.newest_version)
    assert server.stolen == []


async def test_the_runner(server: Redirecting) -> None:
    async with GatewayClient(server.url, "the-admin-key") as client:
        with pytest.raises(GatewayRefused, match="307"):
            await client._post("/v1/rollouts", {"task": "secret"})  # pyright: ignore[reportPrivateUsage]
    assert server.stolen == []
