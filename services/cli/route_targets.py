"""What an operator may route an alias to: parsed, and checked against the log, the gateway and the
weights on disk before it is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from fulgurite.enums import ArtifactFormat
from fulgurite.events import PolicyUpdate, RouteTarget
from fulgurite.learning.target_version import TargetVersion
from fulgurite.topics import POLICY_UPDATES
from fulgurite.versions import MalformedVersion, Version, base_version, parse_version
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.settings import KafkaSettings

_POLICY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUMBER = re.compile(r"\d+\.\d+")


class BadTarget(ValueError):
    """Not `policy@epoch.step=share` or `policy=share`, or nothing that could be served."""


def parse_targets(texts: Sequence[str]) -> tuple[RouteTarget, ...]:
    """`policy@1.3=0.9`, `policy=0.1` for whatever is newest; a share not given is 1. Raises
    BadTarget.
    """
    targets = tuple(_target(text) for text in texts)
    if not any(target.weight > 0 for target in targets):
        raise BadTarget(
            "at least one target needs a share above 0; `fulgurite routes clear` takes a route back"
        )
    if len({(target.policy, target.version) for target in targets}) < len(targets):
        raise BadTarget("the same target is named twice")
    return targets


def _target(text: str) -> RouteTarget:
    name, equals, share = text.partition("=")
    try:
        weight = float(share) if equals else 1.0
        policy, at, _ = name.partition("@")
        version = str(parse_version(name)) if at else None
    except (ValueError, MalformedVersion) as error:
        raise BadTarget(f"{text!r}: {error}") from error
    if not math.isfinite(weight) or weight < 0 or not _POLICY.fullmatch(policy):
        raise BadTarget(
            f"{text!r} is neither policy@epoch.step=share nor policy=share, with a share of 0 "
            "or more"
        )
    return RouteTarget(policy=policy, version=version, weight=weight)


class Published:
    """What `policy.updates` says of every policy."""

    def __init__(self) -> None:
        self.folds: dict[str, TargetVersion] = {}

    def apply(self, event: object) -> None:
        """Any event of the topic, in log order."""
        if isinstance(event, PolicyUpdate):
            self.folds.setdefault(event.policy, TargetVersion(event.policy)).apply(event)

    def adapters(self) -> frozenset[str]:
        """The policies whose updates are LoRA adapters."""
        kinds = {
            policy: {u.artifact.format for u in fold.updates.values() if u.artifact}
            for policy, fold in self.folds.items()
        }
        return frozenset(
            policy for policy, formats in kinds.items() if ArtifactFormat.lora in formats
        )

    def check(self, target: RouteTarget, policies: Collection[str]) -> None:
        """`policies`: those known from elsewhere. Raises BadTarget for what would be waited for in
        vain.
        """
        known = {*policies, *self.folds}
        if target.policy not in known:
            names = ", ".join(sorted(known))
            if target.version is None and _NUMBER.fullmatch(target.policy):
                raise BadTarget(
                    f"{target.policy!r} is no policy; a version is named with its policy, as "
                    f"in {min(known)}@{target.policy}"
                )
            raise BadTarget(f"no policy is called {target.policy!r}; there are: {names}")
        if target.version is not None:
            self._check_version(parse_version(target.version))

    def _check_version(self, version: Version) -> None:
        fold = self.folds.get(version.policy, TargetVersion(version.policy))
        if not fold.is_known(version):
            raise BadTarget(f"{version} was never published; the newest is {fold.version()}")
        gone = missing_file(fold.updates.get(version))
        if gone is not None:
            left = [
                str(one) for one in sorted(fold.updates) if missing_file(fold.updates[one]) is None
            ]
            raise BadTarget(
                f"{version} was published, but its weights are gone: {gone} is not there. The "
                "learner keeps the newest FULGURITE_KEEP_VERSIONS. Still there: "
                f"{', '.join(left) or base_version(version.policy)}"
            )


def missing_file(update: PolicyUpdate | None) -> Path | None:
    """The file of a version whose folder was removed; None if it is there, or lies where this
    machine cannot see.
    """
    if (
        update is None
        or update.artifact is None
        or urlparse(update.artifact.uri).scheme not in ("", "file")
    ):
        return None
    path = Path(unquote(urlparse(update.artifact.uri).path))
    # artifacts/<policy>/<version>/<file>: whoever sees the policy's folder sees what is missing in
    # it.
    return path if path.parent.parent.is_dir() and not path.is_file() else None


def read_published(kafka: KafkaSettings) -> Published:
    """Raises LogUnavailable."""
    published = Published()
    for record in read_all(kafka, POLICY_UPDATES, make_codec()):
        published.apply(record.event)
    return published


def check_alias(alias: str, aliases: Mapping[str, str | None]) -> None:
    """`aliases`: the gateway's, with their policies. Raises BadTarget."""
    if alias not in aliases:
        raise BadTarget(
            f"the gateway knows no alias {alias!r}, so nobody could ask for it; it serves: "
            f"{', '.join(sorted(aliases))}"
        )
    if aliases[alias] is None:
        raise BadTarget(
            f"the alias {alias!r} goes to a model of FULGURITE_UPSTREAMS, which has no "
            "versions to choose from"
        )
