"""Folds `prompt.updates`: which versions there are, and which one is in force for a rollout.

The first event of an alias's version wins; a later one with the same number is ignored. Events that
are read twice change nothing. A candidate is in force only for rollouts that name it.
"""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from fulgurite.enums import PromptKind
from fulgurite.events import Event, PromptUpdate
from fulgurite.versions import MalformedVersion, parse_prompt_version, prompt_version

EFFECT_DELAY_MS = 2_000
"""A change counts for rollouts that begin this long after it. Gateways have read it by then, so
that no rollout begins with one version and goes on with another.
"""

AS_SENT = "none"
"""Names no version: requests are served as the agent sends them."""

Scope = tuple[str, str | None]
"""Alias, and the role or None."""


class _Change(msgspec.Struct, frozen=True):
    from_ms: int
    """It counts for rollouts that begin at this time or later, Unix milliseconds."""
    event: PromptUpdate
    prompt: PromptUpdate | None
    """The version in force; None: requests are served as they are sent."""


class PromptHistory:
    """The fold. Apply every event of the topic, in log order."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, PromptUpdate]] = {}
        self._changes: dict[Scope, list[_Change]] = {}
        self._seen: set[str] = set()

    def apply(self, event: Event | None) -> None:
        """Apply the next event; others than prompt updates are ignored."""
        if not isinstance(event, PromptUpdate) or event.event_id in self._seen:
            return
        self._seen.add(event.event_id)
        versions = self._versions.setdefault(event.alias, {})
        is_new = event.kind in _NEW and _is_new(event.version, versions)
        if is_new:
            versions[str(event.version)] = event
        if is_new and event.kind is PromptKind.set:
            self._change(event, event)
        elif event.kind is PromptKind.rollback and event.version is None:
            self._change(event, None)
        elif event.kind in _RETURNS and event.version in versions:
            self._change(event, versions[str(event.version)])

    def scopes(self) -> list[Scope]:
        """Aliases and roles that ever had a version, in order."""
        return sorted(self._changes, key=lambda scope: (scope[0], scope[1] or ""))

    def aliases(self) -> list[str]:
        """Aliases with versions, candidates included, in order."""
        return sorted(alias for alias, versions in self._versions.items() if versions)

    def has(self, alias: str) -> bool:
        """Whether the alias ever had a version."""
        return alias in self._versions

    def versions(self, alias: str) -> list[PromptUpdate]:
        """The versions of an alias, oldest first."""
        return list(self._versions.get(alias, {}).values())

    def find(self, alias: str, version: str | None) -> PromptUpdate | None:
        """A version of an alias; None for one that the log does not have."""
        return self._versions.get(alias, {}).get(version or "")

    def next_version(self, alias: str) -> str:
        """The name of the version to come."""
        numbers = map(parse_prompt_version, self._versions.get(alias, {}))
        return prompt_version(max(numbers, default=0) + 1)

    def in_force(
        self, alias: str, role: str, began_at: int, named: str | None = None
    ) -> PromptUpdate | None:
        """The version for calls of a role in a rollout that began then, Unix milliseconds.

        A role without a version of its own has the alias's. `named`: the version that the rollout
        names, or AS_SENT. It counts in its own scope: a role's version for calls of that role, any
        other in place of the alias's.
        """
        own = self._at((alias, role), began_at) if role else None
        prompt = self.find(alias, named)
        if prompt is not None and prompt.role is not None:
            if prompt.role == role:
                return prompt
        elif prompt is not None or named == AS_SENT:
            return own or prompt
        return own or self._at((alias, None), began_at)

    def last_change(self, alias: str, role: str | None) -> PromptUpdate | None:
        """The event that decides what rollouts of this scope get now."""
        changes = self._changes.get((alias, role))
        return changes[-1].event if changes else None

    def current(self, alias: str, role: str | None) -> PromptUpdate | None:
        """The version that the last change put in force."""
        changes = self._changes.get((alias, role))
        return changes[-1].prompt if changes else None

    def _change(self, event: PromptUpdate, prompt: PromptUpdate | None) -> None:
        changes = self._changes.setdefault((event.alias, event.role), [])
        from_ms = event.event_time + EFFECT_DELAY_MS
        # Clocks of writers differ: the order of the log holds.
        if changes:
            from_ms = max(from_ms, changes[-1].from_ms)
        changes.append(_Change(from_ms, event, prompt))

    def _at(self, scope: Scope, time_ms: int) -> PromptUpdate | None:
        changes = self._changes.get(scope, [])
        place = bisect_right(changes, time_ms, key=lambda change: change.from_ms)
        return changes[place - 1].prompt if place else None


_NEW = (PromptKind.set, PromptKind.candidate)
_RETURNS = (PromptKind.rollback, PromptKind.promoted)


def _is_new(version: str | None, versions: dict[str, PromptUpdate]) -> bool:
    try:
        parse_prompt_version(version or "")
    except MalformedVersion:
        return False
    return version not in versions
