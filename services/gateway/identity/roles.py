"""Tells the roles of an agent apart by their system prompts, and gives each an alias of its own.

An agent that nobody changed may ask for one model in all its roles. `FULGURITE_ROLES` describes
them, and each can then be recorded, paid and trained by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fulgurite.calls.transcript import LONGEST_SEARCHED, messages_in, system_prompt
from fulgurite.untrusted_json import Json
from services.gateway.settings import RoleSpec


class Roles:
    """The roles of the agents behind each alias."""

    def __init__(self, specs: Mapping[str, Mapping[str, RoleSpec]]) -> None:
        """`specs`: alias → role → its spec."""
        self._patterns = {
            alias: [
                (role, re.compile(spec.pattern)) for role, spec in roles.items() if spec.pattern
            ]
            for alias, roles in specs.items()
        }
        self._aliases = {
            (alias, role): spec.alias
            for alias, roles in specs.items()
            for role, spec in roles.items()
            if spec.alias
        }

    def recognised(self, alias: str, body: Json, api: str) -> str | None:
        """The first role whose pattern is found in the system prompt of a request."""
        patterns = self._patterns.get(alias)
        if not patterns:
            return None
        prompt = system_prompt(messages_in(body, api))[:LONGEST_SEARCHED]
        return next((role for role, pattern in patterns if pattern.search(prompt)), None)

    def alias_of(self, alias: str, role: str) -> str:
        """The alias that answers a role's calls: its own or, without one, what was asked for."""
        return self._aliases.get((alias, role), alias)


def role_aliases(policies: Mapping[str, str | None]) -> dict[str, str]:
    """The aliases that are an agent's role, each with that role: all but the name of the only
    policy. `policies`: alias → policy, None where nothing is trained.
    """
    trained = {alias: policy for alias, policy in policies.items() if policy is not None}
    several = len(set(trained.values())) > 1
    return {alias: alias for alias, policy in trained.items() if several or alias != policy}
