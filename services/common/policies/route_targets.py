"""Parses the targets of a route, and checks them before the route is written.

They are checked against the log, the gateway and the weights on disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlparse

from fulgurite.enums import ArtifactFormat, UpdateKind
from fulgurite.events import PolicyUpdate, RouteTarget
from fulgurite.learning.target_version import TargetVersion
from fulgurite.parameters import Number
from fulgurite.prompts.history import AS_SENT, PromptHistory
from fulgurite.selection.variants import PROMPT_AS_SENT, UPSTREAM, name_variant
from fulgurite.topics import POLICY_UPDATES
from fulgurite.versions import (
    PROMPT_PREFIX,
    MalformedVersion,
    Version,
    base_version,
    parse_prompt_version,
    parse_version,
)
from services.common.kafka.codec import make_codec
from services.common.kafka.consumer import read_all
from services.common.kafka.settings import KafkaSettings

_POLICY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UPSTREAM = re.compile(r"upstream:[^\s,=]+")
_NUMBER = re.compile(r"\d+\.\d+")
_SHARE_ERROR = 1e-6

PARAMETERS = {
    "temperature": Number(1.0),
    "top_p": Number(1.0, 0.01, 1.0),
    "top_k": Number(0.0),
    "min_p": Number(0.0, 0.0, 1.0),
    "presence_penalty": Number(0.0, -2.0, 2.0),
    "frequency_penalty": Number(0.0, -2.0, 2.0),
    "repetition_penalty": Number(1.0, 0.01),
}
"""Sampling parameters that a target may set."""


class BadTarget(ValueError):
    """A target that is malformed or cannot be served."""


def parse_targets(texts: Sequence[str]) -> tuple[RouteTarget, ...]:
    """Parse targets such as `policy@1.3=0.9`, or `policy=0.1` for the newest version.

    `upstream:gpt-4o-mini=0.1` is an alias of FULGURITE_UPSTREAMS,
    `policy@1.3,temperature=0.7=0.1` has a sampling parameter, and `policy@1.3,prompt@2=0.1` a
    version of the alias's prompt. Without a share it is 1. Raises BadTarget.
    """
    targets = tuple(_target(text) for text in texts)
    shares = [target.weight for target in targets]
    if not any(share > 0 for share in shares):
        raise BadTarget(
            "at least one target needs a share above 0; `fulgurite routes clear` removes a route"
        )
    # Whole numbers are relative: 9 and 1 are 0.9 and 0.1. Of fractions one was mistyped.
    if not all(share.is_integer() for share in shares) and abs(sum(shares) - 1) > _SHARE_ERROR:
        raise BadTarget(f"the shares add up to {sum(shares):g}: fractions must add up to 1")
    if len({name_variant(target) for target in targets}) < len(targets):
        raise BadTarget("a target is given twice: name each variant once")
    return targets


def _target(text: str) -> RouteTarget:
    answers, *settings = text.split(",")
    if not settings:
        answers, equals, share = answers.partition("=")
    elif settings[-1].startswith(PROMPT_PREFIX):
        settings[-1], equals, share = settings[-1].partition("=")
    else:
        settings[-1], equals, share = settings[-1].rpartition("=")
    try:
        weight = float(share) if equals else 1.0
        is_upstream = answers.startswith(UPSTREAM)
        policy, at, _ = answers.partition("@")
        version = str(parse_version(answers)) if at and not is_upstream else None
        prompts = [one for one in settings if one.startswith(PROMPT_PREFIX)]
        parameters = dict(_parameter(one) for one in settings if one not in prompts)
        prompt = _prompt(prompts)
    except (ValueError, MalformedVersion) as error:
        raise BadTarget(f"{text!r}: {error}") from error
    pattern = _UPSTREAM if is_upstream else _POLICY
    if not math.isfinite(weight) or weight < 0 or not pattern.fullmatch(policy):
        raise BadTarget(
            f"{text!r} is neither policy@epoch.step=share nor policy=share nor "
            "upstream:alias=share, with a share of 0 or more"
        )
    return RouteTarget(
        policy="" if is_upstream else policy,
        version=version,
        upstream=answers.removeprefix(UPSTREAM) if is_upstream else None,
        weight=weight,
        parameters=parameters,
        prompt=prompt,
    )


def _prompt(texts: Sequence[str]) -> str | None:
    """Parse `prompt@2` or `prompt@none`, of which there may be one. Raises ValueError,
    MalformedVersion.
    """
    if len(texts) > 1:
        raise ValueError(f"{' and '.join(texts)}: a target has one prompt")
    if not texts or texts[0] == PROMPT_AS_SENT:
        return AS_SENT if texts else None
    parse_prompt_version(texts[0])
    return texts[0]


def _parameter(setting: str) -> tuple[str, float]:
    """Parse `temperature=0.7`. Raises ValueError."""
    name, equals, value = setting.partition("=")
    if name not in PARAMETERS or not equals:
        raise ValueError(
            f"{setting!r} is not parameter=value, before the share; the parameters are: "
            f"{', '.join(PARAMETERS)}; a prompt is prompt@N, or {PROMPT_AS_SENT} for as sent"
        )
    try:
        number = PARAMETERS[name].parse(value)
    except ValueError as error:
        raise ValueError(f"{name} must be {error}, not {value!r}") from error
    if name == "top_k" and not number.is_integer():
        raise ValueError(f"top_k must be a whole number, not {value!r}")
    return name, number


class Published:
    """The published versions of every policy, from `policy.updates`."""

    def __init__(self) -> None:
        self.folds: dict[str, TargetVersion] = {}
        self.claims: dict[tuple[str, int], PolicyUpdate] = {}
        """The claim that won an epoch, by policy and epoch."""

    def apply(self, event: object) -> None:
        """Apply the next event of the topic."""
        if isinstance(event, PolicyUpdate):
            self.folds.setdefault(event.policy, TargetVersion(event.policy)).apply(event)
            if event.kind is UpdateKind.claim:
                self.claims.setdefault((event.policy, event.epoch), event)

    def update(self, version: Version) -> PolicyUpdate:
        """The event that published a version. Raises BadTarget for the base model and what was
        never published.
        """
        if version == base_version(version.policy):
            raise BadTarget(
                f"{version} is the base model, which no learner published: it is in the folder "
                "policy.model (FULGURITE_MODEL)"
            )
        fold = self.folds.get(version.policy, TargetVersion(version.policy))
        found = fold.updates.get(version)
        if found is None:
            raise BadTarget(f"{version} was never published; the newest is {fold.version()}")
        return found

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
        """Check that a target can be served. Raises BadTarget.

        `policies`: known policies that may have no update yet.
        """
        known = {*policies, *self.folds}
        if target.policy not in known:
            names = ", ".join(sorted(known))
            if target.version is None and _NUMBER.fullmatch(target.policy):
                raise BadTarget(
                    f"{target.policy!r} is not a policy: write a version with its policy, for "
                    f"example {min(known)}@{target.policy}"
                )
            raise BadTarget(f"there is no policy {target.policy!r}; the policies are: {names}")
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
                "learner keeps the newest publish.keep, and what is routed. Still there: "
                f"{', '.join(left) or base_version(version.policy)}"
            )


def missing_file(update: PolicyUpdate | None) -> Path | None:
    """Return the path of a version's weights if they were removed.

    None if they are there, or if this machine cannot see where they were written.
    """
    path = weights_path(update)
    if path is None:
        return None
    # artifacts/<policy>/<version>/<file>: if the policy's folder is here, the file should be.
    return path if path.parent.parent.is_dir() and not path.is_file() else None


def weights_path(update: PolicyUpdate | None) -> Path | None:
    """Where a version's weights were written; None if that is not a file."""
    if update is None or update.artifact is None:
        return None
    location = urlparse(update.artifact.uri)
    return Path(unquote(location.path)) if location.scheme in ("", "file") else None


def read_published(kafka: KafkaSettings) -> Published:
    """Read `policy.updates`. Raises LogUnavailable."""
    published = Published()
    for record in read_all(kafka, POLICY_UPDATES, make_codec()):
        published.apply(record.event)
    return published


def check_alias(
    alias: str, aliases: Mapping[str, str | None], *, upstreams_only: bool = False
) -> None:
    """Check that the gateway has the alias and trains its policy. Raises BadTarget.

    `aliases`: the gateway's aliases, with their policies. `upstreams_only`: all targets are
    upstreams, for which the alias needs no policy.
    """
    if alias not in aliases:
        raise BadTarget(
            f"the gateway has no alias {alias!r}; its aliases are: {', '.join(sorted(aliases))}"
        )
    if aliases[alias] is None and not upstreams_only:
        raise BadTarget(
            f"the alias {alias!r} goes to a model of FULGURITE_UPSTREAMS, which has no "
            "versions to choose from: it can be routed to targets upstream:ALIAS only"
        )


def check_upstreams(targets: Sequence[RouteTarget], upstreams: Collection[str]) -> None:
    """Check that the gateway has the upstreams that targets name. Raises BadTarget."""
    for target in targets:
        if target.upstream is not None and target.upstream not in upstreams:
            raise BadTarget(
                f"the gateway has no upstream {target.upstream!r}; FULGURITE_UPSTREAMS has: "
                f"{', '.join(sorted(upstreams)) or 'none'}"
            )


def check_prompts(alias: str, targets: Sequence[RouteTarget], history: PromptHistory) -> None:
    """Check that the alias has the prompt versions that targets name. Raises BadTarget."""
    for target in targets:
        version = target.prompt
        if version in (None, AS_SENT) or history.find(alias, version) is not None:
            continue
        known = ", ".join(str(one.version) for one in history.versions(alias))
        raise BadTarget(f"{alias!r} has no {version}; its prompt versions are: {known or 'none'}")
