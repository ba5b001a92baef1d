"""Prompt versions on a real log: `fulgurite prompts`, a gateway that follows it, and what is shown of
the calls that it served.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fulgurite.enums import ApplyOutcome
from fulgurite.events import PolicyApplied
from fulgurite.prompts.history import EFFECT_DELAY_MS
from fulgurite.topics import POLICY_APPLIED, PROMPT_UPDATES
from services.cli.main import app
from services.cli.tuning import PromptTopic
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.producer import EventProducer
from services.common.kafka.settings import KafkaSettings
from services.local_stack.kafka_local import LocalKafka
from services.tuner.tuning_log import TuningLog
from tests.integration.gateway_process import ADMIN, PLAIN, Gateway, kafka_settings, running_gateway
from tests.integration.stub_upstream import Stub

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "/v1/chat/completions"
OLD = {"role": "system", "content": "Old. <rules>none</rules>"}
USER = {"role": "user", "content": "hi"}


class Command:
    """`fulgurite` on this test's topics and gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._environment = {
            "KAFKA_BOOTSTRAP_SERVERS": gateway.kafka.bootstrap_servers,
            "FULGURITE_TOPIC_PREFIX": gateway.kafka.topic_prefix,
            "FULGURITE_GATEWAY_URL": gateway.url,
            "FULGURITE_ADMIN_KEY": ADMIN,
        }

    async def __call__(self, *words: str, exit_code: int = 0) -> str:
        done = await asyncio.to_thread(CliRunner().invoke, app, list(words), env=self._environment)
        assert done.exit_code == exit_code, done.output
        return " ".join(done.output.split())

    async def in_force(self, *words: str) -> None:
        """Run the command, and return once rollouts that begin have its version."""
        await self(*words)
        await asyncio.sleep(EFFECT_DELAY_MS / 1000 + 0.1)


async def ask(gateway: Gateway, key: str = PLAIN, **headers: str) -> tuple[str | None, str]:
    """The prompt version and the rollout that a reply names."""
    body = {"model": "policy", "messages": [OLD, USER]}
    async with gateway.post(CHAT, body, key, **headers) as response:
        assert response.status == 200, await response.text()
        return response.headers.get("x-fulgurite-prompt"), response.headers[
            "x-fulgurite-rollout-id"
        ]


def systems(stub: Stub) -> list[Any]:
    return [request["messages"][0]["content"] for request in stub.requests]


async def test_a_version_reaches_calls_and_is_shown_as_served(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, stub: Stub
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    system, rules = tmp_path / "system.txt", tmp_path / "rules.txt"
    system.write_text("New.\n")
    rules.write_text("be brief")
    async with running_gateway(settings, stub.url, tmp_path) as gateway:
        command = Command(gateway)
        stub.reset()
        assert "no prompt versions" in await command("prompts", "list")
        group = await gateway.declare(n=2, task={}, mode="train", alias="policy")
        early, late = (rollout["api_key"] for rollout in group["rollouts"])
        assert (await ask(gateway, early))[0] is None

        set_prompt = ("prompts", "set", "--alias", "policy")
        await command("prompts", "set", "--alias", "polisy", "--system", str(system), exit_code=1)
        await command.in_force(*set_prompt, "--section", f"rules={rules}", "--reason", "shorter")
        version, first = await ask(gateway)
        assert version == "prompt@1"
        assert (await ask(gateway, late))[0] is None, "its group was declared before"
        await command.in_force(*set_prompt, "--system", str(system))
        assert (await ask(gateway, x_fulgurite_rollout="mine"))[0] == "prompt@2"
        assert "says the same" in await command(*set_prompt, "--system", str(system), exit_code=1)
        await command.in_force("prompts", "rollback", "--alias", "policy", "--reason", "worse")
        assert (await ask(gateway, x_fulgurite_rollout="mine"))[0] == "prompt@2", "it began with it"
        assert (await ask(gateway, x_fulgurite_rollout="other"))[0] == "prompt@1"

        filled = "Old. <rules>\nbe brief\n</rules>"
        assert systems(stub) == [OLD["content"], filled, OLD["content"], "New.", "New.", filled]
        (call,) = await gateway.calls(first)
        assert call.prompt_version == "prompt@1"
        assert json.loads(call.request or "")["messages"] == [OLD, USER]

        assert "be brief" in await command("rollouts", "show", first, "--whole")
        assert "prompt@1" in await command("rollouts", "show", first)
        assert "be brief" not in await command("rollouts", "show", first, "--as-sent", "--whole")
        shown = json.loads(await command("prompts", "list", "--json"))
        assert [(one["version"], one["in_force"], one["parent"]) for one in shown] == [
            ("prompt@1", True, None),
            ("prompt@2", False, "prompt@1"),
        ]
        assert "shorter" in await command("prompts", "show", "--alias", "policy")
        assert "-- system prompt New." in await command(
            "prompts", "show", "--alias", "policy", "prompt@2"
        )
        changed = await command("prompts", "diff", "--alias", "policy", "prompt@1", "prompt@2")
        assert "-be brief" in changed
        assert "+New." in changed
        await wrong_inputs(command)
        # A gateway that starts reads all versions before it is ready.
        async with running_gateway(settings, stub.url, tmp_path, make_topics=False) as second:
            await ready(second)
            assert (await ask(second))[0] == "prompt@1"
        await command("prompts", "rollback", "--alias", "policy", "--to", "none")
        events = await asyncio.to_thread(
            lambda: [r.event for r in read_all(settings, PROMPT_UPDATES, make_codec())]
        )
        assert [(str(e.kind), e.version, e.parent) for e in events] == [  # pyright: ignore
            ("set", "prompt@1", None),
            ("set", "prompt@2", "prompt@1"),
            ("rollback", "prompt@1", "prompt@2"),
            ("rollback", None, "prompt@1"),
        ]


async def wrong_inputs(command: Command) -> None:
    """Each ends with 1 and says what there is."""
    wrong = [
        (("list", "--alias", "other"), "versions are set for: policy"),
        (("show", "--alias", "other"), "no version is in force"),
        (("show", "--alias", "policy", "--role", "critic"), "policy as critic"),
        (("show", "--alias", "policy", "prompt@9"), "its versions are: prompt@1, prompt@2"),
        (("show", "--alias", "policy", "2"), "its versions are"),
        (("diff", "--alias", "policy", "prompt@1", "prompt@9"), "its versions are"),
        (("diff", "--alias", "other", "none"), "versions are set for: policy"),
        (("rollback", "--alias", "other"), "ever set for other"),
        (("rollback", "--alias", "policy", "--to", "prompt@9"), "its versions are"),
        (("rollback", "--alias", "policy", "--to", "prompt@1"), "in force already"),
        (("rollback", "--alias", "policy", "--role", "critic"), "policy as critic"),
    ]
    for words, error in wrong:
        assert error in await command("prompts", *words, exit_code=1), words
    assert "say the same" in await command("prompts", "diff", "--alias", "policy", "none", "none")


async def ready(gateway: Gateway) -> None:
    """Return once the gateway has read the versions."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        _, report = await gateway.get("/readyz")
        if report["prompts"]["read"]:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the gateway does not read prompt.updates")


async def write_both(command: Command, settings: KafkaSettings, folder: Path) -> None:
    """Put `prompt@1` in force, and write the candidate `prompt@2`."""
    system = folder / "system.txt"
    system.write_text("New.")
    await command.in_force("prompts", "set", "--alias", "policy", "--system", str(system))
    await asyncio.to_thread(write_candidate, settings)


async def test_a_candidate_is_served_only_where_a_rollout_names_it(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, stub: Stub
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_gateway(settings, stub.url, tmp_path) as gateway:
        command = Command(gateway)
        stub.reset()
        await write_both(command, settings, tmp_path)
        named = await gateway.declare(
            n=2, alias="policy", prompt_version="prompt@2", max_attempts=2
        )
        plain = await gateway.declare(n=1, alias="policy")
        as_sent = await gateway.declare(n=1, alias="policy", prompt_version="none")
        first, second = named["rollouts"]
        path = f"/v1/rollouts/{second['rollout_id']}/attempts"
        _, again = await gateway.json(path, {}, ADMIN)
        keys = [first["api_key"], again["api_key"], plain["rollouts"][0]["api_key"], PLAIN]
        keys.append(as_sent["rollouts"][0]["api_key"])
        versions = [(await ask(gateway, key))[0] for key in keys]
        assert versions == ["prompt@2", "prompt@2", "prompt@1", "prompt@1", None]
        assert systems(stub) == ["Candidate.", "Candidate.", "New.", "New.", OLD["content"]]
        [declared] = await gateway.statuses(named["group_id"])
        assert declared.declaration is not None
        assert declared.declaration.prompt_version == "prompt@2"
        assert (await gateway.call(first["rollout_id"])).prompt_version == "prompt@2"

        for fields, status, code in (
            ({"prompt_version": "prompt@9"}, 404, "unknown_prompt_version"),
            ({"prompt_version": "2"}, 404, "unknown_prompt_version"),
            ({"prompt_version": "prompt@1", "alias": "policy@0.0"}, 404, "model_not_found"),
            ({"prompt_version": "prompt@2", "served_by": "policy"}, 400, None),
            ({"prompt_version": ""}, 400, None),
        ):
            found, reply = await gateway.json("/v1/rollouts", fields, ADMIN)
            assert (found, reply["error"]["code"] if code else None) == (status, code), reply
        _, reply = await gateway.json("/v1/rollouts", {"prompt_version": "prompt@9"}, ADMIN)
        assert "it has: none, prompt@1, prompt@2" in reply["error"]["message"]

        listed = await command("prompts", "list", "--alias", "policy")
        assert "where named" in listed
        error = await command("prompts", "promote", "--alias", "policy", "prompt@9", exit_code=1)
        assert "its versions are: prompt@1, prompt@2" in error
        await command.in_force("prompts", "promote", "--alias", "policy", "prompt@2")
        error = await command("prompts", "promote", "--alias", "policy", "prompt@2", exit_code=1)
        assert "in force already" in error
        assert (await ask(gateway, x_fulgurite_rollout="new"))[0] == "prompt@2"
        await command.in_force("prompts", "rollback", "--alias", "policy")
        assert (await ask(gateway, x_fulgurite_rollout="newer"))[0] == "prompt@1"


async def test_a_route_gives_a_version_to_a_share_of_the_rollouts(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, stub: Stub
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_gateway(settings, stub.url, tmp_path) as gateway:
        command = Command(gateway)
        await write_both(command, settings, tmp_path)
        setting = ("routes", "set", "--wait", "0", "policy")
        error = await command(*setting, "policy", "policy,prompt@9=1", exit_code=1)
        assert "has no prompt@9; its prompt versions are: prompt@1, prompt@2" in error
        targets = ("policy=1", "policy,prompt@none=1", "policy,prompt@2=1")
        assert "policy,prompt@2 (newest)=1" in await command(*setting, *targets)
        deadline = time.monotonic() + 60
        seen: dict[str, set[str | None]] = {}
        while len(seen) < 3 and time.monotonic() < deadline:
            prompt, rollout = await ask(
                gateway, x_fulgurite_rollout=f"session {len(stub.requests)}"
            )
            (call,) = await gateway.calls(rollout)
            if call.variant is not None:
                seen.setdefault(call.variant, set()).add(prompt)
        assert seen == {
            "policy": {"prompt@1"},
            "policy,prompt@none": {None},
            "policy,prompt@2": {"prompt@2"},
        }


async def test_a_version_that_answers_in_place_of_an_alias_gets_the_alias_s_prompt(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path, stub: Stub
) -> None:
    settings = kafka_settings(kafka.bootstrap_servers, topic_prefix)
    async with running_gateway(settings, stub.url, tmp_path) as gateway:
        stub.reset()
        applied = PolicyApplied(
            event_id="a", event_time=1, policy="policy", backend="vllm", engine_id="e",
            version="policy@1.4", outcome=ApplyOutcome.applied, seconds=0.1,
        )  # fmt: skip
        producer = EventProducer(settings, make_codec(), "test")
        await producer.publish(POLICY_APPLIED, "policy", applied)
        producer.close()
        system = tmp_path / "system.txt"
        system.write_text("New.")
        await Command(gateway).in_force(
            "prompts", "set", "--alias", "policy", "--system", str(system)
        )
        group = await gateway.declare(served_by="policy@1.4", alias="policy", mode="val")
        assert (await ask(gateway, group["rollouts"][0]["api_key"]))[0] == "prompt@1"
        assert systems(stub) == ["New."]


def write_candidate(settings: KafkaSettings) -> None:
    """As a tuning does."""
    with PromptTopic(settings) as topic:
        log = TuningLog("policy", None, "t", "me", topic.read, topic.publish)
        written = log.write_candidate({"system": "Candidate."}, parent=None, reason="")
    assert written.version == "prompt@2"
