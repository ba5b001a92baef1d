"""Several backends behind real gateways: what the log says is followed, who is unreachable is left
alone, who is many waits its turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, CallOutcome, UpdateKind
from fulgurite.events import Event, LlmCall, PolicyApplied, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.failures import FailureKind
from fulgurite.topics import POLICY_APPLIED, POLICY_ROUTES, POLICY_UPDATES, Topic
from services.common.kafka.producer import EventProducer
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import APIS, Stub

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}


class Backend(Stub):
    """A stub whose answers take a while, or wait for a turnstile, and that can be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.takes_s = 0.0
        self.turnstile: asyncio.Semaphore | None = None
        self.restarted = False
        """It refuses, as our plug-in does, whoever expects more than its base weights."""
        self.expected: list[str | None] = []
        self.runner: web.AppRunner | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """As Stub, later."""
        body = await request.json()
        self.expected.append(request.headers.get("x-fulgurite-expects"))
        if self.restarted and self.expected[-1]:
            return web.json_response({}, status=503, headers={"x-fulgurite-refused": "version"})
        await asyncio.sleep(self.takes_s)
        if self.turnstile is not None:
            self.headers.append({"who": body["messages"][0]["content"]})
            await self.turnstile.acquire()
        return await super().answer(request)

    async def start(self, port: int = 0) -> None:
        """Listen."""
        app = web.Application()
        for path in APIS:
            app.router.add_post(path, self.answer)
        app.router.add_get("/health", _healthy)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def kill(self) -> None:
        """Cut every connection and accept no more."""
        if self.runner is None:
            return
        server: Any = self.runner.server
        for site in list(self.runner.sites):
            await site.stop()
        for connection in list(server.connections):
            connection.transport.abort()
        await self.runner.cleanup()
        self.runner = None


async def _healthy(_request: web.Request) -> web.Response:
    return web.json_response({})


@asynccontextmanager
async def backends(*names: str) -> AsyncGenerator[dict[str, Backend]]:
    """Running backends by name."""
    running = {name: Backend() for name in names}
    for backend in running.values():
        await backend.start()
    try:
        yield running
    finally:
        for backend in running.values():
            await backend.kill()


def addresses(running: dict[str, Backend]) -> str:
    """For VLLM_BASE_URL."""
    return ",".join(f"{name}={backend.url}" for name, backend in running.items())


class Log:
    """What appliers, learners and operators write."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._producer = EventProducer(gateway.kafka, Codec(), "test")

    async def says(self, topic: Topic, key: str, event: Event) -> None:
        """Return once the gateway has read it."""
        before = await self._seen()
        await self._producer.publish(topic, key, event)
        for _ in range(100):
            if await self._seen() != before:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the gateway does not follow the log")

    async def _seen(self) -> dict[str, Any]:
        return (await self._gateway.get("/v1/policies"))[1]

    async def update(self, step: int) -> None:
        event = PolicyUpdate(
            event_id=f"u{step}", event_time=step, policy="policy", kind=UpdateKind.update if step else UpdateKind.claim, epoch=1, step=step,
            version=f"policy@1.{step}" if step else None, learner_id="l", trained_actions=1,
        )  # fmt: skip
        await self.says(POLICY_UPDATES, "policy", event)

    async def applied(self, backend: str, step: int) -> None:
        event = PolicyApplied(
            event_id=f"{backend}{step}", event_time=time.time_ns() // 1_000_000, policy="policy", backend=backend, engine_id=backend,
            version=f"policy@1.{step}", outcome=ApplyOutcome.applied, seconds=0.1,
        )  # fmt: skip
        await self.says(POLICY_APPLIED, "policy", event)

    async def route(self, **steps: float) -> None:
        targets = tuple(
            RouteTarget(policy="policy", version=f"policy@1.{name[1:]}", weight=share)
            for name, share in steps.items()
        )
        event = PolicyRoute(
            event_id=f"r{steps}",
            event_time=1,
            alias="policy",
            targets=targets,
            reason=str(steps),
            author="test",
        )
        await self.says(POLICY_ROUTES, "policy", event)

    def close(self) -> None:
        self._producer.close()


async def served_by(
    gateway: Gateway, keys: list[str], running: dict[str, Backend]
) -> dict[str, set[str]]:
    """One call with each key; which backend answered each."""
    found: dict[str, set[str]] = {}
    for key in keys:
        for backend in running.values():
            backend.reset()
        status, reply = await gateway.json(CHAT, BODY, key)
        assert status == 200, reply
        found[key] = {name for name, backend in running.items() if backend.requests}
    return found


async def declared_keys(gateway: Gateway) -> list[str]:
    """The keys of twelve new rollouts."""
    declared = await gateway.declare(n=12, task={}, mode="train", alias="policy")
    return [rollout["api_key"] for rollout in declared["rollouts"]]


async def test_calls_go_where_the_log_says(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with (
        backends("east", "west") as running,
        running_gateway(settings, addresses(running), tmp_path) as gateway,
    ):
        keys = await declared_keys(gateway)
        log = Log(gateway)
        try:
            at_first = await served_by(gateway, keys, running)
            assert {name for names in at_first.values() for name in names} == {"east", "west"}
            assert await served_by(gateway, keys, running) == at_first

            for step in (0, 1, 2):
                await log.update(step)
            await log.applied("east", 1)
            assert await served_by(gateway, keys, running) == at_first, (
                "nobody serves the newest yet"
            )
            await log.applied("west", 2)
            assert set(map(tuple, (await served_by(gateway, keys, running)).values())) == {
                ("west",)
            }
            await log.route(v1=1.0)
            assert set(map(tuple, (await served_by(gateway, keys, running)).values())) == {
                ("east",)
            }
            await log.route(v1=0.5, v2=0.5)
            assert set(map(tuple, (await served_by(gateway, keys, running)).values())) == {
                ("east",)
            }, "a rollout keeps its version while that has a share"
            keys = await declared_keys(gateway)
            split = await served_by(gateway, keys, running)
            assert {name for names in split.values() for name in names} == {"east", "west"}
            assert await served_by(gateway, keys, running) == split
        finally:
            log.close()

        port = int(running["east"].url.rpartition(":")[2])
        await running["east"].kill()
        assert set(map(tuple, (await served_by(gateway, keys, running)).values())) == {("west",)}
        status, ready = await gateway.get("/readyz")
        assert (status, ready["upstreams"]) == (200, {"east": "unreachable", "west": "reachable"})
        await running["east"].start(port)
        for _ in range(40):
            if await served_by(gateway, keys, running) == split:
                return
            await asyncio.sleep(0.25)
        raise AssertionError("a backend that is back is not used again")


async def test_a_gateway_that_answers_knows_what_the_log_said_before_its_start(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with backends("vllm") as running:
        async with running_gateway(settings, addresses(running), tmp_path) as gateway:
            log = Log(gateway)
            for step in range(20):
                await log.update(step)
            await log.applied("vllm", 19)
            await log.route(v19=1.0)
            log.close()
            before = await gateway.get("/v1/policies")
        for _ in range(3):
            async with running_gateway(settings, addresses(running), tmp_path) as restarted:
                assert await restarted.get("/v1/policies") == before


async def test_a_restarted_engine_gets_no_call_before_its_version(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with (
        backends("east", "west") as running,
        running_gateway(
            settings, addresses(running), tmp_path, FULGURITE_QUEUE_TIMEOUT_S="2"
        ) as gateway,
    ):
        east, west = running["east"], running["west"]
        west.restarted = True
        log = Log(gateway)
        try:
            for step in (0, 1, 2):
                await log.update(step)
            assert (await gateway.json(CHAT, BODY))[0] == 200, (
                "nobody has told that a backend has a version"
            )
            await log.applied("west", 2)
        finally:
            log.close()
        assert {*east.expected, *west.expected} == {None}

        west.expected.clear()
        assert (await gateway.json(CHAT, BODY))[0] == 200
        assert (west.expected, east.expected[-1]) == (["policy@1.2"], None)

        await east.kill()
        waiting = asyncio.create_task(gateway.json(CHAT, BODY))
        await _until(lambda: len(west.expected) > 2)
        west.restarted = False
        assert (await waiting)[0] == 200, "it waited"

        west.restarted = True
        async with gateway.post(CHAT, BODY) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert (await response.json())["error"]["code"] == "version_not_loaded"
        refused = [
            call for call in await gateway.calls() if call.outcome is not CallOutcome.success
        ]
        assert [(call.outcome, call.failure) for call in refused] == [
            (CallOutcome.refused, FailureKind.infrastructure)
        ]


async def test_training_is_sampled_as_its_alias_declares(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    env: dict[str, Any] = {
        "FULGURITE_TRAIN_SAMPLING": '{"policy": {}}',
        "FULGURITE_ALIASES": "policy=policy,other=policy",
    }
    async with (
        backends("vllm") as running,
        running_gateway(settings, running["vllm"].url, tmp_path, **env) as gateway,
    ):
        for mode, alias, temperature in (
            ("train", "policy", 1.0),
            ("val", "policy", 0.2),
            ("train", "other", 0.2),
        ):
            [rollout] = (await gateway.declare(n=1, task={}, mode=mode, alias=alias))["rollouts"]
            running["vllm"].reset()
            async with gateway.post(
                CHAT, {**BODY, "model": alias, "temperature": 0.2, "top_k": 5}, rollout["api_key"]
            ) as response:
                told = response.headers.get("x-fulgurite-sampling")
            [asked] = running["vllm"].requests
            call = await gateway.call(rollout["rollout_id"])
            assert asked["temperature"] == call.sampling.temperature == temperature
            assert (told is not None) == (temperature == 1.0)
            assert msgspec.json.decode(call.request or "")["temperature"] == 0.2


async def test_who_is_many_waits_its_turn(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    env: dict[str, Any] = {
        "FULGURITE_API_KEYS": "greedy,modest",
        "FULGURITE_BACKEND_CONCURRENCY": "2",
        "FULGURITE_QUEUE_LIMIT": "197",
    }
    env["FULGURITE_KEY_SHARE"] = "1"
    async with (
        backends("vllm") as running,
        running_gateway(settings, running["vllm"].url, tmp_path, **env) as gateway,
    ):
        stub = running["vllm"]
        stub.turnstile = asyncio.Semaphore(0)

        async def call(key: str) -> tuple[int, str | None]:
            async with gateway.post(
                CHAT, {"model": "policy", "messages": [{"role": "user", "content": key}]}, key
            ) as response:
                await response.read()
                return response.status, response.headers.get("retry-after-ms")

        def asked() -> list[str]:
            return [headers["who"] for headers in stub.headers if "who" in headers]

        greedy = [asyncio.create_task(call("greedy")) for _ in range(200)]
        done, _ = await asyncio.wait(greedy, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        [refused] = done
        status, wait_ms = refused.result()
        assert status == 503
        assert 0 < float(wait_ms or 0) < 2000

        # One that has given up waiting leaves the queue; the newcomer takes its place and is served
        # before 195 others.
        greedy[10].cancel()
        await asyncio.sleep(0.3)
        modest = asyncio.create_task(call("modest"))
        await asyncio.sleep(0.3)
        for _ in range(5):
            stub.turnstile.release()
        assert await asyncio.wait_for(modest, 20) == (200, None)
        assert asked().index("modest") <= 4
        for _ in range(300):
            stub.turnstile.release()
        results = await asyncio.gather(*greedy, return_exceptions=True)
        assert [result[0] for result in results if isinstance(result, tuple)].count(200) == 198
        events = await gateway.calls()
        assert [e.failure for e in events if e.outcome is CallOutcome.refused] == [
            FailureKind.rate_limited
        ]
        assert [e.outcome for e in events].count(CallOutcome.client_disconnected) == 1


async def test_openais_client_comes_back_when_it_is_told_to(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with backends("vllm") as running:
        stub = running["vllm"]
        stub.turnstile = asyncio.Semaphore(0)
        async with running_gateway(
            settings, stub.url, tmp_path, FULGURITE_KEY_CONCURRENCY="1"
        ) as gateway:
            [rollout] = (await gateway.declare(n=1, task={}, mode="train", alias="policy"))[
                "rollouts"
            ]
            first = asyncio.create_task(gateway.json(CHAT, BODY, rollout["api_key"]))
            async with AsyncOpenAI(
                base_url=gateway.url + "/v1", api_key=rollout["api_key"], max_retries=5
            ) as client:
                second = asyncio.create_task(
                    client.chat.completions.create(
                        model="policy", messages=[{"role": "user", "content": "hi"}]
                    )
                )
                refused: list[LlmCall] = []
                while not refused:
                    await asyncio.sleep(0.1)
                    refused = await gateway.calls(rollout["rollout_id"])
                stub.turnstile.release()
                stub.turnstile.release()
                assert (await first)[0] == 200
                assert (await second).choices[0].message.content == "Hello there!"
            assert {(e.status_code, e.failure, e.outcome) for e in refused} == {
                (429, FailureKind.rate_limited, CallOutcome.refused)
            }


class Balancer:
    """A load balancer: each connection goes to the next gateway that accepts it."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._next = 0
        self.port = 0

    async def serve(self, stack: AsyncExitStack) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        await stack.enter_async_context(server)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self._ports:
            self._next += 1
            with suppress(OSError):
                there = await asyncio.open_connection(
                    "127.0.0.1", self._ports[self._next % len(self._ports)]
                )
                await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
                return
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_a_gateway_and_a_backend_die_under_load(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    rollouts, turns = 24, 30
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(backends("east", "west"))
        for backend in running.values():
            backend.takes_s = 0.05
        gateways = [
            await stack.enter_async_context(
                running_gateway(settings, addresses(running), tmp_path, make_topics=number == 0)
            )
            for number in range(3)
        ]
        balancer = Balancer([int(gateway.url.rpartition(":")[2]) for gateway in gateways])
        await balancer.serve(stack)
        group = await gateways[0].declare(n=rollouts, task={}, mode="train", alias="policy")
        seen: list[str] = []

        async def agent(key: str) -> None:
            base_url = f"http://127.0.0.1:{balancer.port}/v1"
            async with AsyncOpenAI(base_url=base_url, api_key=key, max_retries=5) as client:
                for turn in range(turns):
                    reply = await client.chat.completions.create(
                        model="policy", messages=[{"role": "user", "content": f"turn {turn}"}]
                    )
                    seen.append(reply.id)

        agents = [asyncio.create_task(agent(rollout["api_key"])) for rollout in group["rollouts"]]
        await _until(lambda: len(seen) > rollouts * turns // 4)
        killed_at = time.time_ns() // 1_000_000
        await running["west"].kill()
        await _until(lambda: len(seen) > rollouts * turns // 2)
        gateways[1].process.kill()
        await asyncio.gather(*agents)

        assert len(seen) == rollouts * turns
        calls = await gateways[0].calls()
        assert set(seen) <= {call.call_id for call in calls if call.outcome is CallOutcome.success}
        homes: dict[str, set[str]] = {}
        for call in calls:
            if call.outcome is CallOutcome.success and call.finished_at < killed_at:
                homes.setdefault(call.rollout_id, set()).add(call.backend)
            if call.outcome is CallOutcome.success and call.started_at > killed_at:
                assert call.backend == "east"
        assert len(homes) == rollouts
        assert sorted({tuple(names) for names in homes.values()}) == [("east",), ("west",)], (
            "a rollout has changed its backend"
        )


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come to that")
