"""Names variants: what may answer an alias.

A variant's name is its target in `fulgurite routes set` without the share: `policy@1.3`, `policy`
for the newest version, `upstream:gpt-4o-mini`; with a version of the alias's prompt
`policy@1.3,prompt@2`, with sampling parameters `policy@1.3,temperature=0.7`.
"""

from __future__ import annotations

from collections.abc import Mapping

from fulgurite.events import RouteTarget
from fulgurite.prompts.history import AS_SENT
from fulgurite.versions import PROMPT_PREFIX

UPSTREAM = "upstream:"
"""Prefix of an alias of FULGURITE_UPSTREAMS, which tells it from a policy."""

PROMPT_AS_SENT = f"{PROMPT_PREFIX}{AS_SENT}"
"""In a variant's name: the prompt as agents send it, whatever version is in force."""


def name_variant(target: RouteTarget) -> str:
    """Name what a target of a route stands for."""
    answers = (
        (target.version or target.policy)
        if target.upstream is None
        else f"{UPSTREAM}{target.upstream}"
    )
    return with_settings(answers, target.prompt, target.parameters)


def with_settings(answers: str, prompt: str | None, parameters: Mapping[str, float]) -> str:
    """Name a version or upstream that is asked with this prompt and these sampling parameters.

    `prompt`: a version of a prompt, AS_SENT, or None for the one in force.
    """
    prompts = [PROMPT_AS_SENT if prompt == AS_SENT else prompt] if prompt is not None else []
    settings = [f"{name}={value:.12g}" for name, value in sorted(parameters.items())]
    return ",".join([answers, *prompts, *settings])
