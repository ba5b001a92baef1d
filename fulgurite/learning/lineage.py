"""Tells which versions a version descends from.

A learner that goes on from an older checkpoint opens another branch: what the versions after that
checkpoint generated is no policy that the new ones come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fulgurite.enums import UpdateKind
from fulgurite.events import PolicyUpdate
from fulgurite.versions import Version, parse_version

Lineage = Mapping[int, int]
"""By epoch, the last step that is an ancestor of a version, or the version itself."""


def lineage_of(version: Version, updates: Iterable[PolicyUpdate]) -> dict[int, int]:
    """Follow the parents of a version through its policy's updates, in any order."""
    parents = {
        update.version: update.parent_version
        for update in updates
        if update.kind is UpdateKind.update
    }
    found: dict[int, int] = {}
    name: str | None = str(version)
    while name is not None:
        ancestor = parse_version(name)
        found.setdefault(ancestor.epoch, ancestor.step)
        # Taken out, so that a log in which versions are their own ancestors ends, too.
        name = parents.pop(name, None)
    return found


def descends(lineage: Lineage, version: Version) -> bool:
    """Whether a version is in the lineage."""
    return version.step <= lineage.get(version.epoch, -1)
