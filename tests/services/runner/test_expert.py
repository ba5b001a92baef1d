"""The expert between agent and gateway: what it passes on, and how it fails."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from services.runner.errors import ExpertFailed
from services.runner.expert import Expert, message_of
from services.runner.gateway_client import Grant
from services.runner.options import Task
from tests.services.common.processes import programs
from tests.serving import serving

CODE = """
import json, os, sys, time

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

def odd(task, messages):
    return {task["value"]: {1}}

def same(task, messages):
    return json.dumps([task, messages])

def hangs(task, messages):
    with open(task["pid"], "w") as file:
        print(os.getpid(), file=file)
    time.sleep(600)

def ends(task, messages):
    os._exit(7)
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


def expert_of(reference: str, on_failure: Callable[[str], None], timeout_s: float = 60.0) -> Expert:
    return Expert(reference, on_failure, concurrency=1, timeout_s=timeout_s)


async def asked_once(expert: Expert, url: str, task: Task, *messages: object) -> dict[str, Any]:
    """Ask for one answer; the error, or nothing."""
    own = expert.base_url(grant(url), task)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{own}/chat/completions", json={"messages": messages}) as reply,
    ):
        return {} if reply.status == 201 else (await reply.json())["error"]


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
    async with expert_of(f"{expert_file}:answer", pytest.fail) as expert:
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
    async with expert_of(f"{expert_file}:later", pytest.fail) as expert:
        own = expert.base_url(grant(url), {})
        async with aiohttp.ClientSession() as session:
            await session.post(f"{own}/chat/completions", json={"messages": []})
    assert json.loads(fake.seen[0][2])["fulgurite_dictate"]["content"] == "later"


async def test_other_requests_pass_as_they_are(
    expert_file: Path, gateway: tuple[FakeGateway, str]
) -> None:
    fake, url = gateway
    async with expert_of(f"{expert_file}:answer", pytest.fail) as expert:
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

    async with serving(redirect) as url, expert_of(f"{expert_file}:answer", pytest.fail) as expert:
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
    async with expert_of(f"{expert_file}:answer", told.append) as expert:
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


@pytest.mark.parametrize(
    ("function", "task", "said"),
    [
        (
            "odd",
            {"value": "content"},
            "the expert returned {'content': {1}} (dict): expected a text, a message with "
            "`content` or `tool_calls`, or None to let the model answer",
        ),
        ("ends", {}, "the expert failed: its process ended with code 7"),
        ("hangs", {"pid": "/dev/null"}, "the expert failed: no value within 1 s"),
    ],
)
async def test_an_answer_that_does_not_come_back_is_a_failure(
    expert_file: Path,
    gateway: tuple[FakeGateway, str],
    function: str,
    task: Task,
    said: str,
) -> None:
    told: list[str] = []
    async with expert_of(f"{expert_file}:{function}", told.append, 1.0) as expert:
        error = await asked_once(expert, gateway[1], task)
    assert (error["message"], told) == (said, [said])


async def test_task_and_messages_arrive_as_they_were_sent(
    expert_file: Path, gateway: tuple[FakeGateway, str]
) -> None:
    fake, url = gateway
    task = {"large": 2**70, "half": "\ud83c", "none": None, "number": 0.5}
    async with expert_of(f"{expert_file}:same", pytest.fail) as expert:
        assert await asked_once(expert, url, task, {"content": "a\ud83c"}) == {}
    seen = json.loads(json.loads(fake.seen[0][2])["fulgurite_dictate"]["content"])
    assert seen == [task, [{"content": "a\ud83c"}]]


async def test_closing_ends_an_expert_that_hangs(
    expert_file: Path, gateway: tuple[FakeGateway, str], tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    async with expert_of(f"{expert_file}:hangs", pytest.fail) as expert:
        asking = asyncio.create_task(asked_once(expert, gateway[1], {"pid": str(path)}))
        pid = int(await asyncio.to_thread(programs.wait_for_line, path))
        assert programs.is_alive(pid)
    with pytest.raises(aiohttp.ClientError):
        await asking
    assert await asyncio.to_thread(programs.is_soon_dead, pid)


PROGRAM = """
import asyncio
from services.runner.expert import Expert
from tests.services.runner.test_expert import FakeGateway, asked_once
from tests.serving import serving

async def main():
    fake = FakeGateway()
    expert = Expert("expert.py:answer", print, concurrency=2, timeout_s=60.0)
    async with serving(fake.serve) as url, expert:
        assert await asked_once(expert, f"{url}/v1", {}) == {}
    print(fake.seen[0][2].decode())
    # The runner's own modules are still there.
    import services.runner.rollout

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("package", [True, False], ids=["package", "folder"])
def test_a_project_may_have_a_package_called_services(tmp_path: Path, package: bool) -> None:
    program = tmp_path / "bin" / "program.py"
    project = tmp_path / "project"
    (project / "services").mkdir(parents=True)
    program.parent.mkdir()
    program.write_text(PROGRAM)
    (project / "expert.py").write_text(
        "from services.answers import ANSWER\ndef answer(task, messages): return ANSWER\n"
    )
    (project / "services" / "answers.py").write_text("ANSWER = 'ours'\n")
    if package:
        (project / "services" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fulgurite_dictate"]["content"] == "ours"
