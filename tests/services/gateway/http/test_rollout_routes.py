"""`GET /v1/rollouts/{id}` and what `POST /v1/rewards` refuses, without a broker: the log is a list.
With one: tests/integration/test_gateway_rest.py.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fulgurite.events import AgentStatus
from fulgurite.ids import completion_of, mint_group, rollout_of
from services.gateway.identity.keys import KeyRing
from services.gateway.identity.store import MemoryStore
from tests.fuzz.gateway import ADMIN, PLAIN, SIGNING, Answer, InProcess, in_process

SECRET = KeyRing.parse(SIGNING).signing_secret
CHAT = "/v1/chat/completions"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncGenerator[InProcess]:
    async with in_process(tmp_path, api_keys=f"{PLAIN},another-plain-key") as running:
        yield running


async def ask(
    gateway: InProcess, path: str, body: object = None, key: str = ADMIN, **headers: str
) -> Answer:
    """A GET without a body, else a POST."""
    sent = [("authorization", f"Bearer {key}"), *headers.items()]
    if body is None:
        return await gateway.ask("GET", path, sent, b"")
    return await gateway.ask("POST", path, sent, json.dumps(body).encode())


async def declare(gateway: InProcess, **fields: Any) -> dict[str, Any]:
    answer = await ask(gateway, "/v1/rollouts", {"n": 1, "task": {"reference": "11"}, **fields})
    assert answer.status == 201, answer.body
    return answer.json()


async def chat(gateway: InProcess, key: str) -> Answer:
    answer = await ask(gateway, CHAT, {"model": "policy", "messages": []}, key)
    assert answer.status == 200, answer.body
    return answer


def statuses(gateway: InProcess) -> list[AgentStatus]:
    return [event for _, event in gateway.log.log if isinstance(event, AgentStatus)]


def unknown(answer: Answer, named: str) -> tuple[int, str, bool]:
    error = answer.json()["error"]
    return answer.status, error["code"], named in error["message"]


async def test_a_rollout_from_its_declaration_to_its_end(gateway: InProcess) -> None:
    group = await declare(gateway, expected_rewards=["exact"])
    [grant] = group["rollouts"]
    path = f"/v1/rollouts/{grant['rollout_id']}"
    shown = (await ask(gateway, path, key=grant["reward_key"])).json()
    assert (shown["state"], shown["deadline"], shown["task"]) == (
        "declared",
        group["deadline"],
        {"reference": "11"},
    )
    completion = (await chat(gateway, grant["api_key"])).json()["id"]
    assert (await ask(gateway, path, key=grant["reward_key"])).json()["state"] == "running"
    reward = {"completion_id": completion, "name": "exact", "value": 0.5}
    assert (await ask(gateway, "/v1/rewards", reward, grant["reward_key"])).status == 201
    finished = await ask(gateway, f"{path}/status", {"kind": "finished"}, grant["api_key"])
    assert finished.status == 201
    answer = await ask(gateway, path)
    shown = answer.json()
    assert answer.headers["x-fulgurite-rollout-id"] == grant["rollout_id"]
    assert (shown["state"], shown["group_id"]) == ("finished", group["group_id"])
    assert [call["completion_id"] for call in shown["calls"]] == [completion]
    [paid] = shown["rewards"]
    assert (paid["name"], paid["value"], paid["source"], paid["completion_id"]) == (
        "exact",
        0.5,
        "rest",
        completion,
    )


async def test_a_key_may_come_as_x_api_key(gateway: InProcess) -> None:
    declared = await gateway.ask(
        "POST", "/v1/rollouts", [("x-api-key", ADMIN)], b'{"max_attempts": 2}'
    )
    assert declared.status == 201, declared.body
    [grant] = declared.json()["rollouts"]
    path, reward = f"/v1/rollouts/{grant['rollout_id']}", {"rollout_id": grant["rollout_id"]}
    for key, method, route, body, status in (
        (ADMIN, "POST", f"{path}/attempts", {}, 201),
        (grant["api_key"], "POST", f"{path}/status", {"kind": "started"}, 201),
        (grant["reward_key"], "POST", "/v1/rewards", {**reward, "value": 1}, 201),
        (grant["api_key"], "POST", "/v1/rewards", {**reward, "value": 1}, 403),
        (grant["api_key"], "GET", path, None, 200),
        (PLAIN, "GET", "/v1/policies", None, 200),
        ("nobody", "GET", "/v1/policies", None, 401),
    ):
        sent = b"" if body is None else json.dumps(body).encode()
        answer = await gateway.ask(method, route, [("x-api-key", key)], sent)
        assert answer.status == status, (route, answer.body)
    both = [("x-api-key", "nobody"), ("authorization", f"Bearer {PLAIN}")]
    assert (await gateway.ask("GET", "/v1/policies", both, b"")).status == 200


async def test_the_agents_key_sees_neither_task_nor_rewards(gateway: InProcess) -> None:
    [grant] = (await declare(gateway))["rollouts"]
    path = f"/v1/rollouts/{grant['rollout_id']}"
    reward = {"rollout_id": grant["rollout_id"], "value": 1}
    assert (await ask(gateway, "/v1/rewards", reward, grant["reward_key"])).status == 201
    answer = await ask(gateway, path, key=grant["api_key"])
    assert (answer.status, answer.json()["task"], answer.json()["rewards"]) == (200, None, None)


async def test_a_plain_key_reads_the_rollouts_that_it_opened(gateway: InProcess) -> None:
    rollout = (await chat(gateway, PLAIN)).headers["x-fulgurite-rollout-id"]
    answer = await ask(gateway, f"/v1/rollouts/{rollout}", key=PLAIN)
    assert (answer.status, answer.json()["mode"], answer.json()["rewards"]) == (200, "live", [])
    other = await ask(gateway, f"/v1/rollouts/{rollout}", key="another-plain-key")
    assert unknown(other, rollout) == (404, "unknown_rollout", True)


async def test_a_rollout_of_another_key_is_not_found(gateway: InProcess) -> None:
    first, second = (await declare(gateway, n=2))["rollouts"]
    for key in (second["api_key"], second["reward_key"], PLAIN):
        answer = await ask(gateway, f"/v1/rollouts/{first['rollout_id']}", key=key)
        assert unknown(answer, first["rollout_id"]) == (404, "unknown_rollout", True)
    assert (await ask(gateway, f"/v1/rollouts/{first['rollout_id']}", key="nobody")).status == 401


@pytest.mark.parametrize(
    "rollout",
    [
        "nonsense",
        rollout_of(mint_group(1, b"0123456789"), 0, b"another secret"),
        rollout_of(mint_group(1, b"0123456789"), 0, SECRET),
    ],
)
async def test_a_rollout_that_does_not_exist_is_not_found(gateway: InProcess, rollout: str) -> None:
    answer = await ask(gateway, f"/v1/rollouts/{rollout}")
    assert unknown(answer, rollout) == (404, "unknown_rollout", True)


async def test_an_id_with_the_digits_of_another_script_is_nobodys(gateway: InProcess) -> None:
    [grant] = (await declare(gateway))["rollouts"]
    rollout = grant["rollout_id"].replace("_0_", "_\u0660_")
    completion = completion_of(grant["rollout_id"], 0, b"12345", SECRET).replace("_0_", "_\u0660_")
    assert unknown(await ask(gateway, f"/v1/rollouts/{rollout}"), rollout) == (
        404,
        "unknown_rollout",
        True,
    )
    for named, code in (
        ({"rollout_id": rollout}, "unknown_rollout"),
        ({"completion_id": completion}, "unknown_completion"),
    ):
        answer = await ask(gateway, "/v1/rewards", {**named, "value": 1}, grant["reward_key"])
        assert (answer.status, answer.json()["error"]["code"]) == (404, code)
    body: dict[str, Any] = {
        "model": "policy",
        "messages": [],
        "metadata": {"session_id": rollout},
    }
    assert (await ask(gateway, CHAT, body, PLAIN)).status == 404
    status = await ask(gateway, f"/v1/rollouts/{rollout}/status", {"kind": "finished"})
    assert status.status == 404
    follow_up = {"model": "policy", "input": "hi", "previous_response_id": completion}
    assert (await ask(gateway, "/v1/responses", follow_up, PLAIN)).status == 404


async def test_a_reward_for_what_was_never_recorded_needs_allow_unknown(gateway: InProcess) -> None:
    [grant] = (await declare(gateway))["rollouts"]
    completion = completion_of(grant["rollout_id"], 0, b"12345", SECRET)
    rollout = rollout_of(mint_group(1, b"0123456789"), 0, SECRET)
    for paid, code in (
        ({"completion_id": completion}, "unknown_completion"),
        ({"rollout_id": rollout}, "unknown_rollout"),
    ):
        [named] = paid.values()
        refused = await ask(gateway, "/v1/rewards", {**paid, "value": 1})
        assert unknown(refused, named) == (404, code, True)
        allowed = await ask(gateway, "/v1/rewards", {**paid, "value": 1, "allow_unknown": True})
        assert allowed.status == 201


async def test_a_reward_follows_its_answer_at_once(gateway: InProcess) -> None:
    for key in ((await declare(gateway))["rollouts"][0]["api_key"], PLAIN):
        answer = await chat(gateway, key)
        for paid in (
            {"completion_id": answer.json()["id"]},
            {"rollout_id": answer.headers["x-fulgurite-rollout-id"]},
        ):
            assert (await ask(gateway, "/v1/rewards", {**paid, "value": 1})).status == 201


async def test_a_choice_that_the_completion_does_not_have(gateway: InProcess) -> None:
    completion = (await chat(gateway, PLAIN)).json()["id"]
    body = {"completion_id": completion, "choice": 4, "value": 1}
    assert unknown(await ask(gateway, "/v1/rewards", body), "no choice 4") == (
        404,
        "unknown_choice",
        True,
    )


async def test_a_name_that_was_not_declared_needs_allow_unknown(gateway: InProcess) -> None:
    [grant] = (await declare(gateway, expected_rewards=["exact"]))["rollouts"]
    body = {"rollout_id": grant["rollout_id"], "name": "exakt", "value": 1}
    refused = await ask(gateway, "/v1/rewards", body, grant["reward_key"])
    assert unknown(refused, "Its rewards are: exact") == (400, "unknown_reward", True)
    body["allow_unknown"] = True
    assert (await ask(gateway, "/v1/rewards", body, grant["reward_key"])).status == 201


async def test_allow_unknown_gives_access_to_nothing_else(gateway: InProcess) -> None:
    first, second = (await declare(gateway, n=2))["rollouts"]
    body = {"rollout_id": first["rollout_id"], "value": 1, "allow_unknown": True}
    assert (await ask(gateway, "/v1/rewards", body, second["reward_key"])).status == 403
    foreign = rollout_of(mint_group(1, b"0123456789"), 0, b"another secret")
    body["rollout_id"] = foreign
    assert unknown(await ask(gateway, "/v1/rewards", body), foreign) == (
        404,
        "unknown_rollout",
        True,
    )


@pytest.mark.parametrize(
    "fields", [{"served_by": "writer"}, {"prompt_version": "none"}, {}, {"agent": "critic"}]
)
async def test_the_next_attempt_of_a_forgotten_group_is_served_as_declared(
    tmp_path: Path, fields: dict[str, str]
) -> None:
    async with in_process(tmp_path) as gateway:
        group = await declare(gateway, **fields)
    [grant] = group["rollouts"]
    first = KeyRing.parse(SIGNING).verify(grant["api_key"], 0)
    path = f"/v1/rollouts/{grant['rollout_id']}/attempts"
    body = {"attempt": 1, "mode": "train", "deadline": group["deadline"], **fields}
    body |= {"alias": "policy"} if first.alias else {}
    async with in_process(tmp_path) as restarted:
        answer = await ask(restarted, path, body)
    second = KeyRing.parse(SIGNING).verify(answer.json()["api_key"], 0)
    assert second == msgspec.structs.replace(first, attempt=1)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"served_by": "writer"}, 400, "send the group's `alias`"),
        ({"prompt_version": "prompt@1"}, 400, "send the group's `alias`"),
        (
            {"served_by": "writer", "prompt_version": "none", "alias": "policy"},
            400,
            "send one of them",
        ),
        ({"mode": None}, 404, "no longer remembers"),
    ],
)
async def test_what_a_forgotten_group_needs(
    tmp_path: Path, fields: dict[str, Any], status: int, words: str
) -> None:
    async with in_process(tmp_path) as gateway:
        [grant] = (await declare(gateway))["rollouts"]
    body = {"attempt": 1, "mode": "train", "deadline": 1 << 50, **fields}
    async with in_process(tmp_path) as restarted:
        answer = await ask(restarted, f"/v1/rollouts/{grant['rollout_id']}/attempts", body)
    assert (answer.status, words in answer.json()["error"]["message"]) == (status, True)


async def test_a_status_with_a_used_idempotency_key(gateway: InProcess) -> None:
    [grant] = (await declare(gateway, max_attempts=2))["rollouts"]
    path, key = f"/v1/rollouts/{grant['rollout_id']}", {"idempotency-key": "k"}
    body = {"kind": "failed", "message": "out of memory", "exit_code": 1}
    before = len(statuses(gateway))
    first = await ask(gateway, f"{path}/status", body, **key)
    again = await ask(gateway, f"{path}/status", dict(reversed(body.items())), **key)
    assert (first.status, again.status, again.json()) == (201, 201, first.json())
    other = await ask(gateway, f"{path}/status", {"kind": "finished"}, **key)
    assert (other.status, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert [event.message for event in statuses(gateway)[before:]] == ["out of memory"]
    later = (await ask(gateway, f"{path}/attempts", {})).json()["api_key"]
    second = await ask(gateway, f"{path}/status", {"kind": "finished"}, later, **key)
    assert (second.status, second.json()["attempt"]) == (201, 1)


async def test_statuses_do_not_make_a_gateway_without_redis_forget_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryStore.__init__, "__defaults__", (3,))
    async with in_process(tmp_path) as gateway:
        [grant] = (await declare(gateway, max_attempts=2))["rollouts"]
        path = f"/v1/rollouts/{grant['rollout_id']}"
        for number in range(5):
            key = {"idempotency-key": str(number)}
            body = {"kind": "heartbeat"}
            sent = await ask(gateway, f"{path}/status", body, grant["api_key"], **key)
            assert sent.status == 201
        assert (await ask(gateway, f"{path}/attempts", {})).status == 201


async def test_a_repeated_reward_is_the_same_with_and_without_allow_unknown(
    gateway: InProcess,
) -> None:
    [grant] = (await declare(gateway))["rollouts"]
    body = {"rollout_id": grant["rollout_id"], "value": 1}
    key = {"idempotency-key": "k"}
    first = await ask(gateway, "/v1/rewards", body, **key)
    again = await ask(gateway, "/v1/rewards", {**body, "allow_unknown": True}, **key)
    assert (first.status, again.json()) == (201, first.json())
