"""Responses that build on recorded ones: from memory, from the log after a restart, at another
gateway; and who may build on which.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fulgurite.avro.codec import Codec
from fulgurite.enums import CallOutcome, Identity, Mode
from fulgurite.events import LlmCall
from fulgurite.ids import parse_completion
from fulgurite.tokens import unpack_ids
from fulgurite.topics import LLM_CALLS
from services.common.kafka.consumer import read_all
from services.common.kafka.delivery import Delivery
from services.common.kafka.settings import KafkaSettings
from services.gateway.recording.call_search import CallSearch
from services.gateway.recording.log_search import SearchTooLong
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.valkey_local import LocalValkey
from tests.integration.gateway_process import ADMIN, PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import PROMPT_IDS, Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

PATH = "/v1/responses"
ROLLOUT = "x-fulgurite-rollout-id"
OTHER = "another-plain-key"
GPT = {"gpt": {"base_url": "", "kind": "openai", "model": "gpt-5", "api_key": "sk-upstream-secret"}}


def said(text: str) -> dict[str, Any]:
    """What the stub's answer is, as an item."""
    content: list[dict[str, Any]] = [{"type": "output_text", "text": text, "annotations": []}]
    return {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


class Talk:
    """Requests that build on one another, at one gateway or another."""

    def __init__(self, stub: Stub, key: str = PLAIN, model: str = "policy") -> None:
        self.stub = stub
        self.key = key
        self.model = model
        self.rollouts: set[str] = set()

    async def say(
        self, gateway: Gateway, given: Any, answer: str, previous: str | None = None, **fields: Any
    ) -> str:
        """The id of the response. Its upstream was told the whole conversation, and of no state."""
        self.stub.script.words = [answer[:1], answer[1:]]
        body = {
            "model": self.model,
            "input": given,
            **({} if previous is None else {"previous_response_id": previous}),
            **fields,
        }
        async with gateway.post(PATH, body, self.key) as response:
            text = await response.text()
            assert response.status == 200, text
            self.rollouts.add(response.headers[ROLLOUT])
        reply = (
            json.loads(text.split("data: ")[-1])["response"]
            if fields.get("stream")
            else json.loads(text)
        )
        assert reply["previous_response_id"] == previous
        assert "previous_response_id" not in self.stub.requests[-1]
        return reply["id"]

    def served(self) -> Any:
        """The input that the upstream got last."""
        return self.stub.requests[-1]["input"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kafka_of_responses(kafka: LocalKafka) -> KafkaSettings:
    return kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateways")


@asynccontextmanager
async def serving(
    kafka: KafkaSettings, stub: Stub, folder: Path, **env: str
) -> AsyncGenerator[Gateway]:
    """A gateway that knows two plain keys and two upstreams."""
    upstreams = {name: {**upstream, "base_url": stub.url} for name, upstream in GPT.items()}
    settings = {
        "FULGURITE_API_KEYS": f"{PLAIN},{OTHER}",
        "FULGURITE_UPSTREAMS": json.dumps(upstreams),
        "FULGURITE_DATA_DIR": str(folder),
    }
    async with running_gateway(
        kafka, stub.url, folder, make_topics=True, **settings, **env
    ) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka_of_responses: KafkaSettings, stub: Stub, folder: Path
) -> AsyncGenerator[Gateway]:
    async with serving(kafka_of_responses, stub, folder) as running:
        yield running


async def refused(
    gateway: Gateway, body: dict[str, Any], key: str = PLAIN
) -> tuple[int, dict[str, Any]]:
    """Status and error, of a request that no upstream saw and the log has as refused."""
    async with gateway.post(PATH, {"model": "policy", "input": "?", **body}, key) as response:
        error = (await response.json())["error"]
        rollout = response.headers[ROLLOUT]
    assert rollout in {
        call.rollout_id for call in await gateway.calls() if call.outcome is CallOutcome.refused
    }
    return response.status, error


@pytest.mark.parametrize("model", ["policy", "gpt"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_upstream_gets_the_whole_conversation(
    gateway: Gateway, stub: Stub, model: str, stream: bool
) -> None:
    stub.reset(vllm=model == "policy")
    talk = Talk(stub, model=model)
    hi = f"hi {uuid.uuid4()}"
    first = await talk.say(gateway, hi, "hello", instructions="Be brief.", stream=stream)
    second = await talk.say(gateway, [asked("and?")], "so", first, stream=stream)
    assert talk.served() == [asked(hi), said("hello"), asked("and?")]
    assert "instructions" not in stub.requests[-1], "they hold for one response"
    third = await talk.say(gateway, "more", "no", second, stream=stream)
    assert talk.served() == [asked(hi), said("hello"), asked("and?"), said("so"), asked("more")]
    await talk.say(gateway, "again", "yes", first)
    assert talk.served() == [asked(hi), said("hello"), asked("again")], "a branch"
    await talk.say(gateway, [*talk.served(), said("yes"), asked("thanks")], "bye")
    [rollout] = talk.rollouts
    calls = {call.call_id: call for call in await gateway.calls(rollout)}
    assert len(calls) == 5
    recorded = calls[parse_completion(third).completion_id]
    assert (recorded.identity, recorded.outcome) == (Identity.header, CallOutcome.success)
    body, head = json.loads(recorded.request or ""), json.loads(recorded.response or "")
    assert body["input"] == [asked(hi), said("hello"), asked("and?"), said("so"), asked("more")]
    assert (head["id"], head["previous_response_id"]) == (third, second)
    if model == "policy":
        assert unpack_ids(recorded.prompt_token_ids or b"").tolist() == PROMPT_IDS


async def test_a_restarted_gateway_and_another_one_go_on_from_the_log(
    kafka_of_responses: KafkaSettings, gateway: Gateway, stub: Stub, folder: Path
) -> None:
    """Some calls are large enough for claim checks, some are deltas of others; declared and not."""
    stub.reset()
    start = partial(serving, kafka_of_responses, stub, folder, FULGURITE_CLAIM_CHECK_BYTES="16384")
    inputs: list[Callable[[int], list[Any]]] = [
        lambda turn: [asked("long " * 5000 + str(turn))],
        lambda turn: [asked("long " * 400 + str(turn))],
        lambda turn: [asked(f"{turn} {number}") for number in range(500)],
    ]
    async with start() as running:
        scoped = (await running.declare(n=1, mode="train"))["rollouts"][0]
        talks = [Talk(stub), Talk(stub, scoped["api_key"]), Talk(stub, model="gpt")]
        ids: list[str] = []
        for talk, given in zip(talks, inputs, strict=True):
            last: str | None = None
            for turn in range(4):
                last = await talk.say(running, given(turn), f"answer {turn}", last)
            ids.append(last or "")
    async with start() as restarted:
        for talk, given, last in zip(talks, inputs, ids, strict=True):
            for other in (restarted, gateway):
                await talk.say(other, "more", "no", last)
                turns = [
                    item for turn in range(4) for item in (*given(turn), said(f"answer {turn}"))
                ]
                assert talk.served() == [*turns, asked("more")]
            assert len(talk.rollouts) == 1
    codec = Codec()
    rollouts = {rollout for talk in talks for rollout in talk.rollouts}
    events = [record.event for record in read_all(kafka_of_responses, LLM_CALLS, codec)]
    calls = [
        event for event in events if isinstance(event, LlmCall) and event.rollout_id in rollouts
    ]
    assert any(call.parent is not None for call in calls)
    assert any(call.pieces for call in calls)
    assert any(call.claim_check is not None for call in calls)
    assert {call.mode for call in calls if call.rollout_id == scoped["rollout_id"]} == {Mode.train}


async def test_gateways_of_one_redis_go_on_from_each_others_responses(
    kafka: LocalKafka, valkey: LocalValkey, stub: Stub, folder: Path
) -> None:
    stub.reset()
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    start = partial(serving, settings, stub, folder, REDIS_URL=valkey.url)
    async with start() as one, start() as other:
        talk, last = Talk(stub), None
        for turn in range(6):
            last = await talk.say(
                (one, other)[turn % 2], f"question {turn}", f"answer {turn}", last
            )
        assert [item["content"] for item in talk.served() if item["role"] == "user"] == [
            f"question {turn}" for turn in range(6)
        ]
        assert len(talk.rollouts) == 1


async def test_another_owners_response_does_not_exist(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    group = await gateway.declare(n=2, mode="train")
    mine, sibling = (rollout["api_key"] for rollout in group["rollouts"])
    plain = Talk(stub)
    scoped = Talk(stub, mine)
    by_plain, by_scoped = (
        await plain.say(gateway, "hi", "hello"),
        await scoped.say(gateway, "hi", "hello"),
    )
    seen = len(stub.requests)
    for previous, keys in (
        (by_plain, (OTHER, mine)),
        (by_scoped, (PLAIN, OTHER, sibling)),
        ("resp_123", (PLAIN, mine, ADMIN)),
    ):
        for key in keys:
            async with gateway.post(
                PATH, {"model": "policy", "input": "?", "previous_response_id": previous}, key
            ) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"], error["param"]) == (
                    404,
                    "previous_response_not_found",
                    "previous_response_id",
                )
                assert response.headers[ROLLOUT] not in plain.rollouts
                assert key == mine or response.headers[ROLLOUT] not in scoped.rollouts
            async with gateway.client.get(
                f"{gateway.url}{PATH}/{previous}", headers={"x-api-key": key}
            ) as got:
                assert got.status == 404
    assert len(stub.requests) == seen
    for key in (PLAIN, ADMIN):
        talk = Talk(stub, key)
        await talk.say(gateway, "more", "no", by_plain)
        assert talk.rollouts == plain.rollouts
    await scoped.say(gateway, "more", "no", by_scoped)
    assert len(scoped.rollouts) == 1


async def test_a_plain_key_names_no_rollout_but_its_own_by_its_id(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    talk = Talk(stub)
    await talk.say(gateway, "hi", "hello")
    declared = (await gateway.declare(n=1, mode="train"))["rollouts"][0]["rollout_id"]
    body = {"model": "policy", "input": "?"}
    for rollout, key, status in (
        (*talk.rollouts, PLAIN, 200),
        (*talk.rollouts, OTHER, 403),
        (declared, PLAIN, 403),
        (declared, ADMIN, 200),
    ):
        for path, headers in (
            (f"/rollouts/{rollout}{PATH}", {}),
            (PATH, {"x_fulgurite_rollout": rollout}),
        ):
            async with gateway.post(path, body, key, **headers) as response:
                assert response.status == status, await response.text()
                assert (response.headers[ROLLOUT] == rollout) == (status == 200)
    assert {call.outcome for call in await gateway.calls(declared)} == {CallOutcome.success}


async def test_a_response_that_is_not_to_be_stored_is_not_built_on(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    unstored = await Talk(stub).say(gateway, "hi", "hello", store=False)
    status, error = await refused(gateway, {"previous_response_id": unstored})
    assert (status, "`store: false`" in error["message"]) == (404, True)
    status, _ = await gateway.get(f"{PATH}/{unstored}")
    assert status == 404
    stub.reset(break_after=2)
    async with gateway.post(PATH, {"model": "policy", "input": "hi", "stream": True}) as response:
        first = (await response.text()).split("\n\n")[0]
    broken = json.loads(first.split("data: ")[1])["response"]["id"]
    status, error = await refused(gateway, {"previous_response_id": broken})
    assert (status, "no such answer is in the log" in error["message"]) == (404, True)


async def test_items_of_the_conversation_may_be_referred_to(gateway: Gateway, stub: Stub) -> None:
    stub.reset(tool_arguments='{"a": 1}')
    talk = Talk(stub)
    called = await talk.say(gateway, "add", "")
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "calc",
        "arguments": '{"a": 1}',
    }
    output = {"type": "function_call_output", "call_id": "call_1", "output": "11"}
    stub.script.tool_arguments = None
    await talk.say(gateway, [output], "It is 11.", called)
    assert talk.served() == [asked("add"), call, output]
    await talk.say(gateway, [{"type": "item_reference", "id": "fc_1"}, output], "It is 11.", called)
    assert talk.served() == [asked("add"), call, call, output]
    for body, says in (
        ({"input": [output]}, "No tool call found"),
        ({"input": [{"type": "item_reference", "id": "fc_2"}]}, "No item 'fc_2'"),
        (
            {"input": [{**output, "call_id": "call_2"}], "previous_response_id": called},
            "No tool call found",
        ),
        (
            {"input": "hi", "conversation": "conv_9"},
            "`conversation` is not supported: send the complete conversation",
        ),
    ):
        status, error = await refused(gateway, body)
        assert (status, error["type"], says in error["message"]) == (
            400,
            "invalid_request_error",
            True,
        )


async def test_items_may_be_referred_to_without_the_response(
    gateway: Gateway, kafka_of_responses: KafkaSettings, stub: Stub, folder: Path
) -> None:
    """As clients do that send each item's id in place of what they were answered."""
    stub.reset(tool_arguments='{"a": 1}')
    talk = Talk(stub)
    await talk.say(gateway, [asked("divide")], "")
    called = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "calc",
        "arguments": '{"a": 1}',
    }
    output = {"type": "function_call_output", "call_id": "call_1", "output": "11"}
    stub.script.tool_arguments = None
    given = [asked("divide"), {"type": "item_reference", "id": "fc_1"}, output]
    await talk.say(gateway, given, "It is 11.")
    assert talk.served() == [asked("divide"), called, output]
    assert len(talk.rollouts) == 1, "it is the same conversation"
    status, error = await refused(gateway, {"input": given}, OTHER)
    assert (status, error["code"]) == (400, "item_not_found")


async def test_a_recorded_response_can_be_read_again(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    talk, body = (
        Talk(stub),
        {"model": "policy", "input": "hi", "instructions": "Be brief.", "metadata": {"a": "b"}},
    )
    async with gateway.post(PATH, body) as response:
        reply, rollout = await response.json(), response.headers[ROLLOUT]
    async with gateway.client.get(
        f"{gateway.url}{PATH}/{reply['id']}", headers={"x-api-key": PLAIN}
    ) as response:
        assert (response.status, response.headers[ROLLOUT]) == (200, rollout)
        assert await response.json() == {**reply, "instructions": "Be brief."}
    await talk.say(gateway, "more", "no", reply["id"])
    status, _ = await gateway.get(f"{PATH}/{reply['id']}/input_items")
    assert status == 404


async def test_a_conversation_over_the_limit_of_a_body_is_refused(
    kafka_of_responses: KafkaSettings, stub: Stub, folder: Path, gateway: Gateway
) -> None:
    stub.reset()
    async with serving(kafka_of_responses, stub, folder, FULGURITE_MAX_BODY_BYTES="3000") as narrow:
        first = await Talk(stub).say(narrow, "a" * 2000, "hello")
        status, error = await refused(narrow, {"input": "b" * 2000, "previous_response_id": first})
    assert (status, error["code"]) == (413, "body_too_large")


async def test_a_search_ends(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    talk = Talk(stub)
    ref = parse_completion(await talk.say(gateway, "hi", "hello"))
    codec = Codec()
    found = CallSearch(gateway.kafka, codec).find(ref, None)
    assert found is not None
    assert found.call_id == ref.completion_id
    with pytest.raises(SearchTooLong):
        CallSearch(gateway.kafka, codec, patience_s=-1).find(ref, None)
    assert CallSearch(gateway.kafka, codec).find(ref, Delivery(0, 1 << 40)) is None
