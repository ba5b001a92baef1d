"""Where the calls for one alias go."""

from __future__ import annotations

from typing import Literal

import msgspec

from fulgurite.versions import base_version

UpstreamKind = Literal["vllm", "openai"]


class Route(msgspec.Struct, frozen=True):
    """Where calls for one alias go."""

    alias: str
    backend: str
    base_url: str
    kind: UpstreamKind
    model: str
    """What the upstream is asked for."""
    policy: str | None
    api_key: str | None
    version: str | None = None
    """Of an adapter: the version that `model` stands for. None where the upstream itself reports
    which version answered.
    """
    expects: str | None = None
    """Of full weights: the version that the backend last proved to serve. A backend that restarted
    since, and has not been brought to it yet, refuses the call.
    """
    variant: str | None = None
    """What answers by this route, as calls record it; None for a route as configured."""
    propensity: float | None = None
    """Share with which the rollout was given the variant; None if it was given another one."""
    cell: str | None = None
    """Context cell whose share that is; None where the alias has no shares by context."""
    parameters: tuple[tuple[str, float], ...] = ()
    """The variant's sampling parameters, for requests that set none."""
    prompt: str | None = None
    """The variant's version of the alias's prompt, or AS_SENT; None: the one in force."""

    def reported(self, version: str | None) -> str | None:
        """The version that answered: what the engine reports; of an adapter's bare base model, that
        policy's own 0.0.
        """
        if version is None or self.policy is None or self.version != str(base_version(self.policy)):
            return version
        return self.version if version.endswith("@0.0") else version
