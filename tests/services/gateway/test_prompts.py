"""Calls with a prompt version, from the request to the event: the model gets what is served, the log
has what was sent and the version.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from fulgurite.events import PromptUpdate
from fulgurite.prompts.history import EFFECT_DELAY_MS
from tests.fulgurite.prompts.prompt_updates import version
from tests.services.gateway.answering import REPLY, Answer, Gateway

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}
OLD = {"role": "system", "content": "Old."}
SESSION = {"x-fulgurite-rollout": "my session"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def in_force(number: int, **fields: Any) -> PromptUpdate:
    """A version that every rollout from now on has."""
    return version(number, alias="odd", at=now_ms() - 10_000, **fields)


async def ask(gateway: Gateway, *messages: Any, **more: Any) -> Answer:
    answer = await gateway.answer(
        CHAT, [REPLY], model="odd", messages=list(messages) or [OLD, USER], **more
    )
    assert answer.status == 200
    return answer


async def test_the_model_gets_what_is_served_and_the_log_what_was_sent(gateway: Gateway) -> None:
    gateway.prompts.apply(in_force(1, system="New."))
    answer = await ask(gateway)
    assert gateway.upstream.asked[-1][1]["messages"] == [
        {"role": "system", "content": "New."},
        USER,
    ]
    assert json.loads(answer.call.request or "")["messages"] == [OLD, USER]
    assert answer.call.prompt_version == answer.headers["x-fulgurite-prompt"] == "prompt@1"


async def test_without_a_version_nothing_changes(gateway: Gateway) -> None:
    gateway.prompts.apply(version(1, alias="another", system="New."))
    answer = await ask(gateway)
    assert gateway.upstream.asked[-1][1]["messages"] == [OLD, USER]
    assert answer.call.prompt_version is None
    assert "x-fulgurite-prompt" not in answer.headers


async def test_what_a_version_does_not_fit_is_served_as_it_was_sent(gateway: Gateway) -> None:
    gateway.prompts.apply(in_force(1, sections={"rules": "new"}))
    answer = await ask(gateway)
    assert gateway.upstream.asked[-1][1]["messages"] == [OLD, USER]
    assert answer.call.prompt_version is None


async def test_a_role_has_its_own_version(gateway: Gateway) -> None:
    gateway.prompts.apply(in_force(1, system="All."))
    gateway.prompts.apply(in_force(2, system="Critic.", role="critic"))
    as_critic = await ask(gateway, asked_with={"x-fulgurite-agent": "critic"})
    as_writer = await ask(gateway, asked_with={"x-fulgurite-agent": "writer"})
    assert (as_critic.call.prompt_version, as_writer.call.prompt_version) == (
        "prompt@2",
        "prompt@1",
    )


async def test_a_conversation_is_recognised_by_what_the_agent_sends(gateway: Gateway) -> None:
    gateway.prompts.apply(in_force(1, system="New."))
    first = await ask(gateway)
    # A version that comes later is for later rollouts.
    gateway.prompts.apply(version(2, alias="odd", at=now_ms(), system="Newer."))
    answered = {"role": "assistant", "content": "hi"}
    second = await ask(gateway, OLD, USER, answered, {"role": "user", "content": "go on"})
    assert second.call.rollout_id == first.call.rollout_id
    assert gateway.upstream.asked[-1][1]["messages"][0] == {"role": "system", "content": "New."}
    assert second.call.prompt_version == "prompt@1"


async def test_a_named_session_keeps_the_version_that_it_began_with(gateway: Gateway) -> None:
    gateway.prompts.apply(in_force(1, system="New."))
    first = await ask(gateway, asked_with=SESSION)
    # Rollouts that begin now have the newer one, which is as old as it must be.
    gateway.prompts.apply(
        version(2, alias="odd", at=now_ms() - EFFECT_DELAY_MS + 1, system="Newer.")
    )
    second = await ask(gateway, asked_with=SESSION)
    assert first.call.rollout_id == second.call.rollout_id
    assert first.call.prompt_version == second.call.prompt_version == "prompt@1"
    while now_ms() == second.call.started_at:
        pass
    assert (await ask(gateway, USER)).call.prompt_version == "prompt@2"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
async def test_an_api_without_messages_passes(gateway: Gateway, path: str) -> None:
    gateway.prompts.apply(in_force(1, system="New."))
    answer = await gateway.answer(path, [b"{}"], model="odd", prompt="hi", input="hi")
    assert answer.call.prompt_version is None
    assert gateway.upstream.asked[-1][1]["prompt"] == "hi"


async def test_a_refused_call_was_not_served(gateway: Gateway) -> None:
    gateway.prompts.apply(in_force(1, system="New."))
    answer = await gateway.answer(CHAT, [REPLY], model="odd", messages="none")
    assert answer.status == 400
    assert answer.call.prompt_version is None
