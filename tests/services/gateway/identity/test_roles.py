"""Roles by system prompt: whatever the API, the first pattern that fits."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.identity.roles import Roles, role_aliases
from services.gateway.settings import RoleSpec

ROLES = Roles(
    {
        "gpt": {
            "checker": RoleSpec(pattern=r"^You check|\bverdict\b", alias="checker"),
            "writer": RoleSpec(pattern="(?i)you (write|check)"),
            "planner": RoleSpec(alias="planner"),
        }
    }
)


def chat(*contents: Any, role: str = "system") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for content in contents]}


@pytest.mark.parametrize(
    ("body", "api", "role"),
    [
        (chat("You check queries."), "chat.completions", "checker"),
        (chat("you check queries."), "chat.completions", "writer"),
        (chat("You write. You check."), "chat.completions", "writer"),
        (chat("Be brief.", "Give a verdict."), "chat.completions", "checker"),
        (chat("You check.", role="developer"), "chat.completions", "checker"),
        (chat("You check.", role="user"), "chat.completions", None),
        (
            chat([{"type": "text", "text": "You "}, {"type": "text", "text": "check."}]),
            "chat.completions",
            "checker",
        ),
        (chat(None, 7, {"text": "You check"}), "chat.completions", None),
        (chat(), "chat.completions", None),
        ({"messages": "You check"}, "chat.completions", None),
        ({"instructions": "You check.", "input": "hi"}, "responses", "checker"),
        ({"input": [{"role": "developer", "content": "You check."}]}, "responses", "checker"),
        ({"system": "You check.", "messages": []}, "messages", "checker"),
        (
            {"system": [{"type": "text", "text": "You check."}], "messages": []},
            "messages",
            "checker",
        ),
        ({"prompt": "You check."}, "completions", None),
        ({"input": "You check."}, "embeddings", None),
        (chat("x" * 20_000 + " verdict"), "chat.completions", None),
    ],
)
def test_the_first_pattern_in_the_system_prompt_names_the_role(
    body: dict[str, Any], api: str, role: str | None
) -> None:
    assert ROLES.recognised("gpt", body, api) == role
    assert ROLES.recognised("other", body, api) is None


def test_a_role_is_answered_by_its_alias_however_it_was_named() -> None:
    assert ROLES.alias_of("gpt", "checker") == "checker"
    assert ROLES.alias_of("gpt", "planner") == "planner"
    assert ROLES.alias_of("gpt", "writer") == "gpt"
    assert ROLES.alias_of("other", "checker") == "other"


@pytest.mark.parametrize(
    ("policies", "roles"),
    [
        ({"policy": "policy"}, []),
        ({"policy": "policy", "critic": "policy", "gpt-4o": None}, ["critic"]),
        ({"writer": "writer", "critic": "critic"}, ["writer", "critic"]),
    ],
)
def test_an_alias_is_a_role_unless_it_is_the_only_policy_s_name(
    policies: dict[str, str | None], roles: list[str]
) -> None:
    assert role_aliases(policies) == {role: role for role in roles}
