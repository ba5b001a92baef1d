"""Agents with a plain key that name no rollout: their conversations are recognised, at one gateway
or another, or opened anew.
"""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from msgspec import structs
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from fulgurite.enums import CallOutcome, EpisodeOutcome, Identity, Mode
from fulgurite.events import Episode
from fulgurite.failures import FailureKind
from fulgurite.ids import subject_of
from fulgurite.topics import EPISODES
from services.gateway.dialects.registry import DIALECTS
from services.gateway.errors import Unavailable
from services.gateway.identity.keys import KeyRing
from services.gateway.identity.store import RedisStore
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.valkey_local import LocalValkey
from tests.integration.certificates import self_signed
from tests.integration.gateway_process import (
    ADMIN,
    PLAIN,
    SIGNING,
    Gateway,
    kafka_settings,
    running_gateway,
)
from tests.integration.stub_upstream import Stub
from tests.integration.test_processors import Deployment, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
ROLLOUT = "x-fulgurite-rollout-id"
Message = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[LocalValkey]:
    """One that may be harmed."""
    with LocalValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways(
    kafka: LocalKafka, own_valkey: LocalValkey, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[tuple[Gateway, Gateway]]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    folder = tmp_path_factory.mktemp("gateways")
    start = partial(
        running_gateway,
        settings,
        stub.url,
        folder,
        REDIS_URL=own_valkey.url,
        FULGURITE_ALIASES="policy=policy,sql-writer=policy,of-checker=checker",
        FULGURITE_ROLES=json.dumps(
            {"policy": {"checker": {"pattern": "^You check", "alias": "of-checker"}}}
        ),
    )
    async with start() as first, start(make_topics=False) as second:
        yield first, second


class Agent:
    """A conversation with OpenAI's SDK, which knows nothing of rollouts."""

    def __init__(self, stub: Stub, *clients: AsyncOpenAI) -> None:
        """It asks one client after the other, as behind a load balancer."""
        self._clients = clients
        self._stub = stub
        self.messages: list[Message] = []
        self.rollouts: list[str] = []

    async def ask(self, says: str, answer: str, *, stream: bool = False, n: int = 1) -> None:
        """One turn; the upstream answers as it is told."""
        self.messages.append({"role": "user", "content": says})
        await self.go_on(answer, stream=stream, n=n)

    async def go_on(self, answer: str, *, stream: bool = False, n: int = 1) -> None:
        """The model's turn; of several choices the last is taken."""
        self._stub.script.words = [answer[:1], answer[1:]]
        completions = self._clients[
            len(self.rollouts) % len(self._clients)
        ].chat.completions.with_raw_response
        messages = cast("list[ChatCompletionMessageParam]", self.messages)
        if stream:
            streamed = await completions.create(model="policy", messages=messages, stream=True)
            said = ""
            async for chunk in streamed.parse():
                said += chunk.choices[0].delta.content or ""
            self.messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
            self.rollouts.append(streamed.headers[ROLLOUT])
        else:
            whole = await completions.create(model="policy", messages=messages, n=n)
            self.messages.append(whole.parse().choices[-1].message.model_dump(exclude_none=n == 1))
            self.rollouts.append(whole.headers[ROLLOUT])


Meet = Callable[..., Agent]


@pytest_asyncio.fixture(loop_scope="module")
async def meet(stub: Stub) -> AsyncGenerator[Meet]:
    """Makes agents that ask the gateways given."""
    clients: dict[str, AsyncOpenAI] = {}

    def client(gateway: Gateway) -> AsyncOpenAI:
        return clients.setdefault(
            gateway.url, AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=PLAIN, max_retries=0)
        )

    yield lambda *gateways: Agent(stub, *(client(gateway) for gateway in gateways))
    for made in clients.values():
        await made.close()


async def test_the_turns_of_an_agent_are_one_rollout(
    gateways: tuple[Gateway, Gateway], stub: Stub, meet: Meet
) -> None:
    stub.reset()
    agent = meet(gateways[0])
    stub.script.tool_arguments = '{"expression": "3+8", "digits": 2.0}'
    await agent.ask("How much is 3+8?", "")
    [call] = agent.messages[-1]["tool_calls"]
    call["function"]["arguments"] = json.dumps(
        json.loads(call["function"]["arguments"]), separators=(",", ":"), sort_keys=True
    )
    agent.messages.append({"role": "tool", "tool_call_id": call["id"], "content": "11"})
    stub.script.tool_arguments = None
    await agent.go_on("It is 11.", stream=True)
    await agent.ask("And twice that?", "22.", n=2)
    agent.messages.insert(0, {"role": "system", "content": "Be brief."})
    await agent.ask("Thanks.", "Bye.")
    assert len(set(agent.rollouts)) == 1
    calls = await gateways[0].calls(agent.rollouts[0])
    calls.sort(key=lambda call: call.started_at)
    assert [call.identity for call in calls] == [Identity.none, *[Identity.inferred] * 3]
    assert {(call.group_id, call.attempt) for call in calls} == {(calls[0].group_id, 0)}


async def test_the_turns_of_an_agent_of_another_api_are_one_rollout(
    gateways: tuple[Gateway, Gateway], stub: Stub
) -> None:
    stub.reset()
    asked: Message = {"role": "user", "content": "hi"}

    async def turn(path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with gateways[len(seen) % 2].post(path, {"model": "policy", **body}) as response:
            seen.append(response.headers[ROLLOUT])
            return await response.json()

    seen: list[str] = []
    items = [asked]
    for _ in range(3):
        items += [*(await turn("/v1/responses", {"input": items}))["output"], asked]
    assert len(set(seen)) == 1
    seen.clear()
    asked = {"role": "user", "content": "good evening"}
    messages = [asked]
    for _ in range(3):
        reply = await turn(
            "/v1/messages", {"messages": messages, "system": "Be brief.", "max_tokens": 9}
        )
        messages += [{"role": "assistant", "content": reply["content"]}, asked]
    assert len(set(seen)) == 1


async def test_a_role_that_its_system_prompt_tells_has_a_policy_of_its_own(
    gateways: tuple[Gateway, Gateway], stub: Stub
) -> None:
    stub.reset()
    gateway = gateways[0]
    name = f"roles-{uuid.uuid4().hex[:8]}"
    checks, asked = "You check queries.", {"role": "user", "content": "hi"}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"messages": [{"role": "system", "content": checks}, asked]}),
        ("responses", {"input": [asked], "instructions": checks}),
        ("messages", {"messages": [asked], "system": checks, "max_tokens": 9}),
        ("chat/completions", {"messages": [{"role": "system", "content": "You write."}, asked]}),
    ]
    rollout = ""
    for path, body in bodies:
        url = f"/rollouts/{name}/v1/{path}"
        async with gateway.post(url, {"model": "policy", **body}) as response:
            assert response.status == 200
            rollout = response.headers[ROLLOUT]
    calls = sorted(await gateway.calls(rollout), key=lambda call: call.started_at)
    assert [call.agent for call in calls] == ["checker"] * 3 + ["policy"]
    assert [call.policy for call in calls] == ["checker"] * 3 + ["policy"]
    assert {call.alias for call in calls} == {"policy"}
    assert [call.routed_alias for call in calls] == ["of-checker"] * 3 + [None]


async def test_interleaved_agents_with_the_same_first_message_stay_apart(
    gateways: tuple[Gateway, Gateway], stub: Stub, meet: Meet
) -> None:
    stub.reset()
    ann, bob = meet(gateways[0]), meet(gateways[0])
    await ann.ask("Guess a number.", "One.")
    await bob.ask("Guess a number.", "Two.")
    for agent in (ann, bob, bob, ann):
        await agent.ask("Another.", "Three.")
    assert len(set(ann.rollouts)) == len(set(bob.rollouts)) == 1
    assert ann.rollouts[0] != bob.rollouts[0]


async def test_agents_whose_histories_are_equal_word_for_word_are_opened_anew(
    gateways: tuple[Gateway, Gateway], stub: Stub, meet: Meet
) -> None:
    stub.reset()
    ann, bob = meet(gateways[0]), meet(gateways[1])
    for agent in (ann, bob):
        await agent.ask("Say ok.", "Ok.")
    for turn in range(2):
        for agent, name in ((ann, "Ann"), (bob, "Bob")):
            await agent.ask(f"My name is {name}." if turn else "Again.", f"Hello {name}.")
    assert not set(ann.rollouts) & set(bob.rollouts)
    assert ann.rollouts[0] != ann.rollouts[1] == ann.rollouts[2], (
        "ambiguous once, then its own again"
    )
    assert bob.rollouts[0] != bob.rollouts[1] == bob.rollouts[2]


async def test_two_gateways_over_one_redis_never_lose_the_thread(
    gateways: tuple[Gateway, Gateway], stub: Stub, meet: Meet
) -> None:
    """An agent's next call may race what is remembered of its last: twenty agents, each turn at the
    other gateway, at once.
    """
    stub.reset(words=["Ok."])
    agents = [meet(*gateways) for _ in range(20)]

    async def talk(number: int, agent: Agent) -> None:
        for turn in range(4):
            await agent.ask(f"I am {number}.", "Ok.", stream=turn % 2 == 1)

    await asyncio.gather(*(talk(number, agent) for number, agent in enumerate(agents)))
    assert [len(set(agent.rollouts)) for agent in agents] == [1] * len(agents)
    assert len({agent.rollouts[0] for agent in agents}) == len(agents)


async def test_an_inferred_rollout_is_one_episode_once_it_is_silent(
    gateways: tuple[Gateway, Gateway], stub: Stub, meet: Meet, tmp_path: Path
) -> None:
    stub.reset()
    agent = meet(*gateways)
    for number in range(3):
        await agent.ask(f"Question {uuid.uuid4()}.", f"Answer {number}.")
    kafka = gateways[0].kafka
    deployment = Deployment(kafka.bootstrap_servers, kafka.topic_prefix, tmp_path)

    def episodes() -> list[Episode]:
        return [
            event
            for event in deployment.read(EPISODES)
            if isinstance(event, Episode) and event.rollout_id in agent.rollouts
        ]

    try:
        await asyncio.to_thread(deployment.start, "aggregator", FULGURITE_AGGREGATOR_SILENCE_S="1")
        await asyncio.to_thread(wait_until, lambda: bool(episodes()), "the episode is closed")
    finally:
        await asyncio.to_thread(deployment.close)
    [episode] = episodes()
    assert (episode.rollout_id, episode.mode, episode.outcome) == (
        agent.rollouts[0],
        Mode.live,
        EpisodeOutcome.timed_out,
    )
    assert [call.identity for call in episode.calls] == [
        Identity.none,
        Identity.inferred,
        Identity.inferred,
    ]


@pytest.mark.parametrize(
    ("path", "headers", "model", "role"),
    [
        ("", {}, "policy", "policy"),
        ("", {}, "sql-writer", "sql-writer"),
        ("/agents/critic", {}, "sql-writer", "critic"),
        ("/rollouts/one/agents/critic", {}, "policy", "critic"),
        ("/agents/critic", {"x_fulgurite_agent": "judge"}, "policy", "judge"),
    ],
)
async def test_the_role_of_an_agent(
    gateways: tuple[Gateway, Gateway],
    stub: Stub,
    path: str,
    headers: dict[str, str],
    model: str,
    role: str,
) -> None:
    stub.reset()
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    async with gateways[0].post(path + CHAT, body, **headers) as response:
        assert response.status == 200
        rollout = response.headers[ROLLOUT]
    assert (await gateways[0].calls(rollout))[-1].agent == role


async def test_a_declared_agents_role_is_its_keys_unless_the_request_says_otherwise(
    gateways: tuple[Gateway, Gateway], stub: Stub
) -> None:
    stub.reset()
    key = (await gateways[0].declare(n=1, agent="solver"))["rollouts"][0]["api_key"]
    body = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
    rollouts: set[str] = set()
    for path in ("", "/agents/critic"):
        async with gateways[0].post(path + CHAT, body, key) as response:
            rollouts.add(response.headers[ROLLOUT])
    calls = await gateways[0].calls(rollouts.pop())
    assert not rollouts
    assert sorted(call.agent for call in calls) == ["critic", "solver"]


async def test_every_reply_names_its_rollout_when_it_is_known(
    gateways: tuple[Gateway, Gateway], stub: Stub
) -> None:
    gateway = gateways[0]
    mine, other = (await gateway.declare(n=2))["rollouts"]
    rollout, key = mine["rollout_id"], mine["api_key"]
    body: dict[str, Any] = {"model": "policy", "messages": []}
    reward = {"rollout_id": rollout, "name": "reward", "value": 1}
    status = f"/v1/rollouts/{rollout}/status"
    stub.reset(status=500)
    cases: list[tuple[int, str, Any, str]] = [
        (502, CHAT, body, key),
        (400, CHAT, {"model": "policy"}, key),
        (400, CHAT, b"{", key),
        (404, CHAT, body | {"model": "nobody"}, key),
        (403, CHAT, body, mine["reward_key"]),
        (403, f"/rollouts/{other['rollout_id']}{CHAT}", body, key),
        (201, "/v1/rewards", reward, mine["reward_key"]),
        (403, "/v1/rewards", reward, key),
        (201, status, {"kind": "heartbeat"}, key),
        (403, status, {"kind": "finished"}, mine["reward_key"]),
        (400, f"/v1/rollouts/{rollout}/attempts", {}, ADMIN),
    ]
    for expected, path, payload, with_key in cases:
        async with gateway.post(path, payload, with_key) as response:
            assert (response.status, response.headers.get(ROLLOUT)) == (expected, rollout), (
                path,
                await response.text(),
            )
    async with gateway.client.get(
        gateway.url + "/v1/models", headers={"x-api-key": key}
    ) as response:
        assert (response.status, response.headers[ROLLOUT]) == (200, rollout)
    async with gateway.post(CHAT, body | {"model": "nobody"}) as response:
        assert (response.status, ROLLOUT in response.headers) == (404, True)
    async with gateway.post(CHAT, body, "unknown") as response:
        assert (response.status, ROLLOUT in response.headers) == (401, False)
    refused = [call for call in await gateway.calls(rollout) if call.outcome is CallOutcome.refused]
    assert sorted(call.status_code or 0 for call in refused) == [400, 400, 403, 403, 404]


async def test_keys_that_are_no_longer_good_or_of_another_are_refused_everywhere(
    gateways: tuple[Gateway, Gateway], stub: Stub
) -> None:
    stub.reset()
    gateway, ring = gateways[0], KeyRing.parse(SIGNING)
    mine, other = (await gateway.declare(n=2))["rollouts"]
    rollout = mine["rollout_id"]
    claims = ring.verify(mine["api_key"], 0)
    late = ring.mint(structs.replace(claims, exp=1))
    retired = KeyRing.parse("k0:0123456789abcdef-retired").mint(claims)
    foreign = KeyRing.parse(SIGNING.replace("0123", "3210")).mint(claims)
    asked = {
        "model": "policy",
        "messages": [{"role": "user", "content": "hi"}],
        "input": "hi",
        "prompt": "hi",
        "max_tokens": 5,
    }
    paths = [
        prefix + dialect.path
        for dialect in DIALECTS
        for prefix in ("", f"/rollouts/{rollout}", "/agents/a")
    ]
    rest = [
        ("/v1/rewards", {"rollout_id": rollout, "name": "reward", "value": 1}),
        (f"/v1/rollouts/{rollout}/status", {"kind": "started"}),
    ]
    for path, body in [*((path, asked) for path in paths), *rest]:
        for key, named in ((late, rollout), (retired, None), (foreign, None)):
            async with gateway.post(path, body, key) as response:
                assert (response.status, response.headers.get(ROLLOUT)) == (401, named), path
    for dialect in DIALECTS:
        async with gateway.post(
            f"/rollouts/{other['rollout_id']}{dialect.path}", asked, mine["api_key"]
        ) as response:
            assert (response.status, response.headers[ROLLOUT]) == (403, rollout), dialect.path
        async with gateway.post(
            dialect.path, asked, mine["api_key"], x_fulgurite_rollout="a session"
        ) as response:
            assert (response.status, response.headers[ROLLOUT]) == (403, rollout), dialect.path
    assert not stub.requests
    calls = await gateway.calls(rollout)
    too_late = [call.api for call in calls if call.failure is FailureKind.agent_timeout]
    assert sorted(too_late) == sorted(dialect.api for dialect in DIALECTS for _ in range(3))


async def test_the_person_is_recorded_by_a_name_that_only_the_deployment_can_make(
    gateways: tuple[Gateway, Gateway], stub: Stub
) -> None:
    stub.reset()
    secret = KeyRing.parse(SIGNING).signing_secret
    body: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
    found: list[str | None] = []
    for fields, headers in (
        ({}, {}),
        ({"user": "ann"}, {}),
        ({"user": "ann"}, {"x_fulgurite_subject": "bob"}),
    ):
        async with gateways[0].post(CHAT, body | fields, **headers) as response:
            found.append((await gateways[0].call(response.headers[ROLLOUT])).subject)
    assert found == [None, subject_of("ann", secret), subject_of("bob", secret)]


async def test_a_redis_with_a_password_and_tls(own_valkey: LocalValkey, tmp_path: Path) -> None:
    async with tls_in_front(own_valkey.port, tmp_path) as port:
        store = RedisStore(
            f"rediss://:secret@127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'cert.pem'}"
        )
        plain = RedisStore(own_valkey.url)
        redis: Any = plain._redis  # pyright: ignore[reportPrivateUsage]
        await redis.config_set("requirepass", "secret")
        try:
            await store.put("a", b"1", 60)
            assert await store.get_many(["a", "b"]) == [b"1", None]
            without = RedisStore(own_valkey.url)
            with pytest.raises(Unavailable, match="REDIS_URL") as refused:
                await without.ping()
            assert "secret" not in str(refused.value)
            await without.close()
        finally:
            await redis.config_set("requirepass", "")
            await store.close()
            await plain.close()


@asynccontextmanager
async def tls_in_front(port: int, folder: Path) -> AsyncGenerator[int]:
    """TLS that ends before a server which has none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(folder))
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", port)
        pumps.update(
            (
                asyncio.create_task(pump(reader, downstream)),
                asyncio.create_task(pump(upstream, writer)),
            )
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def test_with_its_redis_killed_and_stuck_a_gateway_goes_on(
    gateways: tuple[Gateway, Gateway], own_valkey: LocalValkey, stub: Stub, meet: Meet
) -> None:
    stub.reset()
    gateway = gateways[0]
    agent = meet(gateway)
    await agent.ask("Before.", "Yes.")
    own_valkey.process.signal_session(signal.SIGSTOP)
    await agent.ask("Stuck.", "Still here.")
    own_valkey.process.signal_session(signal.SIGCONT)
    own_valkey.process.kill()
    await agent.ask("Killed.", "Still here.")
    assert len(set(agent.rollouts)) == 3, "each call is a rollout of its own"
    status, report = await gateway.get("/readyz")
    assert (status, report["ready"], "REDIS_URL" in report["store"]["problem"]) == (200, True, True)
    own_valkey.start().wait_ready()
    # What failed is left alone for a second.
    await asyncio.sleep(1.2)
    await agent.ask("Back.", "Good.")
    await agent.ask("And on.", "Good.")
    assert agent.rollouts[-1] == agent.rollouts[-2]
    assert (await gateway.get("/readyz"))[1]["store"]["problem"] is None
    async with gateway.client.get(gateway.url + "/metrics") as response:
        assert 'fulgurite_gateway_inference_total{result="store_down"}' in await response.text()
