"""The client against a gateway's routes: what it sends, retries and raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from aiohttp import web

from services.client import (
    Client,
    ClientError,
    GatewayRefused,
    GatewayUnreachable,
    MissingAdminKey,
    Rollout,
)
from services.local_stack.ports import free_port
from tests.serving import serving

T = TypeVar("T")


class Gateway:
    """Answers as the REST routes do, and notes what it is asked. `failing`: statuses that come
    first.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, str, str, Any]] = []
        self.idempotency_keys: list[str | None] = []
        self.failing: list[int] = []

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        key = request.headers["authorization"].removeprefix("Bearer ")
        self.asked.append((request.method, request.path, key, json.loads(body) if body else None))
        self.idempotency_keys.append(request.headers.get("idempotency-key"))
        if self.failing:
            return web.json_response({"error": {"message": "said why"}}, status=self.failing.pop(0))
        if request.path == "/v1/rollouts":
            grants = [self.grant(number) for number in range(self.asked[-1][3]["n"])]
            return web.json_response({"group_id": "gr_1", "rollouts": grants}, status=201)
        if request.path == "/v1/policies":
            return web.json_response({"data": [{"policy": "policy", "newest": "policy@1.2"}]})
        return web.json_response({"reward_id": "re_1", "state": "running"}, status=201)

    def grant(self, number: int) -> dict[str, Any]:
        return {
            "rollout_id": f"ro_{number}",
            "attempt": 0,
            "base_url": f"{self.url}/v1",
            "api_key": f"agent-{number}",
            "reward_key": f"reward-{number}",
        }


@pytest_asyncio.fixture
async def gateway() -> AsyncGenerator[Gateway]:
    made = Gateway()
    async with serving(made.answer) as made.url:
        yield made


async def run(work: Callable[[], T]) -> T:
    """The client blocks, and the gateway answers in this loop."""
    return await asyncio.to_thread(work)


def client_of(gateway: Gateway, patience_s: float = 5.0) -> Client:
    return Client(gateway.url, "admin", patience_s=patience_s)


async def test_a_rollout_is_declared_rewarded_and_finished(gateway: Gateway) -> None:
    def work() -> None:
        with client_of(gateway).rollout({"q": 1}, alias="writer") as rollout:
            assert rollout.openai == {"base_url": f"{gateway.url}/v1", "api_key": "agent-0"}
            assert rollout.reward(1.0) == "re_1"
            assert rollout.read()["state"] == "running"

    await run(work)
    assert gateway.asked == [
        (
            "POST",
            "/v1/rollouts",
            "admin",
            {"task": {"q": 1}, "n": 1, "expected_rewards": ["reward"], "alias": "writer"},
        ),
        ("POST", "/v1/rewards", "reward-0", {"rollout_id": "ro_0", "name": "reward", "value": 1.0}),
        ("GET", "/v1/rollouts/ro_0", "reward-0", None),
        ("POST", "/v1/rollouts/ro_0/status", "agent-0", {"kind": "finished"}),
    ]


async def test_a_group_has_as_many_rollouts_as_asked_for(gateway: Gateway) -> None:
    group = await run(lambda: client_of(gateway).group("t", 3, rewards=("exact", "style")))
    assert [rollout.rollout_id for rollout in group] == ["ro_0", "ro_1", "ro_2"]
    assert {rollout.group_id for rollout in group} == {"gr_1"}
    assert gateway.asked[0][3]["expected_rewards"] == ["exact", "style"]


async def test_a_single_call_is_rewarded_by_its_id(gateway: Gateway) -> None:
    rollout = await run(lambda: client_of(gateway).rollout("t"))
    await run(lambda: rollout.reward(0.5, "style", completion_id="chatcmpl-1", final=False))
    assert gateway.asked[-1][3] == {
        "completion_id": "chatcmpl-1",
        "name": "style",
        "value": 0.5,
        "final": False,
    }


def fail(rollout: Rollout, error: BaseException) -> None:
    with rollout:
        raise error


@pytest.mark.parametrize(
    ("error", "failure"),
    [(ValueError("no tool"), "agent_exception"), (KeyboardInterrupt(), "cancelled")],
)
async def test_an_exception_is_reported_as_a_failure_and_goes_on(
    gateway: Gateway, error: BaseException, failure: str
) -> None:
    def work() -> None:
        rollout = client_of(gateway).rollout("t")
        with pytest.raises(type(error)) as caught:
            fail(rollout, error)
        assert caught.value is error

    await run(work)
    [(_, path, key, status)] = gateway.asked[1:]
    assert (path, key) == ("/v1/rollouts/ro_0/status", "agent-0")
    assert status == {
        "kind": "failed",
        "failure": failure,
        "message": f"{type(error).__name__}: {error}",
    }


async def test_the_agents_exception_is_seen_even_if_it_cannot_be_reported(gateway: Gateway) -> None:
    def work() -> None:
        rollout = client_of(gateway).rollout("t")
        gateway.failing = [401]
        with pytest.raises(ValueError, match="no tool") as caught:
            fail(rollout, ValueError("no tool"))
        assert "was not reported: The gateway at" in caught.value.__notes__[0]

    await run(work)


async def test_an_end_that_cannot_be_reported_is_an_error(gateway: Gateway) -> None:
    def work() -> None:
        rollout = client_of(gateway).rollout("t")
        gateway.failing = [401]
        with pytest.raises(GatewayRefused), rollout:
            pass

    await run(work)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_may_pass_is_tried_again_as_the_same_reward(
    gateway: Gateway, status: int
) -> None:
    rollout = await run(lambda: client_of(gateway).rollout("t"))
    gateway.failing = [status]
    await run(lambda: rollout.reward(1.0))
    assert gateway.asked[-1] == gateway.asked[-2]
    first, again = gateway.idempotency_keys[-2:]
    assert first == again
    assert first is not None


async def test_a_refusal_says_what_the_gateway_says(gateway: Gateway) -> None:
    gateway.failing = [404]
    with pytest.raises(GatewayRefused, match=r"/v1/rollouts: 404 .*said why") as caught:
        await run(lambda: client_of(gateway).rollout("t"))
    assert caught.value.status == 404
    assert len(gateway.asked) == 1


async def test_a_gateway_that_is_away_is_given_up(gateway: Gateway) -> None:
    gateway.failing = [503] * 100
    with pytest.raises(GatewayUnreachable, match="said why"):
        await run(lambda: client_of(gateway, patience_s=0).rollout("t"))
    nobody = Client(f"http://127.0.0.1:{free_port()}", "admin", patience_s=0)
    with pytest.raises(GatewayUnreachable, match="FULGURITE_GATEWAY_URL"):
        await run(lambda: nobody.rollout("t"))


async def test_the_newest_version_of_a_policy(gateway: Gateway) -> None:
    client = client_of(gateway)
    assert await run(client.newest_version) == "policy@1.2"
    with pytest.raises(LookupError, match=r"no policy 'writer'. It knows: policy"):
        await run(lambda: client.newest_version("writer"))


async def test_address_and_key_come_from_the_environment(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FULGURITE_GATEWAY_URL", f"{gateway.url}/v1/")
    monkeypatch.setenv("FULGURITE_ADMIN_KEY", "from-env")
    await run(lambda: Client().rollout("t"))
    assert gateway.asked[0][1:3] == ("/v1/rollouts", "from-env")
    monkeypatch.delenv("FULGURITE_ADMIN_KEY")
    with pytest.raises(MissingAdminKey, match="FULGURITE_ADMIN_KEY"):
        Client()
    assert issubclass(MissingAdminKey, ClientError)
