"""What one client may take of a gateway with the shipped bounds: its memory, its event loop, its
connections.
"""

from __future__ import annotations

import asyncio
import io
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from services.local_stack.kafka_local import LocalKafka
from tests.integration.frugal_gateway import FILES
from tests.integration.gateway_process import PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
MB = 1 << 20


def memory(gateway: Gateway) -> float:
    """Of the process, in MiB."""
    return psutil.Process(gateway.process.pid).memory_info().rss / MB


async def post(
    gateway: Gateway, body: bytes, path: str = CHAT, key: str = PLAIN, **headers: str
) -> tuple[int, dict[str, Any]]:
    """As bytes that aiohttp does not copy."""
    named = {"authorization": f"Bearer {key}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    async with gateway.client.post(
        gateway.url + path, data=io.BytesIO(body), headers=named
    ) as response:
        return response.status, await response.json()


def connect(gateway: Gateway) -> socket.socket:
    address = urlsplit(gateway.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


async def test_what_one_client_takes_is_bounded(
    kafka: LocalKafka, stub: Stub, tmp_path: Path, topic_prefix: str
) -> None:
    stub.reset()
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_gateway(settings, stub.url, tmp_path) as gateway:
        before = memory(gateway)

        # Ten million messages in 32 MB: counted, not built.
        status, reply = await post(
            gateway, b'{"model":"policy","messages":[' + b"[]," * 10_600_000 + b"[]]}"
        )
        assert (status, reply["error"]["code"]) == (413, "too_many_values")
        assert memory(gateway) - before < 200
        assert stub.requests == []

        # As many as are taken, hashed outside the event loop: others are served meanwhile.
        large = asyncio.create_task(
            post(gateway, b'{"model":"policy","messages":[' + b"[]," * 120_000 + b"[]]}")
        )
        served = 0
        while not large.done():
            assert (await gateway.get("/healthz"))[0] == 200
            served += 1
        assert large.result()[0] == 200
        assert served > 0

        # Bodies of nobody.
        replies = await asyncio.gather(
            *(post(gateway, b" " * 20 * MB, "/v1/rewards", "nobody") for _ in range(10))
        )
        assert {status for status, _ in replies} == {401}
        assert memory(gateway) - before < 250

        # A header without an end.
        with connect(gateway) as flood, suppress(ConnectionError):
            flood.sendall(b"GET / HTTP/1.1\r\na: ")
            for _ in range(2000):
                flood.sendall(b"x" * 65_536)
        assert memory(gateway) - before < 250


async def test_requests_that_do_not_go_on_are_ended(
    kafka: LocalKafka, stub: Stub, tmp_path: Path, topic_prefix: str
) -> None:
    stub.reset()
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_gateway(
        settings, stub.url, tmp_path, FULGURITE_REQUEST_TIMEOUT_S="1"
    ) as gateway:
        # Nothing, half a head, half a body without a key: closed. Half a body with a key: 408, and
        # an event.
        half = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
        silent = [connect(gateway) for _ in range(3)]
        silent[1].sendall(half)
        silent[2].sendall(half + b"authorization: Bearer " + PLAIN.encode() + b"\r\n\r\n{")
        ended = [await asyncio.to_thread(read_all, one) for one in silent]
        assert ended[:2] == [b"", b""]
        assert b" 408 " in ended[2].split(b"\r\n")[0]
        rollout = next(
            line for line in ended[2].split(b"\r\n") if line.startswith(b"x-fulgurite-rollout-id")
        ).split(b": ")[1]
        assert (await gateway.call(rollout.decode())).status_code == 408


async def test_health_answers_while_silent_clients_hold_all_connections(
    kafka: LocalKafka, stub: Stub, tmp_path: Path, topic_prefix: str
) -> None:
    stub.reset()
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_gateway(
        settings, stub.url, tmp_path, module="tests.integration.frugal_gateway"
    ) as gateway:
        held = [connect(gateway) for _ in range(3 * FILES)]
        for _ in range(5):
            assert (await gateway.get("/healthz"))[0] == 200
            assert (await post(gateway, b'{"model":"policy","messages":[]}'))[0] == 200
        for one in held:
            one.close()


def read_all(one: socket.socket) -> bytes:
    """Until the other side closes."""
    data = b""
    with one:
        while piece := one.recv(65_536):
            data += piece
    return data
