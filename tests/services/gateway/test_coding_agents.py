"""Calls of coding agents, from the request to the event: each session is one rollout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulgurite.enums import Identity, Mode
from fulgurite.events import LlmCall
from tests.services.gateway.answering import KEY, OTHER_KEY, REPLY, Gateway

THREAD = "0199a213-81c0-7800-8aa1-bbab2a035a53"


async def asked(
    gateway: Gateway,
    text: str,
    asked_with: Mapping[str, str] | None = None,
    key: str = KEY,
    **body: Any,
) -> LlmCall:
    answer = await gateway.answer(
        "/v1/chat/completions",
        [REPLY],
        asked_with=asked_with,
        key=key,
        model="odd",
        messages=[{"role": "user", "content": text}],
        **body,
    )
    assert answer.headers["x-fulgurite-rollout-id"] == answer.call.rollout_id
    return answer.call


async def test_a_session_of_a_main_agent_and_a_sub_agent_is_one_rollout(gateway: Gateway) -> None:
    session = {"x-claude-code-session-id": "s"}
    main = await asked(gateway, "fix it", session)
    child = await asked(
        gateway,
        "look around",
        session | {"x-claude-code-agent-id": "a2", "x-claude-code-parent-agent-id": "a1"},
    )
    assert (main.identity, main.mode, main.agent, main.parent_agent) == (
        Identity.inferred,
        Mode.live,
        "",
        None,
    )
    assert (child.rollout_id, child.agent, child.parent_agent) == (main.rollout_id, "a2", "a1")
    theirs = await asked(gateway, "fix it", session, OTHER_KEY)
    assert theirs.rollout_id != main.rollout_id
    assert theirs.group_id != main.group_id


async def test_a_prompt_cache_key_counts_where_no_header_names_the_session(
    gateway: Gateway,
) -> None:
    by_header = await asked(gateway, "a", {"session-id": THREAD})
    by_key = await asked(gateway, "b", prompt_cache_key=THREAD)
    assert by_key.rollout_id == by_header.rollout_id
    both = await asked(gateway, "c", {"session-id": "other"}, prompt_cache_key=THREAD)
    assert both.rollout_id != by_header.rollout_id
    for text in "de":
        app = await asked(gateway, text, prompt_cache_key="my-app-v1")
        assert app.identity is Identity.none


async def test_a_refused_call_of_a_session_is_recorded_in_it(gateway: Gateway) -> None:
    session = {"x-session-affinity": "ses_1"}
    main = await asked(gateway, "a", session)
    refused = await gateway.answer(
        "/v1/chat/completions", [], asked_with=session, model="nobody", messages=[]
    )
    assert (refused.status, refused.call.rollout_id) == (404, main.rollout_id)
