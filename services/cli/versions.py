"""Describes published versions: when, from what, how good, whether their weights are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from fulgurite.events import PolicyRoute, PolicyUpdate
from fulgurite.versions import Version, parse_version
from services.common.policies.route_targets import BadTarget, Published, weights_path
from services.learner.retention import rollback_targets


class Listed(msgspec.Struct, frozen=True):
    """One version, as `fulgurite policy list` shows it."""

    version: str
    published_at: int
    """Unix milliseconds."""
    parent: str | None
    trained_actions: int
    metrics: Mapping[str, float]
    format: str | None
    """`full` or `lora`."""
    size: int | None
    """Bytes of the weights."""
    weights: str
    """`here`, `removed`, or `elsewhere` if this machine cannot see where they were written."""
    routed: Mapping[str, float]
    """Share of each alias whose route names it."""
    rollback_target: bool
    """Whether a rollback of a route would return to it."""


def listed(published: Published, routes: Iterable[PolicyRoute], policy: str) -> list[Listed]:
    """The versions of a policy, the oldest first. Raises BadTarget for an unknown policy."""
    known = published.folds.get(policy)
    if known is None:
        raise BadTarget(
            f"there is no policy {policy!r} in policy.updates; it has "
            f"{', '.join(sorted(published.folds)) or 'none'}"
        )
    in_force = list(routes)
    before = rollback_targets(in_force)
    return [
        Listed(
            version=str(version),
            published_at=update.event_time,
            parent=update.parent_version,
            trained_actions=update.trained_actions,
            metrics=update.metrics,
            format=update.artifact.format.value if update.artifact else None,
            size=update.artifact.size if update.artifact else None,
            weights=where_weights_are(update),
            routed=shares(in_force, version),
            rollback_target=version in before,
        )
        for version, update in sorted(known.updates.items())
    ]


def shares(routes: Iterable[PolicyRoute], version: Version) -> dict[str, float]:
    """The share of each alias whose route names a version, from 0 to 1."""
    found: dict[str, float] = {}
    for route in routes:
        total = sum(target.weight for target in route.targets)
        for target in route.targets:
            if target.version == str(version):
                found[route.alias] = target.weight / total if total else 0.0
    return found


def where_weights_are(update: PolicyUpdate) -> str:
    """`here`, `removed`, or `elsewhere` if this machine cannot tell."""
    path = weights_path(update)
    if path is not None and path.is_file():
        return "here"
    return "removed" if path is not None and path.parent.parent.is_dir() else "elsewhere"


def named_version(published: Published, text: str) -> Version:
    """Parse `policy@epoch.step`, or a policy's name for its newest version. Raises BadTarget,
    MalformedVersion.
    """
    if "@" in text:
        return parse_version(text)
    if text not in published.folds:
        raise BadTarget(
            f"{text!r} is neither a version such as policy@1.7 nor a policy; the policies are: "
            f"{', '.join(sorted(published.folds)) or 'none has a learner yet'}"
        )
    return published.folds[text].version()
