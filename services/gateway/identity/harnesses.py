"""Reads what coding agents say of themselves: their session, the agent in it that calls, and the
agent that started that one (docs/reference/harnesses.md).

None of it is a credential. A session is a name that its key's owner gave, like
`x-fulgurite-rollout`; what cannot be such a name is ignored, never refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from fulgurite.untrusted_json import Json
from services.gateway.settings import HarnessSpec

_LONGEST_NAME = 256

Headers = Mapping[bytes, bytes]
"""By lower-case name."""


class HarnessIdentity(msgspec.Struct, frozen=True):
    """A call as its agent names it."""

    session: str
    """Name of the harness, a colon and its session: no other harness has it, nor has any id."""
    agent: str = ""
    """Empty for the session's main agent."""
    parent_agent: str | None = None


class Harnesses:
    """The harnesses that are read."""

    def __init__(self, specs: Mapping[str, HarnessSpec]) -> None:
        """`specs`: name of the harness → where it names what, in the order in which they are
        tried.
        """
        self._harnesses = [_Harness(name, spec) for name, spec in specs.items()]

    def in_headers(self, headers: Headers) -> HarnessIdentity | None:
        """What the first harness whose session is in the headers says there."""
        found = (harness.in_headers(headers) for harness in self._harnesses)
        return next((identity for identity in found if identity is not None), None)

    def in_body(self, body: Json) -> HarnessIdentity | None:
        """The session of the first harness whose pattern the body's `prompt_cache_key` has."""
        key = _name(body.get("prompt_cache_key"))
        if key is None:
            return None
        return next(
            (
                HarnessIdentity(f"{harness.name}:{key}")
                for harness in self._harnesses
                if harness.cache_key is not None and harness.cache_key.fullmatch(key)
            ),
            None,
        )


class _Harness:
    """One harness."""

    def __init__(self, name: str, spec: HarnessSpec) -> None:
        self.name = name
        self.cache_key = None if spec.cache_key is None else re.compile(spec.cache_key)
        self._session = [_bytes(header) for header in spec.session]
        self._agent = _bytes(spec.agent)
        self._parent_agent = _bytes(spec.parent_agent)

    def in_headers(self, headers: Headers) -> HarnessIdentity | None:
        named = (_value(headers, header) for header in self._session)
        session = next((value for value in named if value is not None), None)
        if session is None:
            return None
        agent = _value(headers, self._agent)
        return HarnessIdentity(
            f"{self.name}:{session}",
            "" if agent is None or agent == session else agent,
            _value(headers, self._parent_agent),
        )


def _bytes(header: str) -> bytes:
    return header.lower().encode()


def _value(headers: Headers, header: bytes) -> str | None:
    value = headers.get(header)
    return None if value is None else _name(value.decode("latin-1"))


def _name(value: object) -> str | None:
    """The value as a name; None if it cannot be one."""
    name = value.strip() if isinstance(value, str) else ""
    return name if 0 < len(name) <= _LONGEST_NAME else None
