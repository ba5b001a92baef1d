"""What coding agents say of themselves: which headers and keys are read, and what of them is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.gateway.identity.harnesses import Harnesses, HarnessIdentity
from services.gateway.settings import HARNESSES, GatewaySettings, HarnessSpec

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "harnesses.md"
KNOWN = Harnesses(HARNESSES)
THREAD = "0199a213-81c0-7800-8aa1-bbab2a035a53"
CHILD = "0199a213-81c0-7800-8aa1-bbab2a035a54"


def read(**headers: str) -> HarnessIdentity | None:
    return KNOWN.in_headers(
        {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    )


@pytest.mark.parametrize(
    ("headers", "identity"),
    [
        ({"x_claude_code_session_id": "s"}, HarnessIdentity("claude-code:s")),
        (
            {"x_claude_code_session_id": "s", "x_claude_code_agent_id": "a1"},
            HarnessIdentity("claude-code:s", "a1"),
        ),
        (
            {
                "x_claude_code_session_id": "s",
                "x_claude_code_agent_id": "a2",
                "x_claude_code_parent_agent_id": "a1",
            },
            HarnessIdentity("claude-code:s", "a2", "a1"),
        ),
        ({"session_id": THREAD, "thread_id": THREAD}, HarnessIdentity(f"codex:{THREAD}")),
        (
            {"session_id": THREAD, "thread_id": CHILD, "x_codex_parent_thread_id": THREAD},
            HarnessIdentity(f"codex:{THREAD}", CHILD, THREAD),
        ),
        ({"x_session_affinity": "ses_1"}, HarnessIdentity("opencode:ses_1")),
        (
            {"x_session_affinity": "ses_2", "x_parent_session_id": "ses_1"},
            HarnessIdentity("opencode:ses_1", "ses_2", "ses_1"),
        ),
        ({"x_claude_code_session_id": " s "}, HarnessIdentity("claude-code:s")),
        ({"x_claude_code_session_id": " ", "session_id": "t"}, HarnessIdentity("codex:t")),
        ({"x_claude_code_session_id": "s" * 257}, None),
        (
            {"x_claude_code_session_id": "s", "x_claude_code_agent_id": "a" * 257},
            HarnessIdentity("claude-code:s"),
        ),
        ({"x_claude_code_agent_id": "a1"}, None),
        ({"x_session_id": "s", "thread_id": "t"}, None),
        ({}, None),
    ],
)
def test_headers(headers: dict[str, str], identity: HarnessIdentity | None) -> None:
    assert read(**headers) == identity


def test_codex_of_before_wrote_its_header_with_an_underscore() -> None:
    assert KNOWN.in_headers({b"session_id": b"t"}) == HarnessIdentity("codex:t")


@pytest.mark.parametrize(
    ("key", "session"),
    [
        (THREAD, f"codex:{THREAD}"),
        ("ses_5Gq1", "opencode:ses_5Gq1"),
        ("my-app-v1", None),
        (f"{THREAD}-and-more", None),
        ("ses_" + "x" * 300, None),
        ("", None),
        (7, None),
        (None, None),
    ],
)
def test_a_prompt_cache_key_is_a_session_only_in_the_form_of_one(
    key: object, session: str | None
) -> None:
    found = KNOWN.in_body({"prompt_cache_key": key})
    assert found == (None if session is None else HarnessIdentity(session))


def test_nothing_is_read_where_the_table_is_empty() -> None:
    off = Harnesses(GatewaySettings.model_validate({"harnesses": {}}).harnesses)
    assert off.in_headers({b"session-id": THREAD.encode()}) is None
    assert off.in_body({"prompt_cache_key": THREAD}) is None


def test_another_harness_is_a_line_in_the_table() -> None:
    mine = Harnesses({"mine": HarnessSpec(session=("X-Run",), agent="X-Who")})
    headers = {b"x-run": b"7", b"x-who": b"critic"}
    assert mine.in_headers(headers) == HarnessIdentity("mine:7", "critic")
    assert mine.in_body({"prompt_cache_key": THREAD}) is None


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"cache_key": "("}, "is not a regular expression"),
        ({"sessions": ["x-run"]}, "Extra inputs are not permitted"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused(spec: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        GatewaySettings.model_validate({"harnesses": {"mine": spec}})


def test_the_page_has_the_table_that_is_read() -> None:
    blocks = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert {name: HarnessSpec(**spec) for name, spec in json.loads(blocks[0]).items()} == HARNESSES
