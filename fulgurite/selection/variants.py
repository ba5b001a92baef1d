"""Names variants: what may answer an alias.

A variant's name is its target in `fulgurite routes set` without the share: `policy@1.3`, `policy`
for the newest version, `upstream:gpt-4o-mini`, and with sampling parameters
`policy@1.3,temperature=0.7`.
"""

from __future__ import annotations

from collections.abc import Mapping

from fulgurite.events import RouteTarget

UPSTREAM = "upstream:"
"""Prefix of an alias of FULGURITE_UPSTREAMS, which tells it from a policy."""


def name_variant(target: RouteTarget) -> str:
    """Name what a target of a route stands for."""
    answers = (
        (target.version or target.policy)
        if target.upstream is None
        else f"{UPSTREAM}{target.upstream}"
    )
    return with_parameters(answers, target.parameters)


def with_parameters(answers: str, parameters: Mapping[str, float]) -> str:
    """Name a version or upstream that is asked with these sampling parameters."""
    settings = [f"{name}={value:.12g}" for name, value in sorted(parameters.items())]
    return ",".join([answers, *settings])
