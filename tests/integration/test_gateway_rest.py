"""Declaring, telling and paying: each answer comes after its event is in the log, and bad input
gets a clear error.
"""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from fulgurite.avro.codec import Codec
from fulgurite.enums import ApplyOutcome, Mode, StatusKind, UpdateKind
from fulgurite.events import PolicyApplied, PolicyRoute, PolicyUpdate, RouteTarget
from fulgurite.failures import FailureKind
from fulgurite.ids import completion_of, external_group, mint_group, parse_completion, rollout_of
from fulgurite.topics import LLM_CALLS, POLICY_APPLIED, POLICY_ROUTES, POLICY_UPDATES
from services.common.kafka.producer import EventProducer
from services.gateway.identity.keys import KeyRing
from services.local_stack.kafka_local import LocalKafka
from services.local_stack.valkey_local import LocalValkey
from tests.integration.gateway_process import (
    ADMIN,
    PLAIN,
    SIGNING,
    Gateway,
    kafka_settings,
    running_gateway,
)
from tests.integration.stub_upstream import Stub
from tests.synthetic import make_call

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

REWARDS = "/v1/rewards"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    kafka: LocalKafka, valkey: LocalValkey, stub: Stub, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Gateway]:
    settings = kafka_settings(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:12]}.")
    async with running_gateway(
        settings, stub.url, tmp_path_factory.mktemp("gateway"), REDIS_URL=valkey.url
    ) as running:
        yield running


async def test_a_declared_group_is_in_the_log_before_its_keys_are_given_out(
    gateway: Gateway,
) -> None:
    group = await gateway.declare(
        n=3,
        task={"q": "1+1"},
        mode="val",
        expected_rewards=["exact"],
        reward_weights={"exact": 2.0},
        credit_rule="step",
        run_id="r1",
        max_attempts=2,
    )
    [declared] = await gateway.statuses(group["group_id"])
    assert (declared.kind, declared.mode, declared.rollout_id) == (
        StatusKind.declared,
        Mode.val,
        None,
    )
    said = declared.declaration
    assert said is not None
    assert list(said.rollout_ids) == [rollout["rollout_id"] for rollout in group["rollouts"]]
    assert (said.deadline, said.alias, said.policy, said.task) == (
        group["deadline"],
        "policy",
        "policy",
        '{"q":"1+1"}',
    )
    assert (said.expected_rewards, said.reward_weights, said.credit_rule) == (
        ("exact",),
        {"exact": 2.0},
        "step",
    )
    assert (said.run_id, said.max_attempts) == ("r1", 2)
    assert group["rollouts"][2]["index"] == 2
    assert group["rollouts"][0]["base_url"] == gateway.url + "/v1"


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"n": "many"},
        {"deadline_s": -1},
        {"mode": "play"},
        {"reward_weights": {"a": "x"}},
        {"reward_weights": {"a": "1"}},
        {"reward_weights": {"a": 1e308}},
        {"reward_weights": {"": 1}},
        {"expected_rewards": [str(number) for number in range(101)]},
        {"no_such_field": 1},
        {"model": 5},
    ],
)
async def test_a_declaration_that_makes_no_sense_is_refused(
    gateway: Gateway, fields: dict[str, Any]
) -> None:
    status, reply = await gateway.json("/v1/rollouts", fields, ADMIN)
    assert status == 400
    assert next(iter(fields)).replace("model", "alias") in reply["error"]["message"].replace(
        "model", "alias"
    )


async def test_only_the_admin_declares_and_only_for_known_models(gateway: Gateway) -> None:
    status, reply = await gateway.json("/v1/rollouts", {}, PLAIN)
    assert (status, reply["error"]["code"]) == (403, "admin_only")
    status, reply = await gateway.json("/v1/rollouts", {"model": "nobody"}, ADMIN)
    assert (status, reply["error"]["code"]) == (404, "model_not_found")


async def test_the_next_attempt_has_keys_of_its_own(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    group = await gateway.declare(n=1, max_attempts=2)
    rollout = group["rollouts"][0]["rollout_id"]
    status, second = await gateway.json(f"/v1/rollouts/{rollout}/attempts", {}, ADMIN)
    assert (status, second["attempt"], second["rollout_id"]) == (201, 1, rollout)
    status, _ = await gateway.json(
        "/v1/chat/completions", {"model": "policy", "messages": []}, second["api_key"]
    )
    assert (status, (await gateway.call(rollout)).attempt) == (200, 1)
    status, reply = await gateway.json(f"/v1/rollouts/{rollout}/attempts", {}, ADMIN)
    assert (status, "max_attempts=2" in reply["error"]["message"]) == (400, True)


async def test_status_by_the_agent_and_by_its_runner(gateway: Gateway) -> None:
    group = await gateway.declare(n=1, mode="train")
    rollout = group["rollouts"][0]
    path = f"/v1/rollouts/{rollout['rollout_id']}/status"
    assert (await gateway.json(path, {"kind": "started"}, rollout["api_key"]))[0] == 201
    failed = {
        "kind": "failed",
        "failure": "agent_exception",
        "message": "exit",
        "exit_code": 1,
        "will_retry": True,
    }
    for _ in range(2):
        assert (await gateway.json(path, failed, ADMIN, idempotency_key="a"))[0] == 201
    _, started, first = await gateway.statuses(group["group_id"])
    assert (started.kind, started.source, started.mode) == (StatusKind.started, "agent", Mode.train)
    assert (first.kind, first.source, first.failure, first.exit_code) == (
        StatusKind.failed,
        "runner",
        FailureKind.agent_exception,
        1,
    )
    assert (first.will_retry, first.message, first.mode, first.attempt) == (
        True,
        "exit",
        Mode.train,
        0,
    )
    other = failed | {"exit_code": 2}
    assert (await gateway.json(path, other, ADMIN, idempotency_key="a"))[0] == 409
    for body in ({"kind": "timed_out"}, {"kind": "failed", "failure": "bad luck"}, {}):
        assert (await gateway.json(path, body, ADMIN))[0] == 400
    status, reply = await gateway.json(path, {"kind": "finished"}, rollout["reward_key"])
    assert (status, reply["error"]["code"]) == (403, "wrong_scope")


async def test_a_reward_of_a_rollout_and_of_a_completion(gateway: Gateway, stub: Stub) -> None:
    stub.reset()
    group = await gateway.declare(n=1, expected_rewards=["exact"], reward_weights={"thumb": 0.5})
    rollout = group["rollouts"][0]
    _, reply = await gateway.json(
        "/v1/chat/completions", {"model": "policy", "messages": []}, rollout["api_key"]
    )
    body = {
        "rollout_id": rollout["rollout_id"],
        "name": "exact",
        "value": 0.5,
        "metadata": {"why": "so"},
    }
    assert (await gateway.json(REWARDS, body, rollout["reward_key"]))[0] == 201
    thumb = {"completion_id": reply["id"], "name": "thumb", "value": -1, "final": False}
    assert (await gateway.json(REWARDS, thumb, ADMIN))[0] == 201
    exact, thumbed = await gateway.rewards(group["group_id"])
    assert (exact.rollout_id, exact.attempt, exact.call_id, exact.choice) == (
        rollout["rollout_id"],
        0,
        None,
        None,
    )
    assert (exact.name, exact.value, exact.final, exact.source, exact.metadata) == (
        "exact",
        0.5,
        True,
        "rest",
        '{"why":"so"}',
    )
    assert (thumbed.rollout_id, thumbed.attempt, thumbed.call_id, thumbed.choice) == (
        rollout["rollout_id"],
        0,
        reply["id"],
        0,
    )
    assert (thumbed.value, thumbed.final) == (-1.0, False)


async def test_an_agent_cannot_pay_itself_nor_one_evaluator_anothers_rollout(
    gateway: Gateway,
) -> None:
    first, second = (await gateway.declare(n=2))["rollouts"]
    body = {"rollout_id": first["rollout_id"], "name": "exact", "value": 1}
    for key, code in (
        (first["api_key"], "wrong_scope"),
        (PLAIN, "wrong_scope"),
        (second["reward_key"], "foreign_key"),
    ):
        status, reply = await gateway.json(REWARDS, body, key)
        assert (status, reply["error"]["code"]) == (403, code)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (b"NaN", None),
        (b"Infinity", None),
        (b"-Infinity", None),
        (b"1e999", None),
        (b'"high"', "value"),
        (b"null", "value"),
        (b'"1"', "value"),
        (b"true", "value"),
        (b"[1]", "value"),
        (b"1e308", "value"),
        (b"-1e39", "value"),
        (b"1000001", "value"),
    ],
)
async def test_a_reward_is_a_number_that_can_be_trained_on(
    gateway: Gateway, value: bytes, param: str | None
) -> None:
    """What JSON does not have makes the whole body none."""
    rollout = (await gateway.declare(n=1))["rollouts"][0]
    body = (
        b'{"rollout_id": "'
        + rollout["rollout_id"].encode()
        + b'", "name": "reward", "value": '
        + value
        + b"}"
    )
    status, reply = await gateway.json(REWARDS, body, ADMIN)
    assert (status, reply["error"]["param"]) == (400, param)


async def test_one_idempotency_key_takes_the_same_reward_in_any_writing(gateway: Gateway) -> None:
    rollout = (await gateway.declare(n=1))["rollouts"][0]
    named = b'"rollout_id": "' + rollout["rollout_id"].encode() + b'"'
    bodies = [
        b"{" + named + b', "name": "reward", "value": 1, "metadata": {"a": 1, "b": [2.0]}}',
        b'{"value":1.0,"metadata":{"b":[2],"a":1.0},"name":"reward",' + named + b"}",
    ]
    replies = [await gateway.json(REWARDS, body, ADMIN, idempotency_key="k") for body in bodies]
    assert replies[0] == replies[1]
    assert replies[0][0] == 201
    other = bodies[0].replace(b'"value": 1', b'"value": 2')
    assert (await gateway.json(REWARDS, other, ADMIN, idempotency_key="k"))[0] == 409


async def test_every_wrong_field_is_named(gateway: Gateway) -> None:
    status, reply = await gateway.json(
        "/v1/rollouts", {"n": "2", "deadline_s": True, "max_attempts": 0, "colour": 1}, ADMIN
    )
    assert status == 400
    assert all(
        f"`{name}`" in reply["error"]["message"]
        for name in ("n", "deadline_s", "max_attempts", "colour")
    )


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_is_json_whatever_its_type_is_called(
    gateway: Gateway, content_type: str | None
) -> None:
    headers = {"authorization": f"Bearer {ADMIN}"} | (
        {"content-type": content_type} if content_type else {}
    )
    skipped = [] if content_type else ["content-type"]
    async with gateway.client.post(
        gateway.url + "/v1/rollouts", data=b'{"n": 2}', headers=headers, skip_auto_headers=skipped
    ) as response:
        assert response.status == 201
        assert len((await response.json())["rollouts"]) == 2


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/rollouts", "the admin key (FULGURITE_ADMIN_KEY)"),
        ("/v1/rollouts/ro_x/attempts", "the admin key (FULGURITE_ADMIN_KEY)"),
        ("/v1/rollouts/ro_x/status", "the rollout's `api_key` or the admin key"),
        (REWARDS, "the rollout's `reward_key` or the admin key"),
        ("/v1/chat/completions", "OPENAI_API_KEY"),
    ],
)
async def test_who_sends_no_key_is_told_which_one_is_wanted_before_the_body_is_read(
    gateway: Gateway, path: str, says: str
) -> None:
    for key in ("", "nobody"):
        status, reply = await gateway.json(path, b"{" * 900_000, key)
        assert (status, says in reply["error"]["message"]) == (401, True)


async def test_a_rest_body_has_a_small_limit(gateway: Gateway) -> None:
    body = io.BytesIO(b'{"task": "' + b"x" * 1_100_000 + b'"}')
    async with gateway.client.post(
        gateway.url + "/v1/rollouts", data=body, headers={"authorization": f"Bearer {ADMIN}"}
    ) as response:
        assert response.status == 413
        assert "FULGURITE_MAX_REST_BODY_BYTES" in (await response.json())["error"]["message"]


async def test_a_long_message_is_kept_in_part(gateway: Gateway) -> None:
    group = await gateway.declare(n=1)
    [rollout] = group["rollouts"]
    path = f"/v1/rollouts/{rollout['rollout_id']}/status"
    assert (
        await gateway.json(
            path, {"kind": "failed", "message": "\U0001f600" * 60_000}, rollout["api_key"]
        )
    )[0] == 201
    [failed] = [status for status in await gateway.statuses(group["group_id"]) if status.message]
    assert len((failed.message or "").encode()) <= 4096
    assert (failed.message or "").endswith("[240000 bytes in all]")


async def test_metadata_of_a_reward_is_bounded(gateway: Gateway) -> None:
    rollout = (await gateway.declare(n=1))["rollouts"][0]
    body = {
        "rollout_id": rollout["rollout_id"],
        "name": "reward",
        "value": 1,
        "metadata": {"a": "x" * 20_000},
    }
    status, reply = await gateway.json(REWARDS, body, ADMIN)
    assert (status, reply["error"]["param"]) == (400, "metadata")


async def test_statuses_of_a_key_have_a_rate(gateway: Gateway) -> None:
    rollout = (await gateway.declare(n=1))["rollouts"][0]
    path = f"/v1/rollouts/{rollout['rollout_id']}/status"
    sent = await asyncio.gather(
        *(gateway.json(path, {"kind": "started"}, rollout["api_key"]) for _ in range(300))
    )
    refused = [reply for status, reply in sent if status == 429]
    assert refused
    assert "FULGURITE_KEY_STATUSES_PER_MINUTE" in refused[0]["error"]["message"]
    assert (await gateway.json(path, {"kind": "started"}, ADMIN))[0] == 201


async def test_rewards_for_nobody(gateway: Gateway) -> None:
    forged = rollout_of(mint_group(1, b"0123456789"), 0, b"another secret")
    for body, status in (
        ({"rollout_id": forged, "name": "reward", "value": 1}, 404),
        ({"rollout_id": "nonsense", "name": "reward", "value": 1}, 404),
        ({"completion_id": "chatcmpl-nonsense", "name": "reward", "value": 1}, 404),
        ({"name": "reward", "value": 1}, 400),
        ({"rollout_id": forged, "completion_id": "y", "name": "reward", "value": 1}, 400),
        ({"rollout_id": forged, "choice": 1, "name": "reward", "value": 1}, 400),
        ({"rollout_id": forged, "name": "", "value": 1}, 400),
    ):
        answer, reply = await gateway.json(REWARDS, body, ADMIN)
        assert answer == status, reply
    answer, reply = await gateway.json(REWARDS, b"{", ADMIN)
    assert (answer, "not valid JSON" in reply["error"]["message"]) == (400, True)


async def test_a_reward_of_a_completion_that_nobody_was_given_is_refused(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    rollout = (await gateway.declare(n=1))["rollouts"][0]
    _, reply = await gateway.json(
        "/v1/chat/completions", {"model": "policy", "messages": []}, rollout["api_key"]
    )
    known = reply["id"]
    for made_up in (
        known[:-1] + ("0" if known[-1] != "0" else "1"),
        known[:-12] + "0" * 12,
        known.replace("_0_", "_1_", 1),
    ):
        status, answer = await gateway.json(REWARDS, {"completion_id": made_up, "value": 1}, ADMIN)
        assert (status, answer["error"]["code"]) in (
            (404, "unknown_completion"),
            (404, "unknown_rollout"),
        ), made_up
    assert (await gateway.json(REWARDS, {"completion_id": known, "value": 1}, ADMIN))[0] == 201


async def refused(gateway: Gateway, body: dict[str, Any]) -> str:
    """Why a reward for what was never recorded is refused. On a busy machine a look-up may take too
    long, and the reward is accepted.
    """
    for _ in range(10):
        status, reply = await gateway.json(REWARDS, body, ADMIN)
        if status == 404:
            assert reply["error"]["code"].startswith("unknown_")
            return reply["error"]["message"]
    raise AssertionError(f"{body} was accepted ten times")


@pytest.mark.parametrize(
    "group",
    [mint_group(1_600_000_000_000, b"0123456789"), external_group("owner", "chat-42", b"any")],
)
async def test_a_completion_from_before_ids_had_tags_can_be_paid_if_it_was_recorded(
    gateway: Gateway, group: str
) -> None:
    rollout = rollout_of(group, 0, KeyRing.parse(SIGNING).signing_secret)
    old = f"chatcmpl-{rollout.removeprefix('ro_')}_0_0123456789ab"
    body = {"completion_id": old, "value": 1}
    assert old in await refused(gateway, body)
    recorded = msgspec.structs.replace(
        make_call(), event_id=old, call_id=old, group_id=group, rollout_id=rollout
    )
    producer = EventProducer(gateway.kafka, Codec(), "test")
    await producer.publish(LLM_CALLS, group, recorded)
    producer.close()
    status, reply = await gateway.json(REWARDS, body, ADMIN)
    assert (status, reply["completion_id"]) == (201, old)


async def test_what_another_gateway_recorded_is_found_in_the_log_and_what_nobody_did_is_not(
    gateway: Gateway, stub: Stub, tmp_path: Path
) -> None:
    stub.reset()
    group = await gateway.declare(n=1)
    grant = group["rollouts"][0]
    chat = {"model": "policy", "messages": [{"role": "user", "content": "a secret"}]}
    _, declared = await gateway.json("/v1/chat/completions", chat, grant["api_key"])
    _, live = await gateway.json("/v1/chat/completions", chat, PLAIN)
    secret = KeyRing.parse(SIGNING).signing_secret
    nobody = completion_of(grant["rollout_id"], 0, b"12345", secret)
    undeclared = rollout_of(mint_group(1_700_000_000_000, b"0123456789"), 0, secret)
    async with running_gateway(gateway.kafka, stub.url, tmp_path, make_topics=False) as other:
        live_rollout = parse_completion(live["id"]).rollout.rollout_id
        for paid in (
            {"completion_id": declared["id"]},
            {"completion_id": live["id"]},
            {"rollout_id": live_rollout},
            {"rollout_id": grant["rollout_id"]},
        ):
            assert (await other.json(REWARDS, {**paid, "value": 1}, ADMIN))[0] == 201, paid
        for paid in ({"completion_id": nobody}, {"rollout_id": undeclared}):
            assert next(iter(paid.values())) in await refused(other, {**paid, "value": 1})
            body = {**paid, "value": 2, "allow_unknown": True}
            assert (await other.json(REWARDS, body, ADMIN))[0] == 201
        status, shown = await other.get(f"/v1/rollouts/{grant['rollout_id']}", grant["reward_key"])
    assert (status, shown["state"], shown["deadline"]) == (200, "running", group["deadline"])
    assert [call["completion_id"] for call in shown["calls"]] == [declared["id"]]
    assert {1.0, 2.0} == {reward["value"] for reward in shown["rewards"]}
    assert "a secret" not in str(shown)


async def test_a_misspelt_name_is_refused_with_those_that_were_declared(gateway: Gateway) -> None:
    group = await gateway.declare(n=1, expected_rewards=["correct"], reward_weights={"style": 0.1})
    rollout = group["rollouts"][0]
    for name in ("corect", "reward"):
        body = {"rollout_id": rollout["rollout_id"], "name": name, "value": 1}
        status, reply = await gateway.json(REWARDS, body, rollout["reward_key"])
        assert (status, reply["error"]["code"], reply["error"]["param"]) == (
            400,
            "unknown_reward",
            "name",
        )
        assert "correct, style" in reply["error"]["message"]
    for name in ("correct", "style"):
        body = {"rollout_id": rollout["rollout_id"], "name": name, "value": 1}
        assert (await gateway.json(REWARDS, body, rollout["reward_key"]))[0] == 201


async def test_a_misspelt_name_is_refused_where_none_was_declared(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    _, reply = await gateway.json(
        "/v1/chat/completions", {"model": "policy", "messages": []}, PLAIN
    )
    grant = (await gateway.declare(n=1))["rollouts"][0]
    for paid, key in (
        ({"completion_id": reply["id"]}, ADMIN),
        ({"rollout_id": grant["rollout_id"]}, grant["reward_key"]),
    ):
        status, told = await gateway.json(REWARDS, {**paid, "name": "rewrad", "value": 1}, key)
        assert (status, told["error"]["code"], told["error"]["param"]) == (
            400,
            "unknown_reward",
            "name",
        )
        assert "Its rewards are: reward." in told["error"]["message"]
        assert (await gateway.json(REWARDS, {**paid, "name": "reward", "value": 1}, key))[0] == 201


async def test_a_reward_without_a_name_is_called_reward(gateway: Gateway) -> None:
    group = await gateway.declare(n=1)
    rollout = group["rollouts"][0]
    assert (
        await gateway.json(
            REWARDS, {"rollout_id": rollout["rollout_id"], "value": 1}, rollout["reward_key"]
        )
    )[0] == 201
    (reward,) = await gateway.rewards(group["group_id"])
    assert reward.name == "reward"


async def test_how_a_number_is_written_makes_no_other_payload(gateway: Gateway) -> None:
    rollout = (await gateway.declare(n=1))["rollouts"][0]
    head = b'{"rollout_id": "' + rollout["rollout_id"].encode() + b'", "value": '
    first, again = [
        await gateway.json(REWARDS, head + value, ADMIN, idempotency_key="written")
        for value in (b"1}", b"1.0 }")
    ]
    assert first == again
    assert first[0] == 201


async def test_the_same_idempotency_key_with_the_same_and_with_another_payload(
    gateway: Gateway,
) -> None:
    group = await gateway.declare(n=1)
    rollout = group["rollouts"][0]
    body = {"rollout_id": rollout["rollout_id"], "name": "reward", "value": 1}
    first = await gateway.json(REWARDS, body, rollout["reward_key"], idempotency_key="k")
    again = await gateway.json(REWARDS, body, rollout["reward_key"], idempotency_key="k")
    assert first == again
    assert first[0] == 201
    status, reply = await gateway.json(
        REWARDS, body | {"value": 2}, rollout["reward_key"], idempotency_key="k"
    )
    assert (status, reply["error"]["code"]) == (409, "idempotency_conflict")
    assert (
        await gateway.json(
            REWARDS, body | {"value": 2}, rollout["reward_key"], idempotency_key="other"
        )
    )[0] == 201
    assert [reward.value for reward in await gateway.rewards(group["group_id"])] == [1.0, 2.0]


async def test_policies_follow_the_log(gateway: Gateway) -> None:
    producer = EventProducer(gateway.kafka, Codec(), "test")
    update = PolicyUpdate(
        event_id="c",
        event_time=1,
        policy="policy",
        kind=UpdateKind.claim,
        epoch=1,
        step=0,
        learner_id="l",
        trained_actions=0,
    )
    new = msgspec.structs.replace(
        update, event_id="u", kind=UpdateKind.update, step=3, version="policy@1.3"
    )
    applied = PolicyApplied(
        event_id="a",
        event_time=2,
        policy="policy",
        backend="vllm",
        engine_id="e",
        version="policy@1.3",
        outcome=ApplyOutcome.applied,
        seconds=0.1,
    )
    route = PolicyRoute(
        event_id="r",
        event_time=3,
        alias="policy",
        targets=(RouteTarget(policy="policy", weight=1.0),),
        reason="x",
        author="y",
    )
    for topic, event in (
        (POLICY_UPDATES, update),
        (POLICY_UPDATES, new),
        (POLICY_APPLIED, applied),
        (POLICY_ROUTES, route),
    ):
        await producer.publish(topic, "policy", event)
    producer.close()
    seen: dict[str, Any] = {}
    for _ in range(100):
        _, seen = await gateway.get("/v1/policies")
        if seen["routes"] and seen["data"][0]["backends"]:
            break
        await asyncio.sleep(0.1)
    [policy] = seen["data"]
    assert (policy["newest"], policy["epoch"]) == ("policy@1.3", 1)
    assert policy["backends"][0]["version"] == "policy@1.3"


async def test_a_version_that_is_served_answers_in_place_of_an_alias(
    gateway: Gateway, stub: Stub
) -> None:
    stub.reset()
    applied = PolicyApplied(
        event_id="b",
        event_time=4,
        policy="policy",
        backend="vllm",
        engine_id="e",
        version="policy@1.4",
        outcome=ApplyOutcome.applied,
        seconds=0.1,
    )
    producer = EventProducer(gateway.kafka, Codec(), "test")
    await producer.publish(POLICY_APPLIED, "policy", applied)
    producer.close()
    status, reply = 0, {}
    for _ in range(100):
        status, reply = await gateway.get("/v1/models/policy@1.4")
        if status == 200:
            break
        await asyncio.sleep(0.1)
    assert (reply["id"], reply["policy"]) == ("policy@1.4", "policy")
    group = await gateway.declare(served_by="policy@1.4", max_attempts=2)
    [declared] = await gateway.statuses(group["group_id"])
    assert declared.declaration is not None
    assert (declared.declaration.alias, declared.declaration.policy) == ("policy@1.4", "policy")
    grant = group["rollouts"][0]
    _, second = await gateway.json(f"/v1/rollouts/{grant['rollout_id']}/attempts", {}, ADMIN)
    for key in (grant["api_key"], second["api_key"]):
        claims = KeyRing.parse(SIGNING).verify(key, 0)
        assert (claims.alias, claims.served_by) == ("policy", "policy@1.4")
    body: dict[str, Any] = {"model": "policy", "messages": []}
    status, _ = await gateway.json("/v1/chat/completions", body, grant["api_key"])
    assert status == 200
    call = await gateway.call(grant["rollout_id"])
    assert (call.alias, call.routed_alias) == ("policy", "policy@1.4")
    status, _ = await gateway.json("/v1/chat/completions", {**body, "model": "policy@1.4"}, PLAIN)
    assert status == 200
    for fields in ({"served_by": "policy@1.5"}, {"model": "policy@1.5"}):
        status, reply = await gateway.json("/v1/rollouts", fields, ADMIN)
        assert (status, reply["error"]["code"]) == (404, "model_not_found")
        assert "No backend serves this version now" in reply["error"]["message"]


async def test_health_says_what_it_promises(gateway: Gateway) -> None:
    assert (await gateway.get("/healthz"))[1] == {"status": "ok"}
    status, report = await gateway.get("/readyz")
    assert (status, report["ready"], report["upstreams"]) == (200, True, {"vllm": "reachable"})
    assert (
        report["topics"]["durability"]["full"],
        report["topics"]["durability"]["replication"],
    ) == (False, 1)
    async with gateway.client.get(gateway.url + "/metrics") as response:
        text = await response.text()
    assert "fulgurite_gateway_calls_total" in text
    assert "fulgurite_gateway_ack_seconds" in text
