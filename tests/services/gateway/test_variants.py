"""Which variant answers a call, with which parameters, and what the call records of it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgspec

from fulgurite.enums import CallOutcome
from fulgurite.events import PolicyRoute, RouteTarget
from fulgurite.selection.context import cell_of
from services.gateway.errors import NotReady
from tests.fulgurite.prompts.prompt_updates import version
from tests.services.gateway.answering import REPLY, Answer, Gateway, running


def to(upstream: str, weight: float, **parameters: float) -> RouteTarget:
    return RouteTarget(policy="", upstream=upstream, weight=weight, parameters=parameters)


def route(gateway: Gateway, *targets: RouteTarget) -> None:
    gateway.policies.apply(
        PolicyRoute(event_id="r", event_time=1, alias="odd", targets=targets, reason="", author="")
    )


async def ask(gateway: Gateway, session: str, **body: Any) -> Answer:
    return await gateway.answer(
        "/v1/chat/completions",
        [REPLY],
        asked_with={"x-claude-code-session-id": session},
        model="odd",
        messages=[{"role": "user", "content": "hi"}],
        **body,
    )


async def test_each_call_of_a_rollout_records_the_variant_that_answered_and_its_share(
    gateway: Gateway,
) -> None:
    route(gateway, to("odd", 3), to("oddv", 1))
    seen: dict[str, Answer] = {}
    for turn in range(2):
        for session in map(str, range(40)):
            answer = await ask(gateway, session)
            before = seen.setdefault(session, answer).call
            assert (answer.call.variant, answer.call.backend) == (before.variant, before.backend)
        route(gateway, to("odd", 1), to("oddv", 3 + turn))
    found = {(answer.call.variant, answer.call.propensity) for answer in seen.values()}
    assert found == {("upstream:odd", 0.75), ("upstream:oddv", 0.25)}
    for answer in seen.values():
        assert answer.call.alias == "odd"
        ours = answer.call.variant == "upstream:oddv"
        assert json.loads(answer.body)["model"] == ("odd" if ours else "m")
        assert answer.call.policy == ("policy" if ours else None)


async def test_a_call_records_the_context_whose_shares_it_was_given_its_variant_by(
    gateway: Gateway,
) -> None:
    route(
        gateway,
        msgspec.structs.replace(to("odd", 1), cell_weights={"/medium": 0.01}),
        msgspec.structs.replace(to("oddv", 1), cell_weights={"/medium": 0.99}),
    )
    long = [{"role": "user", "content": "x" * 2_000}]
    seen = [
        (await gateway.answer("/v1/chat/completions", [REPLY], model="odd", messages=messages)).call
        for messages in ([{"role": "user", "content": "hi"}], long, long, long)
    ]
    assert (seen[0].cell, seen[0].propensity) == ("/short", 0.5)
    for call in seen[1:]:
        assert call.cell == "/medium" == cell_of(msgspec.structs.replace(call, cell=None))
        assert call.propensity == (0.99 if call.variant == "upstream:oddv" else 0.01)


async def test_a_variant_sets_the_sampling_that_the_agent_leaves_open(gateway: Gateway) -> None:
    route(gateway, to("odd", 1, temperature=0.5, top_k=20.0))
    answer = await ask(gateway, "a", temperature=0.9)
    _, body = gateway.upstream.asked[-1]
    assert (body["temperature"], body["top_k"]) == (0.9, 20)
    assert isinstance(body["top_k"], int)
    sampling = answer.call.sampling
    assert (sampling.temperature, sampling.top_k) == (0.9, 20)
    assert answer.call.variant == "upstream:odd,temperature=0.5,top_k=20"
    assert "top_k" not in json.loads(answer.call.request or ""), "as the agent sent it"
    embedded = await gateway.answer("/v1/embeddings", [b"{}"], model="odd", input="a")
    assert embedded.call.variant == answer.call.variant
    assert "temperature" not in gateway.upstream.asked[-1][1]


async def test_a_variant_has_a_prompt_of_its_own(gateway: Gateway) -> None:
    begun = time.time_ns() // 1_000_000 - 10_000
    gateway.prompts.apply(version(1, alias="odd", at=begun, system="Old."))
    gateway.prompts.apply(version(2, alias="odd", at=begun, system="New."))
    for prompt, system in (("prompt@1", "Old."), ("none", None), (None, "New.")):
        route(gateway, msgspec.structs.replace(to("odd", 1), prompt=prompt))
        answer = await ask(gateway, f"with {prompt}")
        asked = gateway.upstream.asked[-1][1]["messages"]
        assert asked[0] == ({"role": "system", "content": system} if system else asked[-1])
        named = {"Old.": "prompt@1", "New.": "prompt@2", None: None}[system]
        assert answer.call.prompt_version == named
        suffix = "" if prompt is None else f",prompt@{prompt.removeprefix('prompt@')}"
        assert answer.call.variant == f"upstream:odd{suffix}"


async def test_a_call_that_reaches_a_route_by_its_role_keeps_the_prompt_of_its_alias(
    tmp_path: Path,
) -> None:
    roles = {"oddv": {"critic": {"alias": "odd"}}}
    async with running(tmp_path, roles=roles) as gateway:
        route(gateway, msgspec.structs.replace(to("odd", 1), prompt="prompt@1"))
        answer = await gateway.answer(
            "/v1/chat/completions",
            [REPLY],
            asked_with={"x-fulgurite-agent": "critic"},
            model="oddv",
            messages=[{"role": "user", "content": "hi"}],
        )
    call = answer.call
    assert (call.alias, call.routed_alias) == ("oddv", "odd")
    assert (call.variant, call.prompt_version) == ("upstream:odd,prompt@1", None)


async def test_a_call_is_refused_until_its_variants_prompt_is_read(gateway: Gateway) -> None:
    route(gateway, msgspec.structs.replace(to("odd", 1), prompt="prompt@7"))
    refused = await gateway.answer("/v1/chat/completions", [REPLY], model="odd", messages=[])
    assert refused.status == 503
    assert b"has not read prompt@7 of odd" in refused.body


async def test_a_refused_call_has_no_variant(gateway: Gateway) -> None:
    refused = await gateway.answer("/v1/chat/completions", [], model="nobody", messages=[])
    assert (refused.call.variant, refused.call.propensity) == (None, None)


async def test_a_call_that_waits_stays_with_the_variant_that_it_was_prepared_for(
    gateway: Gateway,
) -> None:
    route(gateway, to("oddv", 1))
    waiting = asyncio.create_task(
        gateway.answer("/v1/chat/completions", NotReady("oddv", "v"), model="odd", messages=[])
    )
    await gateway.upstream.was_asked.wait()
    route(gateway, to("odd", 1))
    gateway.upstream.error, gateway.upstream.pieces = None, [REPLY]
    call = (await waiting).call
    assert (call.outcome, call.backend) == (CallOutcome.success, "oddv")
    assert (call.variant, call.propensity) == ("upstream:oddv", 1.0)
