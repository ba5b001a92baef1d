"""`sampling.train`: calls of mode `train` are sampled as their alias declares, whatever the agent
asks for. Only samples from the policy's own distribution can be learned from. Pure.

Only fields that differ are changed: an agent that asks for temperature 0.2 gets 1 while it trains,
and 0.2 in any other mode. Penalties, biases, grammars, seeds and limits stay the agent's. The
sampling that was used is recorded, and is in the reply's header `x-fulgurite-sampling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from fulgurite.enums import Mode
from fulgurite.events import Sampling
from services.gateway.dialects.dialect import ApiRequest
from services.gateway.settings import TrainSampling
from services.gateway.upstream.route import Route


class Sampled(NamedTuple):
    """A request as it is sent on, its effective sampling, and the reply's header for it."""

    request: ApiRequest
    sampling: Sampling
    header: str | None = None


class TrainSamplings:
    """Alias → the sampling that it declares."""

    def __init__(self, declared: Mapping[str, TrainSampling]) -> None:
        self._declared = {alias: one.model_dump() for alias, one in declared.items()}
        self._headers = {
            alias: ", ".join(f"{name}={value:g}" for name, value in one.items())
            for alias, one in self._declared.items()
        }

    def apply(self, request: ApiRequest, sampling: Sampling, route: Route, mode: Mode) -> Sampled:
        """The request, changed if its alias declares a sampling, has a policy, and the call is for
        training.
        """
        declared = self._declared.get(request.alias)
        if declared is None or mode is not Mode.train or route.policy is None:
            return Sampled(request, sampling)
        changes = {
            name: value for name, value in declared.items() if getattr(sampling, name) != value
        }
        if changes:
            request = msgspec.structs.replace(request, body={**request.body, **changes})
            sampling = msgspec.structs.replace(sampling, **changes)
        return Sampled(request, sampling, self._headers[request.alias])
