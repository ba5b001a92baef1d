"""A log that is away: calls are refused before generation, spooled, or served without a record, as
it is set. Nothing spooled is lost.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fulgurite.avro.codec import Codec
from fulgurite.events import LlmCall
from services.common.kafka.logged_calls import read_calls
from services.common.kafka.topic_admin import create_topics
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub, running_stub

pytestmark = [pytest.mark.engine]

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
ROLLOUT = "x-fulgurite-rollout-id"
CONVERSATIONS = 6
STALL_S = 3


async def converse(gateway: Gateway, turns: int, answered: list[list[str]]) -> None:
    """Several conversations at once, each a call after the other; notes the completions, as their
    clients got them.
    """

    async def one(number: int) -> None:
        for turn in range(turns):
            async with gateway.post(
                CHAT,
                BODY | {"stream": turn % 2 == 1},
                PLAIN,
                x_fulgurite_rollout=f"conversation-{number}",
            ) as response:
                text = await response.text()
                assert response.status == 200, text
                answered[number].append(text.split('"id":"', 1)[1].split('"', 1)[0])
                assert "!" in text, "the answer is complete"

    await asyncio.gather(*(one(number) for number in range(CONVERSATIONS)))


async def until(gateway: Gateway, what: str, wanted: Any) -> dict[str, Any]:
    """The report of /readyz once the log's `what` is as wanted."""
    report: dict[str, Any] = {}
    for _ in range(200):
        _, report = await gateway.get("/readyz")
        found = (
            report["log"]["spool"][what] if what == "events" else report["log"]["problem"] is None
        )
        if found == wanted:
            return report
        await asyncio.sleep(0.2)
    raise AssertionError(report)


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def assert_refused(gateway: Gateway, stub: Stub, key: str) -> None:
    """Nothing is generated."""
    asked = len(stub.requests)
    for stream in (False, True):
        status, reply = await gateway.json(CHAT, BODY | {"stream": stream}, key)
        assert (status, reply["error"]["code"]) == (503, "log_unavailable")
    assert len(stub.requests) == asked


async def metric(gateway: Gateway, name: str) -> float:
    async with gateway.client.get(gateway.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


async def test_answers_go_on_without_a_broker_and_none_is_lost_when_the_gateway_dies_too(
    tmp_path: Path, topic_prefix: str
) -> None:
    spooling = {
        "FULGURITE_SPOOL_DIR": str(tmp_path / "spool"),
        "FULGURITE_LOG_PATIENCE_S": "1",
        "FULGURITE_LOG_STALL_S": str(STALL_S),
    }
    serving = {"FULGURITE_LOG_UNAVAILABLE_LIVE": "serve", "FULGURITE_LOG_PATIENCE_S": "1"}
    answered: list[list[str]] = [[] for _ in range(CONVERSATIONS)]
    with LocalKafka(tmp_path / "kafka") as kafka:
        settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
        create_topics(settings)
        async with (
            running_stub() as stub,
            running_gateway(settings, stub.url, tmp_path, make_topics=False, **serving) as server,
            running_gateway(settings, stub.url, tmp_path, make_topics=False) as refuser,
        ):
            async with running_gateway(
                settings, stub.url, tmp_path, make_topics=False, **spooling
            ) as gateway:
                group = await gateway.declare(n=1, task={}, mode="train", deadline_s=600)
                await converse(gateway, 2, answered)
                # Connections stay open and nothing comes back: the worst way to be away.
                kafka.suspend(0)
                await converse(gateway, 2, answered)
                assert await metric(gateway, "fulgurite_gateway_spool_events") >= CONVERSATIONS
                await asyncio.sleep(STALL_S)
                await assert_refused(gateway, stub, group["rollouts"][0]["api_key"])
                with pytest.raises(AssertionError, match="another gateway that runs"):
                    async with running_gateway(
                        settings, stub.url, tmp_path, make_topics=False, **spooling
                    ):
                        pass
                await asyncio.to_thread(gateway.process.kill)
            kafka.kill(0)
            async with running_gateway(
                settings, stub.url, tmp_path, make_topics=False, **spooling
            ) as gateway:
                await converse(gateway, 3, answered)
                # Without a broker each takes long to say what it has of topics: they are asked
                # together.
                reports = await asyncio.gather(
                    *(until(one, "problem", wanted=False) for one in (gateway, refuser))
                )
                assert [report["ready"] for report in reports] == [True, False], (
                    "live traffic is welcome where there is a spool"
                )
                await assert_refused(refuser, stub, PLAIN)
                assert (await server.json(CHAT, BODY))[0] == 200
                assert await metric(server, "fulgurite_gateway_unlogged_total") == 1
                assert await metric(gateway, "fulgurite_gateway_spool_events") >= 5 * CONVERSATIONS
                await asyncio.to_thread(kafka.restart, 0)
                await converse(gateway, 1, answered)
                await until(gateway, "events", 0)
                await converse(gateway, 1, answered)
                assert (await gateway.json(CHAT, BODY, group["rollouts"][0]["api_key"]))[0] == 200
                await until(refuser, "problem", wanted=True)
                assert (await refuser.json(CHAT, BODY))[0] == 200
                await until(server, "problem", wanted=True)
                unlogged = await metric(server, "fulgurite_gateway_unlogged_total")
                status, served = await server.json(CHAT, BODY)
                assert (status, await metric(server, "fulgurite_gateway_unlogged_total")) == (
                    200,
                    unlogged,
                )
                assert files(tmp_path / "spool") == ["lock"]
            records = [
                r.event for r in read_calls(settings, Codec()) if isinstance(r.event, LlmCall)
            ]
    assert served["id"] in {call.call_id for call in records}
    for completions in answered:
        assert len(completions) == 9
        # What comes twice counts where it came first.
        assert (
            list(dict.fromkeys(call.call_id for call in records if call.call_id in completions))
            == completions
        )
