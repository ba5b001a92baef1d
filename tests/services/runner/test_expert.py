"""The expert between agent and gateway: what it passes on, and how it fails."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from services.rewards.errors import PluginError
from services.runner.errors import ExpertFailed
from services.runner.expert import Expert, message_of
from services.runner.gateway_client import Grant
from tests.serving import serving

CODE = """
import sys

def answer(task, messages):
    asked = messages[-1]["content"]
    if asked == "tool":
        return {"tool_calls": [{"name": "calc", "arguments": {"expression": task["reference"]}}]}
    if asked == "raise":
        raise LookupError("no such task")
    if asked == "exit":
        sys.exit(3)
    if asked == "wrong":
        return 7
    return None if asked == "alone" else "as told"

async def later(task, messages):
    return "later"
"""


class FakeGateway:
    """Keeps what it is sent, and answers in pieces."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []

    async def serve(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.path_qs, headers, await request.read()))
        if request.path.endswith("/models"):
            return web.Response(
                body=gzip.compress(b"listed"), headers={"Content-Encoding": "gzip", "x-own": "1"}
            )
        response = web.StreamResponse(status=201, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in (b"data: a\n\n", b"data: b\n\n"):
            await response.write(piece)
        return response


@pytest.fixture
def expert_file(tmp_path: Path) -> Path:
    (tmp_path / "expert.py").write_text(CODE)
    return tmp_path / "expert.py"


@pytest_asyncio.fixture
async def gateway() -> AsyncGenerator[tuple[FakeGateway, str]]:
    fake = FakeGateway()
    async with serving(fake.serve) as url:
        yield fake, f"{url}/v1"


def grant(base_url: str) -> Grant:
    return Grant("ro_1", 0, 0, base_url, "sk-key", "sk-reward")


@pytest.mark.parametrize(
    ("asked", "dictated"),
    [
        ("hi", {"role": "assistant", "content": "as told"}),
        ("alone", None),
        (
            "tool",
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_0",
                        "type": "function",
                        "function": {"name": "calc", "arguments": '{"expression": "3+8"}'},
                    }
                ],
            },
        ),
    ],
)
async def test_the_experts_answer_is_dictated(
    expert_file: Path,
    gateway: tuple[FakeGateway, str],
    asked: str,
    dictated: dict[str, Any] | None,
) -> None:
    fake, url = gateway
    body = {"model": "policy", "messages": [{"role": "user", "content": asked}], "stream": True}
    async with Expert(f"{expert_file}:answer", pytest.fail) as expert:
        own = expert.base_url(grant(url), {"question": "q", "reference": "3+8"})
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{own}/chat/completions?a=b", json=body, headers={"Authorization": "Bearer k"}
            ) as reply,
        ):
            assert (reply.status, await reply.read()) == (201, b"data: a\n\ndata: b\n\n")
            assert reply.headers["Content-Type"] == "text/event-stream"
    [(path, headers, sent)] = fake.seen
    assert path == "/v1/chat/completions?a=b"
    assert headers["authorization"] == "Bearer k"
    expected = body if dictated is None else {**body, "fulgurite_dictate": dictated}
    assert json.loads(sent) == expected


async def test_an_expert_may_be_async(expert_file: Path, gateway: tuple[FakeGateway, str]) -> None:
    fake, url = gateway
    async with Expert(f"{expert_file}:later", pytest.fail) as expert:
        own = expert.base_url(grant(url), {})
        async with aiohttp.ClientSession() as session:
            await session.post(f"{own}/chat/completions", json={"messages": []})
    assert json.loads(fake.seen[0][2])["fulgurite_dictate"]["content"] == "later"


async def test_other_requests_pass_as_they_are(
    expert_file: Path, gateway: tuple[FakeGateway, str]
) -> None:
    fake, url = gateway
    async with Expert(f"{expert_file}:answer", pytest.fail) as expert:
        own = expert.base_url(grant(url), {})
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{own}/models") as reply:
                assert (await reply.text(), reply.headers["x-own"]) == ("listed", "1")
            for raw in (b"no JSON", b"[]", b"{}"):
                await session.post(f"{own}/chat/completions", data=raw)
            await session.post(f"{own}/responses", data=b"{}")
            async with session.get(own.replace("ro_1", "ro_2") + "/models") as reply:
                assert reply.status == 404
    assert [sent for _, _, sent in fake.seen] == [b"", b"no JSON", b"[]", b"{}", b"{}"]


async def test_a_redirect_is_the_agents_to_follow(expert_file: Path) -> None:
    asked: list[str] = []

    async def redirect(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(status=307, headers={"location": "/stolen"})

    async with serving(redirect) as url, Expert(f"{expert_file}:answer", pytest.fail) as expert:
        own = expert.base_url(grant(f"{url}/v1"), {})
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{own}/models", allow_redirects=False) as reply,
        ):
            assert (reply.status, reply.headers["location"]) == (307, "/stolen")
    assert asked == ["/v1/models"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("raise", "LookupError: no such task"),
        ("exit", "SystemExit: 3"),
        ("wrong", r"returned 7 \(int\): expected a text"),
    ],
)
async def test_an_expert_that_fails_is_told_to_the_agent_and_to_the_run(
    expert_file: Path, gateway: tuple[FakeGateway, str], asked: str, said: str
) -> None:
    fake, url = gateway
    told: list[str] = []
    async with Expert(f"{expert_file}:answer", told.append) as expert:
        own = expert.base_url(grant(url), {})
        body = {"messages": [{"role": "user", "content": asked}]}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{own}/chat/completions", json=body) as reply,
        ):
            assert reply.status == 400
            error = (await reply.json())["error"]
    assert (fake.seen, error["code"]) == ([], "expert")
    with pytest.raises(ExpertFailed, match=said):
        raise ExpertFailed(error["message"])
    assert told == [error["message"]]


def test_a_message_keeps_what_it_has() -> None:
    function = {"name": "calc", "arguments": "{}"}
    assert message_of(
        {"content": "Let me see.", "tool_calls": [{"id": "mine", "function": function}]}
    ) == {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [{"id": "mine", "type": "function", "function": function}],
    }


def test_what_is_no_expert_is_refused(expert_file: Path) -> None:
    with pytest.raises(PluginError, match="has no function 'nobody'"):
        Expert(f"{expert_file}:nobody", pytest.fail)
