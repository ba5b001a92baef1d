"""Caps how many tokens an agent may ask for (FULGURITE_MAX_TOKENS). Pure.

Agents made for a large model ask for more than a small one's context holds, and vLLM would refuse
that. What was used instead is recorded, and is in the reply's header `x-fulgurite-sampling`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fulgurite.events import Sampling
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.dialects.train_sampling import Sampled

_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


class AnswerLimits:
    """Alias → most tokens of an answer."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = dict(limits)

    def apply(self, request: ApiRequest, sampling: Sampling) -> Sampled:
        """The request, changed where it asks for more than its alias allows."""
        most = self._limits.get(request.alias)
        if most is None:
            return Sampled(request, sampling)
        asked = {name: request.body.get(name) for name in _FIELDS}
        changes = {
            name: most
            for name, number in asked.items()
            if isinstance(number, int) and number > most
        }
        if not changes:
            return Sampled(request, sampling)
        return Sampled(
            msgspec.structs.replace(request, body={**request.body, **changes}),
            msgspec.structs.replace(sampling, max_tokens=most),
            f"max_tokens={most}",
        )
