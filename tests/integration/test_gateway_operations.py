"""What operators see of a running gateway: traces, metrics, lines that name their call, and a page
that holds what it says.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from confluent_kafka import TopicPartition
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from fulgurite.topics import LLM_CALLS
from services.common.kafka.consumer import make_consumer
from services.local_stack.kafka_local import LocalKafka
from tests.integration.gateway_process import ADMIN, PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "policy", "messages": [{"role": "user", "content": "hi"}]}
ROLLOUT = "x-fulgurite-rollout-id"
TRACE = "0af7651916cd43dd8448eb211c80319c"
AGENTS_SPAN = "b7ad6b7169203331"


class Collector:
    """An OTLP/HTTP endpoint that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    async def take(self, request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        self.spans += [
            span
            for resource in sent.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return web.Response()

    async def trace(self, count: int) -> dict[str, Span]:
        """By name, as soon as there are so many of the trace."""
        for _ in range(100):
            found = {span.name: span for span in self.spans if span.trace_id.hex() == TRACE}
            if len(found) >= count:
                return found
            await asyncio.sleep(0.1)
        raise AssertionError([span.name for span in self.spans])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncGenerator[tuple[Collector, str]]:
    kept = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", kept.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield kept, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka,
    stub: Stub,
    collector: tuple[Collector, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    folder: Path = tmp_path_factory.mktemp("gateway")
    traces: dict[str, Any] = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector[1],
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    async with running_gateway(settings, stub.url, folder, **traces) as running:
        yield running


async def test_a_call_joins_the_agents_trace(
    gateway: Gateway, stub: Stub, collector: tuple[Collector, str]
) -> None:
    stub.reset()
    traceparent = f"00-{TRACE}-{AGENTS_SPAN}-01"
    async with gateway.post(CHAT, BODY, traceparent=traceparent) as response:
        assert response.status == 200
        rollout = response.headers[ROLLOUT]
    spans = await collector[0].trace(3)
    call, upstream, publish = spans["chat.completions"], spans["upstream"], spans["publish"]
    assert call.parent_span_id.hex() == AGENTS_SPAN
    assert upstream.parent_span_id == publish.parent_span_id == call.span_id
    assert (
        call.start_time_unix_nano
        <= upstream.start_time_unix_nano
        <= upstream.end_time_unix_nano
        <= publish.start_time_unix_nano
    )
    assert publish.end_time_unix_nano <= call.end_time_unix_nano
    told = {attribute.key: attribute.value for attribute in call.attributes}
    assert told["fulgurite.rollout_id"].string_value == rollout
    assert told["gen_ai.request.model"].string_value == "policy"
    assert stub.headers[0]["traceparent"] == f"00-{TRACE}-{upstream.span_id.hex()}-01"
    of_the_call = f"00-{TRACE}-{call.span_id.hex()}-01"
    assert (await gateway.call(rollout)).traceparent == of_the_call
    assert of_the_call.encode() in await asyncio.to_thread(record_traceparents, gateway)


def record_traceparents(gateway: Gateway) -> list[bytes]:
    """Of every record of `llm.calls`, from its headers."""
    consumer = make_consumer(gateway.kafka)
    name = gateway.kafka.topic(LLM_CALLS)
    consumer.assign(
        [TopicPartition(name, partition, 0) for partition in range(LLM_CALLS.partitions)]
    )
    found: list[bytes] = []
    for message in consumer.consume(1000, timeout=2):
        found += [
            value
            for key, value in message.headers() or []
            if key == "traceparent" and isinstance(value, bytes)
        ]
    consumer.close()
    return found


async def test_every_line_of_a_call_names_it(gateway: Gateway, stub: Stub) -> None:
    stub.reset(status=500, error="the engine is out of memory")
    async with gateway.post(CHAT, BODY) as response:
        assert response.status == 502
        rollout = response.headers[ROLLOUT]
    call = await gateway.call(rollout)
    lines = [
        json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")
    ]
    [line] = [line for line in lines if line["event"] == "call failed"]
    assert (line["rollout_id"], line["call_id"]) == (rollout, call.call_id)
    assert "out of memory" in line["error"]
    assert not any("rollout_id" in other for other in lines if other["logger"] == "uvicorn.error")


async def test_metrics_tell_what_the_gateway_adds(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    before = await metrics(gateway)
    async with gateway.post(CHAT, BODY | {"stream": True}) as response:
        await response.read()
    after = await metrics(gateway)
    for name in (
        "added_seconds_count",
        "upstream_seconds_count",
        "first_token_seconds_count",
        "ack_seconds_count",
    ):
        assert after[f"fulgurite_gateway_{name}"] == before[f"fulgurite_gateway_{name}"] + 1
    assert after["fulgurite_gateway_calls_in_flight"] == 0
    sums = [
        after[f"fulgurite_gateway_{name}_sum"] - before[f"fulgurite_gateway_{name}_sum"]
        for name in ("added_seconds", "ack_seconds")
    ]
    assert sums[0] >= sums[1] > 0


async def metrics(gateway: Gateway) -> dict[str, float]:
    async with gateway.client.get(f"{gateway.url}/metrics") as response:
        lines = [
            line.rsplit(" ", 1)
            for line in (await response.text()).splitlines()
            if not line.startswith("#")
        ]
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize("key", [ADMIN, PLAIN])
async def test_no_request_that_the_page_allows_or_forbids_ends_in_a_5xx(
    gateway: Gateway, stub: Stub, key: str
) -> None:
    pytest.importorskip("schemathesis")
    stub.reset()
    argv = [
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        "run",
        f"{gateway.url}/openapi.json",
    ]
    argv += [
        "--checks",
        "not_a_server_error",
        "--max-examples",
        "12",
        "--phases",
        "examples,coverage,fuzzing",
    ]
    argv += [
        "--mode",
        "all",
        "--generation-deterministic",
        "--header",
        f"Authorization: Bearer {key}",
        "--no-color",
        "--suppress-health-check",
        "all",
    ]
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=gateway.log.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 400)
    assert process.returncode == 0, out.decode()
