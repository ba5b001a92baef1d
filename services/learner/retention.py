"""Decides which versions keep their weights on disk, and removes those of the others.

Kept are the newest `publish.keep`, the versions that routes name (with a share of 0 as well), and
those that a rollback would return to. Checkpoints need no version's weights.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from fulgurite.events import PolicyRoute, RouteTarget
from fulgurite.versions import MalformedVersion, Version, parse_version


def routed(routes: Iterable[PolicyRoute]) -> set[Version]:
    """The versions that the routes in force name."""
    return set(_named(target for route in routes for target in route.targets))


def rollback_targets(routes: Iterable[PolicyRoute]) -> set[Version]:
    """The versions that routes named before: `fulgurite policy rollback` returns to them."""
    return set(_named(target for route in routes for target in route.previous))


def stored(folder: Path, policy: str) -> list[Version]:
    """The versions of a policy whose folders are in `folder`, the newest last."""
    found: list[Version] = []
    for path in folder.glob("[0-9]*.[0-9]*"):
        with contextlib.suppress(MalformedVersion):
            found.append(parse_version(f"{policy}@{path.name}"))
    return sorted(found)


def prune(folder: Path, policy: str, keep: int, routes: Iterable[PolicyRoute]) -> list[Version]:
    """Remove the folders of versions that nothing keeps; returns these versions."""
    in_force = list(routes)
    protected = routed(in_force) | rollback_targets(in_force)
    removed = [version for version in stored(folder, policy)[:-keep] if version not in protected]
    for version in removed:
        # Renamed first: a folder of this name is always complete.
        gone = folder / f".{version.epoch}.{version.step}.part"
        (folder / f"{version.epoch}.{version.step}").rename(gone)
        shutil.rmtree(gone)
    return removed


def _named(targets: Iterable[RouteTarget]) -> Iterator[Version]:
    for target in targets:
        if target.version is not None:
            # An operator's typing error must not stop the learner.
            with contextlib.suppress(MalformedVersion):
                yield parse_version(target.version)
